"""compare: methods side by side on one model, and two setups against each other with the bytes that each
difference explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from memplan.planner import __version__
from memplan.planner.answers.fit.gpus import largest_model
from memplan.planner.answers.fit.suggest import under
from memplan.planner.formula.flops import StepCost, step_cost
from memplan.planner.inputs.setup import FIELDS, Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.progress import telling

SCHEMA = "memplan.compare/1"
METHODS_COMPARED = ("full", "lora", "adalora", "qlora")

FORGETTING = {
    "full": "every weight changes: the highest risk (general experience, not computed)",
    "adapter": "the base stays frozen: a lower risk (general experience, not computed)",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One method of the comparison; `error` says why it could not be predicted."""

    method: str
    prediction: Prediction | None
    cost: StepCost | None = None
    merge: str = ""
    merge_bytes: int | None = (
        None  # weights in 16 bits that merging holds beside the adapters; None where nothing is merged
    )
    largest: tuple[str, int] | None = None
    error: str | None = None

    @property
    def trainable_share(self) -> float | None:
        """Trained parameters over all parameters, at most 1; None where the setup is refused."""
        if self.prediction is None:
            return None
        return self.prediction.trainable_parameters / max(1, self.prediction.total_parameters)

    def precision(self) -> dict[str, str]:
        """The dtypes of the base, of what is trained beside it, and of computation."""
        if self.prediction is None:
            return {}
        setup = self.prediction.setup
        base = (
            setup.weight_dtype
            if setup.quant_type == "none"
            else setup.quant_type + (" + double quantization" if setup.double_quant else "")
        )
        adapter = setup.adapter_dtype if METHODS[setup.method].trains == "adapter" else "-"
        compute = (
            setup.autocast
            if setup.autocast != "none"
            else (setup.compute_dtype if setup.quant_type != "none" else setup.weight_dtype)
        )
        return {"base": base, "adapter": adapter, "computation": compute}

    def to_document(self) -> dict[str, Any]:
        """The column as the JSON of `compare` has it: bytes and parameters, or the refusal's text."""
        if self.prediction is None:
            return {"method": self.method, "error": self.error}
        peak = self.prediction.moment(self.prediction.peak.moment)
        return {
            "method": self.method,
            "trainable_parameters": self.prediction.trainable_parameters,
            "trainable_share": self.trainable_share,
            "precision": self.precision(),
            "peak": self.prediction.peak.to_document(),
            "components": peak.components,
            "gpus": [gpu.to_document() for gpu in self.prediction.gpus],
            "checkpoint_bytes": self.prediction.checkpoint_bytes,
            "flops": self.cost.total if self.cost else None,
            "dequantized_elements": self.cost.dequantized if self.cost else None,
            "merge": self.merge,
            "merge_bytes": self.merge_bytes,
            "largest_model": {"name": self.largest[0], "parameters": self.largest[1]}
            if self.largest
            else None,
            "forgetting": forgetting(self.method),
            "setup": self.prediction.setup.to_document(),
        }


def forgetting(method: str) -> str:
    """What the field says of forgetting; never computed."""
    return FORGETTING["full" if METHODS[method].trains in ("all", "last_layers") else "adapter"]


def columns(
    spec: ModelSpec | None,
    setup: Setup,
    predict: Callable[[Setup], Prediction],
    methods: Iterable[str] = METHODS_COMPARED,
    gpu: Gpu | None = None,
    error: float = 0.0,
    largest: bool = False,
) -> list[Column]:
    """The methods side by side under one setup's choices, each predicted by `predict`. `spec` None: a family
    that the formula lacks, whose operations are not counted.
    """
    found = []
    for name in methods:
        try:
            this = under(setup, name)
            with telling(name):
                prediction = predict(this)
            cost = step_cost(spec, this) if spec is not None else None
        except UsageError as problem:
            found.append(Column(name, None, error=str(problem)))
            continue
        text, size = merging(prediction)
        best = largest_model(this, gpu, error) if largest and gpu is not None else None
        found.append(Column(name, prediction, cost, text, size, best))
    return found


