"""Build and two steps on meta under the observer: the log of events and the model's counts, at full depth or
synthesized from a few layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run import batches, evaluation, merging, saving, step
from memplan.planner.run.build import build, outline
from memplan.planner.run.built import Built, logical_numel
from memplan.planner.run.model import (
    layer_list,
    place,
    quiet,
    reason,
    sub_configs,
)
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.progress import tell
from memplan.planner.trace import attention, autocast, patches, patches_peft
from memplan.planner.trace.buckets import buckets
from memplan.planner.trace.device.composites import as_on_cuda
from memplan.planner.trace.device.target import Target
from memplan.planner.trace.events import attribute, layer_extrapolation
from memplan.planner.trace.events.log import Log
from memplan.planner.trace.kernels import Kernels
from memplan.planner.trace.observe import Observer
from memplan.planner.trace.telling import STEPS, Told, named_modules

MICRO_STEPS = 2  # of gradient accumulation: the first makes gradients, the second and all others add to them
_NAMES_LAYERS = (
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "layer_indexes",
    "adapter_layers",  # ADAPTION_PROMPT: the last so many
    "num_layers",  # learned prompts: keys and values of so many
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of the model that was traced. `traced_layers`: how many layers really ran, None where all
    did.
    """

    architecture: str
    parameters: int
    trainable: int
    total: int
    checkpoint_bytes: int
    host_bytes: int
    traced_layers: int | None = None
    warnings: tuple[str, ...] = ()


BALANCED = (
    "which experts are chosen decides shapes: the trace takes each equally often, a real router does not"
)


class StepFailed(UsageError):
    """A training step that a library could not run."""


def record(
    config: Mapping[str, Any],
    setup: Setup,
    target: Target,
    *,
    full: bool = False,
    kind: type[Observer] = Observer,
) -> tuple[Log, Facts]:
    """The log of building and `STEPS` steps. `full` runs every layer and every micro-step of gradient
    accumulation; otherwise equal layers are synthesized where that is proved exact, and `MICRO_STEPS`
    micro-steps are run while the batches of the others are held.

    A step that fails is tried once more with values: a router's choice decides shapes where no grouped
    product hides it.
    """
    patches_peft.refuse(setup)
    try:
        return _recorded(config, setup, target, full, kind, routed=False)
    except StepFailed as failure:
        try:
            log, facts = _recorded(config, setup, target, full, kind, routed=True)
        except UsageError:
            raise failure from failure.__cause__
    return log, replace(facts, warnings=(*facts.warnings, BALANCED))


def _recorded(
    config: Mapping[str, Any], setup: Setup, target: Target, full: bool, kind: type[Observer], routed: bool
) -> tuple[Log, Facts]:
    if not full:
        try:
            found = _synthesized(config, setup, target, kind, routed)
            if found is not None:
                return found
        except layer_extrapolation.NotPeriodic:
            pass
    steps, model = None if full else MICRO_STEPS, _outline(config, setup)
    return _observe(model, config, setup, target, kind, routed, steps)


def _outline(config: Mapping[str, Any], setup: Setup) -> nn.Module:
    """The model before its layers are cut, made with the attention packages that its class asks for."""
    tell("building the model on meta")
    with attention.packages(setup.attention):
        return outline(config, setup)


def _synthesized(
    config: Mapping[str, Any], setup: Setup, target: Target, kind: type[Observer], routed: bool
) -> tuple[Log, Facts] | None:
    """The full log from a few layers; None where nothing repeats often enough. Raises
    layer_extrapolation.NotPeriodic where it does not stretch.
    """
    if _names_layers(setup):
        return None
    model = _outline(config, setup)
    found = layer_list(model)
    if found is None:
        return None
    layout = layer_extrapolation.runs(
        layer_extrapolation.signatures(found[1], _marks(model, setup, len(found[1])))
    )
    reducible = [number for number, run in enumerate(layout) if run.reducible]
    cost = len(layer_extrapolation.kept_layers(layout)) + sum(
        len(layer_extrapolation.kept_layers(layout, number)) for number in reducible
    )
    if not reducible or cost >= len(found[1]):
        return None
    small, facts = _observe(_cut(model, layout, None), config, setup, target, kind, routed)
    gains, longer = [], []
    for number in reducible:
        deeper = _cut(_outline(config, setup), layout, number)
        log, counts = _observe(deeper, config, setup, target, kind, routed)
        gains.append(
            layer_extrapolation.growth(
                small, log, layer_extrapolation.templates(layout, full=False, longer=number)
            )
        )
        longer.append(counts)
    made = layer_extrapolation.stretch(
        small,
        layer_extrapolation.templates(layout, full=True),
        layer_extrapolation.sizes_at(small, layout, gains),
    )
    return made, _grown(
        facts, longer, [layout[number] for number in reducible], len(layer_extrapolation.kept_layers(layout))
    )


