"""What a task makes of a batch and of a model: its rows, the model's head, what of it is not counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from memplan.planner.inputs.families.table import trace_instead
from memplan.planner.inputs.pictures import read_sizes
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Dropouts, ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.heads import MODULE_HEAD, NEW_HEADS
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import (
    FUNCTIONAL_DROPOUT,
    MODULE_ATTENTION_DROPOUT,
    TASKS,
)


def rows(setup: Setup) -> int:
    """Rows of a batch for each example."""
    return setup.texts or TASKS[setup.task].rows


def read_at_once(setup: Setup) -> int:
    """Rows of one forward for each example: texts are read one after another."""
    return 1 if setup.texts else rows(setup)


class GeneratedRows(NamedTuple):
    """What is sampled at once on one GPU: `rows` of `prompt` + `completion` tokens, for `steps` micro-steps.
    `old_scores`: the model is trained before all of them have been used, so that their log-probabilities
    are taken first.
    """

    rows: int
    prompt: int
    completion: int
    steps: int
    old_scores: bool
    chunk: int
    """Rows that are sampled at once."""


def generated(setup: Setup) -> GeneratedRows:
    """Of a setup whose task generates (trl 1.16 trainer/grpo_trainer.py _prepare_inputs and
    _generate_and_score_completions; with vLLM the scores correct for its numerics).
    """
    steps = setup.steps_per_generation or setup.gradient_accumulation
    completion = setup.completion_length or 0
    return GeneratedRows(
        setup.micro_batch * steps,
        setup.sequence_length - completion,
        completion,
        steps,
        {
            "later": setup.gradient_accumulation % steps != 0 or setup.vllm_share is not None,
            "always": True,
            "never": False,
        }[TASKS[setup.task].old_scores],
        min(setup.rollout_batch or setup.micro_batch * steps, setup.micro_batch * steps),
    )


def micro_rows(setup: Setup) -> tuple[int, int]:
    """Rows of a micro-step of PPO, and micro-steps of a mini-batch, after which its outputs are dropped (trl
    1.12 experimental/ppo/ppo_trainer.py local_mini_batch_size).
    """
    whole = setup.micro_batch * setup.gradient_accumulation // (setup.num_mini_batches or 1)
    rows = min(setup.micro_batch, whole)
    return rows, -(-whole // rows)


def sampled_while_evaluating(setup: Setup) -> GeneratedRows:
    """Of one batch of the evaluation of a task that generates: as of training, of `eval_batch` rows (trl 1.16
    trainer/grpo_trainer.py and rloo_trainer.py prediction_step).
    """
    return generated(setup)._replace(rows=setup.eval_batch or 0, steps=1)


def shortest(setup: Setup) -> int:
    """The fewest tokens of a row: a sampled completion stands behind a prompt."""
    return (setup.completion_length or 0) + 1


def server_bytes(setup: Setup) -> int:
    """What a vLLM in the trainer's process takes by configuration, gpu_memory_utilization x the GPU's memory
    (vllm 0.11 v1/worker/gpu_worker.py init_device): its own weights, cache and workspaces, none of which is
    looked into. 0 where there is none.
    """
    if setup.vllm_share is None or setup.gpu is None:
        return 0
    return int(setup.vllm_share * find_gpu(setup.gpu).usable_bytes)


GROWTH_STEPS = 64
"""A cache grows from the first sampled token to the last in so many concatenations."""


def growth(tokens: int) -> Iterator[int]:
    """How many tokens each concatenation adds: one, or where there are more tokens than GROWTH_STEPS, even
    shares of them.
    """
    steps = min(tokens, GROWTH_STEPS)
    for number in range(steps):
        yield tokens * (number + 1) // steps - tokens * number // steps


def evaluation_batches(setup: Setup) -> int:
    """Batches whose logits an evaluation keeps on the device, each of all ranks; those of one batch where
    none are kept.
    """
    if setup.eval_batch is None or setup.eval_kept is None:
        return 1
    return -(-setup.eval_kept // (setup.eval_batch * setup.gpus))


EVALUATED = 8
"""Batches of an evaluation that run as they are where logits are kept: what a forward leaves cached decides
where the kept ones go. Of more, only what is kept of those between is made.
"""


def evaluates_whole(number: int, batches: int) -> bool:
    """Whether batch `number` of an evaluation runs as it is: the first ones, and the last."""
    return number < EVALUATED - 1 or number == batches - 1


def lacks(setup: Setup) -> str:
    """What of the setup's task is not counted, "" where all of it is."""
    task = TASKS[setup.task]
    return f"task {task.name}: {task.lacks}" if task.lacks else ""