def merging(prediction: Prediction) -> tuple[str, int | None]:
    """What merging the adapter into the base means: in words, and the bytes of 16-bit weights that it
    needs.
    """
    setup = prediction.setup
    method = METHODS[setup.method]
    if method.trains != "adapter":
        return "nothing to merge", None
    if method.peft_type not in ("LORA", "ADALORA", "IA3"):
        return "cannot be merged: its tokens or layers stay separate from the model", None
    sixteen_bit = 2 * prediction.model.parameters
    if setup.quant_type == "none":
        return (
            "merging into the 16-bit base needs no extra memory; the merged model is as fast to "
            "serve as the base model",
            0,
        )
    return "merging needs the original 16-bit weights (or merges into the rounded 4-bit ones)", sixteen_bit


def compare_document(model: str, found: list[Column], tasks: int) -> dict[str, Any]:
    """memplan.compare/1 of methods side by side."""
    base = next((column.cost.total for column in found if column.cost is not None), None)
    documents = []
    for column in found:
        document = column.to_document()
        if column.prediction is not None:
            document |= {
                "tasks": tasks,
                "kept_bytes": kept(column.prediction, tasks),
                "relative_flops": column.cost.total / base if column.cost and base else None,
            }
            if lengths := column.prediction.extra.get("lengths"):
                document["lengths"] = lengths
        documents.append(document)
    return {"schema": SCHEMA, "memplan_version": __version__, "model": model, "methods": documents}


def kept(prediction: Prediction, tasks: int) -> int:
    """Bytes on disk for so many tasks: full copies, or one base in 16 bits and an adapter for each."""
    if METHODS[prediction.setup.method].trains == "adapter":
        return 2 * prediction.model.parameters + tasks * prediction.checkpoint_bytes
    return tasks * prediction.checkpoint_bytes


# ---- two setups ----


@dataclass(frozen=True, slots=True)
class Difference:
    """Fields that differ together, and device bytes: `alone` from the first setup, `then` in order, the
    differences before it applied.
    """

    fields: tuple[str, ...]
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    alone: int | None
    then: int

    def to_document(self) -> dict[str, Any]:
        """The difference as the JSON of `compare` has it."""

        def plain(values: tuple[Any, ...]) -> list[Any]:
            return [list(value) if isinstance(value, tuple) else value for value in values]

        return {
            "fields": list(self.fields),
            "first": plain(self.first),
            "second": plain(self.second),
            "alone_bytes": self.alone,
            "in_order_bytes": self.then,
        }


def differences(first: Setup, second: Setup, device_bytes: Callable[[Setup], int]) -> list[Difference]:
    """Every difference of two setups of one model and what it moves; the `then` add up to the whole
    difference of the two.

    Fields that cannot differ alone (a method and its quantization) go together. `recipe` comes last, where it
    moves anything beyond its fields: whether the stack's loop drops the outputs before the backward, for one.
    """
    pending = [name for name in FIELDS if name != "recipe" and getattr(first, name) != getattr(second, name)]
    current, before = first, device_bytes(first)
    start = before
    found: list[Difference] = []
    while pending:
        group = _next_group(current, second, pending)
        current = current.replaced(**{name: getattr(second, name) for name in group})
        after = device_bytes(current)
        alone = _alone(first, second, group, device_bytes, start)
        found.append(
            Difference(tuple(group), _values(first, group), _values(second, group), alone, after - before)
        )
        before = after
        pending = [
            name for name in pending if getattr(current, name) != getattr(second, name)
        ]  # an optimizer brings its mode
    if first.recipe != second.recipe and (whole := device_bytes(second)) != before:
        recipe = ["recipe"]
        alone = _alone(first, second, recipe, device_bytes, start)
        found.append(
            Difference(tuple(recipe), _values(first, recipe), _values(second, recipe), alone, whole - before)
        )
    return found


def _next_group(current: Setup, second: Setup, pending: list[str]) -> list[str]:
    for size in (1, 2, 3):
        for name in pending:
            group = [name, *(other for other in pending if other != name)][:size]
            try:
                current.replaced(**{field: getattr(second, field) for field in group})
                return group
            except UsageError:
                continue
    return pending


def _alone(
    first: Setup, second: Setup, group: list[str], device_bytes: Callable[[Setup], int], start: int
) -> int | None:
    try:
        return device_bytes(first.replaced(**{name: getattr(second, name) for name in group})) - start
    except UsageError:
        return None


def _values(setup: Setup, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(getattr(setup, name) for name in names)


def components_of(prediction: Prediction) -> dict[str, int]:
    """Components at the prediction's peak."""
    components = prediction.moment(prediction.peak.moment).components
    return {name: components[name] for name in COMPONENTS}
