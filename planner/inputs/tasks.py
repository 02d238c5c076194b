"""What a task makes of a batch and of a model: its rows, the model's head, what of it is not counted."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import MODULE_HEAD, TASKS, WITHOUT_POOLED_HEAD


def rows(setup: Setup) -> int:
    """Rows of a batch for each example."""
    return TASKS[setup.task].rows


def lacks(setup: Setup) -> str:
    """What of the setup's task is not counted, "" where all of it is."""
    task = TASKS[setup.task]
    return f"task {task.name}: {task.lacks}" if task.lacks else ""


def trained_head(setup: Setup) -> tuple[str, ...]:
    """The module of which PEFT trains a whole copy by itself: the new head of a classifier (peft 0.21
    peft_model.py PeftModelForSequenceClassification).
    """
    pooled = TASKS[setup.task].head == "pooled" and METHODS[setup.method].trains == "adapter"
    return (MODULE_HEAD,) if pooled else ()


def headed(spec: ModelSpec, setup: Setup) -> ModelSpec:
    """The model with the head of the setup's task. Raises UsageError where transformers has no such class."""
    if TASKS[setup.task].head == "vocabulary" or spec.head_outputs is not None:
        return spec
    return _pooled(_Same(spec), setup.num_labels, setup.task)


class _Same:
    """A spec by identity: hashing a whole config would cost more than the formula."""

    __slots__ = ("spec",)

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec


@lru_cache(maxsize=64)
def _pooled(same: _Same, outputs: int, task: str) -> ModelSpec:
    spec = same.spec
    if spec.model_type in WITHOUT_POOLED_HEAD:
        raise UsageError(
            f"task '{task}' needs a sequence classification class, which transformers does not have for "
            f"model_type '{spec.model_type}': use another model, or --task sft"
        )
    return replace(
        spec,
        tied=False,
        head_name=MODULE_HEAD,
        head_outputs=outputs,
        head_bias=False,
        logit_softcap=None,
        scaled_logits=False,
    )