def _names_layers(setup: Setup) -> bool:
    """Whether the adapter treats layers by number, so that a shorter model would get another adapter."""
    adapter = setup.adapter or {}
    chosen = (
        *setup.targets,
        *setup.modules_to_save,
        *setup.target_parameters,
        str(adapter.get("target_modules", "")),
        str(adapter.get("exclude_modules", "")),
    )
    by_number = setup.layers_to_transform or any(adapter.get(key) for key in _NAMES_LAYERS)
    by_number = by_number or any(re.search(r"\d", text) for text in setup.trained_parameters)
    return bool(by_number) or any(re.search(r"\d+\\?\.", text) for text in chosen)


def _marks(model: Any, setup: Setup, count: int) -> Any:
    """How the setup and the config's per-layer lists tell layers apart."""
    lists = [
        value
        for config in (model.config, *sub_configs(model.config))
        for value in vars(config).values()
        if isinstance(value, (list, tuple)) and len(value) == count
    ]

    def marks(index: int) -> Any:
        trained = setup.method != "freeze" or index >= count - (setup.trainable_layers or 1)
        return (*(repr(value[index]) for value in lists), index % setup.checkpoint_every == 0, trained)

    return marks


def _cut(model: Any, layout: list[layer_extrapolation.Run], longer: int | None) -> Any:
    path, layers = layer_list(model) or ("", nn.ModuleList())
    parent, _, name = path.rpartition(".")
    layer_extrapolation.prune(
        model.get_submodule(parent),
        name,
        layers,
        layer_extrapolation.kept_layers(layout, longer),
        layer_extrapolation.configs_around(model, path),
    )
    return model


def _grown(small: Facts, longer: list[Facts], layout: list[layer_extrapolation.Run], traced: int) -> Facts:
    """Counts at full depth: each further repeat of a run adds what the first one added."""

    def at_depth(name: str) -> int:
        base = getattr(small, name)
        gains = (
            (getattr(more, name) - base, run.repeats - layer_extrapolation.COPIES)
            for more, run in zip(longer, layout, strict=True)
        )
        return int(base + sum(gain * further for gain, further in gains))

    counts = {field.name: at_depth(field.name) for field in fields(Facts) if field.type == "int"}
    return Facts(architecture=small.architecture, traced_layers=traced, warnings=small.warnings, **counts)


@contextmanager
def watching(observer: Observer, setup: Setup, target: Target) -> Iterator[None]:
    """While active, libraries run on meta as on `target`, and `observer` sees every storage that they make
    and drop.
    """
    kernels = attention.modeled(target, setup.attention, batches.padding(setup), setup.packed_documents)
    with ExitStack() as stack:
        for context in (
            quiet(),
            autocast.installed(target.device),
            _composites(target),
            kernels,
            patches.applied(observer, setup),
            observer,
        ):
            stack.enter_context(context)
        yield


def _observe(
    model: nn.Module,
    config: Mapping[str, Any],
    setup: Setup,
    target: Target,
    kind: type[Observer],
    routed: bool,
    micro_steps: int | None = MICRO_STEPS,
) -> tuple[Log, Facts]:
    """Build on `model` and run `STEPS` steps of at most `micro_steps` micro-steps under an observer.
    StepFailed where a library cannot.
    """
    observer = kind(Kernels(target))
    observer.answers = patches.answers(setup, observer, routed)
    with watching(observer, setup, target):
        built = build(config, setup, "meta", watcher=observer, model=model)
        attribute.attribute_weights(observer, built)
        held = buckets(observer, built, setup)
        observer.finalize = attribute.attribute_after(observer, built)
        try:
            with (
                named_modules(observer, built.model, built.reference),
                attribute.saved_for_backward(observer),
            ):
                for index in range(STEPS):
                    step.run(built, Told(observer), index, micro_steps)
                evaluation.run(built, Told(observer), STEPS - 1)
                saving.run(built, Told(observer), STEPS - 1)
                facts = _facts(built, observer)
                merging.run(built, Told(observer), STEPS - 1)
        except UsageError:
            raise
        except Exception as error:
            found = reason(error) + place(error, built.model)
            raise StepFailed(
                f"{type(built.base).__name__} cannot run a training step with this setup: {found}"
            ) from error
        attribute.attribute_weights(observer, built)
        attribute.finalize_rest(observer.log.storages)
        observer.freeze()
        del held
    return observer.log, facts


def _facts(built: Built, observer: Observer) -> Facts:
    named = list(built.model.named_parameters())
    adapted = built.setup.method != "inference" and any(id(p) not in built.own for _, p in named)
    saved = [p for _, p in named if p.requires_grad or (not adapted and id(p) in built.own)]
    return Facts(
        architecture=type(built.base).__name__,
        parameters=built.parameters,
        trainable=sum(logical_numel(p) for _, p in named if p.requires_grad),
        total=sum(logical_numel(p) for _, p in named),
        checkpoint_bytes=sum(p.numel() * p.element_size() for p in saved),
        host_bytes=observer.host_bytes,
        warnings=built.warnings,
    )


def _composites(target: Target) -> AbstractContextManager[None]:
    return as_on_cuda() if target.device == "cuda" else nullcontext()