def trained_head(spec: ModelSpec, setup: Setup) -> tuple[str, ...]:
    """The module of which PEFT trains a whole copy by itself: the new head of a classifier (peft 0.21
    peft_model.py PeftModelForSequenceClassification, PeftModelForTokenClassification).
    """
    new = TASKS[setup.task].head in NEW_HEADS and METHODS[setup.method].trains == "adapter"
    return (spec.head_name,) if new else ()


def without_class(model_type: str, setup: Setup) -> str:
    """What is said of a model that has no class for the setup's task."""
    return (
        f"task '{setup.task}' needs a class of transformers' {TASKS[setup.task].classes}, which has none for "
        f"model_type '{model_type}': leave --task out"
    )


def headed(spec: ModelSpec, setup: Setup) -> ModelSpec:
    """The model with the setup's vocabulary, and the head and the dropout of its task. Raises UsageError
    where transformers has no such class.
    """
    task = TASKS[setup.task]
    if read_sizes(setup.images):
        raise UsageError(
            f"the formula has no rule for pictures (--images {','.join(setup.images)}): {trace_instead()}"
        )
    if task.classes:  # every family of the formula is a decoder
        raise UsageError(without_class(spec.model_type, setup))
    if setup.vocabulary not in (None, spec.vocab):
        spec = _resized(_Same(spec), setup.vocabulary)
    if task.head == "none" and spec.head_outputs is None:
        spec = _headless(_Same(spec))
    if task.head in NEW_HEADS and spec.head_outputs is None:
        spec = _with_new_head(_Same(spec), setup.num_labels, setup.task)
    if not task.dropout and spec.dropouts != _functional(spec):
        spec = _undropped(_Same(spec))
    return spec


def _functional(spec: ModelSpec) -> Dropouts:
    """The dropout that is no module of its own, which a trainer that zeroes modules leaves on."""
    if spec.model_type in FUNCTIONAL_DROPOUT:
        return spec.dropouts
    kept = 0.0 if spec.model_type in MODULE_ATTENTION_DROPOUT else spec.dropouts.attention
    return Dropouts(attention=kept)


@lru_cache(maxsize=64)
def _resized(same: _Same, vocabulary: int) -> ModelSpec:
    return replace(same.spec, vocab=vocabulary, resized_from=same.spec.vocab)


@lru_cache(maxsize=64)
def _headless(same: _Same) -> ModelSpec:
    """The backbone alone: nothing is kept for a head of no outputs, as where it is the embedding's."""
    return replace(same.spec, tied=True, head_outputs=0, head_bias=False)


@lru_cache(maxsize=64)
def _undropped(same: _Same) -> ModelSpec:
    return replace(same.spec, dropouts=_functional(same.spec))


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
def _with_new_head(same: _Same, outputs: int, task: str) -> ModelSpec:
    spec, head = same.spec, NEW_HEADS[TASKS[task].head]
    if spec.model_type in head.without:
        raise UsageError(
            f"task '{task}' needs a {head.what} class, which transformers does not have for "
            f"model_type '{spec.model_type}': use another model, or --task sft"
        )
    return replace(
        spec,
        tied=False,
        head_name="classifier" if spec.model_type in head.elsewhere else MODULE_HEAD,
        head_outputs=outputs,
        head_bias=head.bias,
        logit_softcap=None,
        scaled_logits=False,
    )
