"""memplan.plan, trace, profile, reconcile: find the model, resolve the setup, call the engine, attach
accuracy and verdicts.

Computes nothing itself; torch is imported only by `trace` and `profile`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.engines import ENGINES, compiled
from memplan.names import setup_fields
from memplan.planner.answers.parts import parts
from memplan.planner.answers.verdict import close_calls, judge, not_modelled, withhold
from memplan.planner.formula.sharding import refusals, strategies
from memplan.planner.inputs import pictures, quantized
from memplan.planner.inputs.checkpoint_formats import NO_BITS
from memplan.planner.inputs.models import Model, find, whole_model
from memplan.planner.inputs.picture_sizes import has_tower
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.unused_settings import unread
from memplan.planner.inputs.usual_pictures import wants_tower
from memplan.planner.prediction import GpuVerdict, Prediction
from memplan.planner.tables.accuracy import Accuracy
from memplan.planner.tables.errors import UsageError, shown
from memplan.planner.tables.gpus import Gpu, common_gpus, find_gpu, said_of
from memplan.planner.tables.tested_versions import newer_than_tested

if TYPE_CHECKING:
    from memplan.planner.answers.search import Fit
    from memplan.profiler.callback import MemoryCallback
    from memplan.profiler.record import Measurement
    from memplan.validate.reconcile import Reconciliation

ModelLike = str | Path | Mapping[str, Any] | ModelSpec | Model


def request(
    model: ModelLike, setup: Setup | None = None, imported: Mapping[str, Any] | None = None, **fields: Any
) -> tuple[Model, Setup]:
    """The model that `model` names and the complete Setup: `setup` with `fields` changed, or one resolved
    from `fields` over `imported`.

    Raises UsageError for an unknown model, name or field, a value out of bounds, or choices that contradict
    each other.
    """
    found = find(model)
    fields = setup_fields(fields)
    gpu = fields.get("gpu")
    if gpu is not None:
        fields["gpu"] = setup_gpu(gpu)
    under = dict(imported or {})
    stored = quantized.fields(found.config, {**under, **_chosen(setup), **fields})
    resolved = _resolved(found, setup, under, fields, stored)
    if wants_tower(found.config, resolved):
        found = whole_model(found)
    complete: Setup = pictures.with_lengths(found.config, resolved)
    return found, complete


def _resolved(
    found: Model,
    setup: Setup | None,
    under: Mapping[str, Any],
    fields: dict[str, Any],
    stored: Mapping[str, Any],
) -> Setup:
    """The complete Setup of a request."""
    if isinstance(document := fields.get("adapter", under.get("adapter")), Mapping):
        return _adapted(found, document, setup, under, fields, stored)
    if setup is not None:
        changes = {**fields, **stored}
        return setup.replaced(**changes) if changes else setup
    return resolve(fields, imported=under, checkpoint=stored, max_positions=learned_positions(found))


def _chosen(setup: Setup | None) -> dict[str, str]:
    """What a complete Setup says of the checkpoint, where somebody chose it."""
    if setup is None or setup.origins.get("checkpoint_quant") not in ("user", "import"):
        return {}
    return {"checkpoint_quant": setup.checkpoint_quant}


def _adapted(
    model: Model,
    document: Mapping[str, Any],
    setup: Setup | None,
    under: Mapping[str, Any],
    fields: dict[str, Any],
    stored: Mapping[str, Any],
) -> Setup:
    """The Setup with an adapter file: the file's own values, and the file itself where the formula has no
    rule for it.
    """
    from memplan.planner.importers.peft import settings

    fields = {name: value for name, value in fields.items() if name != "adapter"}
    spec = _spec(model)
    file = {"adapter": None, **settings(document, fields, under if setup is None else setup.values(), spec)}
    positions = learned_positions(model)

    def resolved(file: Mapping[str, Any]) -> Setup:
        if setup is not None:
            return setup.replaced(**{**fields, **file, **stored})
        return resolve(fields, imported={**under, **file}, checkpoint=stored, max_positions=positions)

    found = resolved(file)
    if found.adapter is None and spec is not None:
        from memplan.planner.formula.resident.adapters import adapters

        try:
            adapters(spec, found)
        except (
            UsageError
        ):  # a name that is no linear layer's: whether it is another module's, PEFT itself finds out
            return resolved({**file, "adapter": dict(document)})
    return found


def _spec(model: Model) -> ModelSpec | None:
    """What the formula knows of a model; None where only the trace knows its family."""
    try:
        return model.spec()
    except UsageError:
        return None


def setup_gpu(text: Any) -> str:
    """What Setup.gpu holds for a GPU that a person named: the GPU's own name; `local` and budgets as they
    are. Raises UsageError.
    """
    if not isinstance(text, str):
        raise UsageError(f"gpu {shown(text)}: expected a GPU name or a size such as 23.5GiB")
    gpu = find_gpu(text)
    return "local" if gpu.kind == "local" else text.strip() if gpu.kind == "budget" else gpu.name


def plan(
    model: ModelLike, setup: Setup | None = None, *, engine: str | None = None, **fields: Any
) -> Prediction:
    """The memory of one training step, predicted: `memplan.plan` (memplan/lengths.py) where every row is as
    long as the setup says. Raises UsageError, NetworkError.
    """
    return predict(*request(model, setup, **fields), engine)


def trace(model: ModelLike, setup: Setup | None = None, **fields: Any) -> Prediction:
    """The same from the real libraries' step on meta tensors, replayed through the CUDA allocator; needs the
    extra `trace`.
    """
    return plan(model, setup, engine="trace", **fields)


def predict(model: Model, setup: Setup, engine: str | None = None) -> Prediction:
    """The prediction of one engine, with that engine's recorded accuracy and the verdicts for the GPUs in
    question.
    """
    unknown = engine is None and traced_alone(model, setup)
    engine = engine or ("trace" if setup.adapter is not None or unknown else "formula")
    if engine not in ENGINES:
        raise UsageError(f"unknown engine '{engine}': expected {' or '.join(ENGINES)}")
    bounded = unknown or (engine == "formula" and refusals.lacks_a_rule(setup))
    runs = None
    if bounded:
        from memplan.planner.answers import bound  # what few setups need is imported for them

        runs = bound.nearest(model.config, setup)
    refusals.refuse_sharding(setup, bounded=runs is not None)
    if engine == "trace":
        family = model.config.get("model_type") if unknown_family(model) else None
        refusals.refuse_tracing(runs or setup, family)
    prediction = compiled(model, setup) if unknown else ENGINES[engine](model, runs or setup)
    if runs is not None and not unknown:
        prediction = bound.bound(prediction, model.config, setup)
    found = (*unread(setup), *strategies.warnings(engine, setup), *newer_than_tested(engine))
    said = (
        model.note,
        said_of(find_gpu(setup.gpu)) if setup.gpu else "",
    )  # the formula knows the former itself
    prediction = prediction.with_(
        warnings=(*prediction.warnings, *found),
        assumptions=(
            *(text for text in said if text and text not in prediction.assumptions),
            *prediction.assumptions,
        ),
    )
    if prediction.accuracy == Accuracy():
        prediction = prediction.with_(accuracy=recorded_accuracy(engine, prediction))
    judgments = list(judged(model, prediction))
    verdicts = tuple(
        replace(judge(its, gpu), parts=parts(its, gpu))
        if isinstance(its, Prediction)
        else GpuVerdict(gpu.name, gpu.usable_bytes, None, None, its)
        for its, gpu in judgments
    )
    pairs = [(its, gpu) for its, gpu in judgments if isinstance(its, Prediction)]
    alike = close_calls(prediction, [gpu for its, gpu in pairs if its is prediction])
    close = (alike, *(close_calls(its, [gpu]) for its, gpu in pairs if its is not prediction))
    prediction = prediction.with_(warnings=(*prediction.warnings, *filter(None, close)))
    if strategies.wraps(
        setup
    ):  # the band of a verdict is one GPU's, for want of another; the error of the number is not known
        prediction = prediction.with_(
            accuracy=Accuracy(evidence=strategies.UNRECORDED, device_error=prediction.accuracy.margin)
        )
    return withhold(prediction.with_(gpus=verdicts), tuple(not_modelled(prediction)))


def judged(model: Model, prediction: Prediction) -> Iterator[tuple[Prediction | str, Gpu]]:
    """The GPUs to judge, each with the prediction to judge it by, or why it cannot run the setup: the one
    that the setup names, else the common ones; none on a CPU.

    A GPU older than what is assumed where none is named has kernels of its own: the formula is asked again,
    where it has a rule; the trace (seconds) is not.
    """
    setup = prediction.setup
    if setup.device == "cpu":
        return
    if setup.gpu:
        yield prediction, find_gpu(setup.gpu)
        return
    from memplan.planner.answers.fit.kernels import cannot_run, older, with_its_kernels

    ruled = not refusals.lacks_a_rule(setup)
    spec = _spec(model) if ruled else None
    for gpu in common_gpus():
        if spec is not None and (why := cannot_run(spec, setup, gpu)) is not None:
            yield why, gpu
        elif not older(gpu):
            yield prediction, gpu
        elif prediction.engine == "formula" and ruled:
            yield with_its_kernels(model.spec(), prediction, gpu), gpu


def profile(
    model: ModelLike,
    setup: Setup | None = None,
    *,
    steps: int = 3,
    cap: int | None = None,
    snapshot: Path | None = None,
    **fields: Any,
) -> Measurement:
    """The same step measured on this machine's GPU (or device="cpu") with random weights; needs the extra
    `profile`.

    Runs in this process, whose CUDA context stays; `steps` are timed, `cap` limits the CUDA allocator in
    bytes, `snapshot` is where torch's memory snapshot goes. Out of memory is an outcome of the Measurement.
    """
    from memplan.profiler.measure import profile as measure

    found, complete = request(model, setup, **(fields if setup is not None else {"load": "random", **fields}))
    return measure(found.config, complete, steps=steps, cap=cap, snapshot=snapshot, name=found.name)


def trainer_callback(setup: Setup | None = None, **options: Any) -> MemoryCallback:
    """A transformers TrainerCallback that predicts before training, warns or stops what will not fit, and
    reconciles at the end.

    Options: `sequence_length`, `capacity` (bytes), `on_misfit` ("warn" or "stop"), `report`. Needs the extra
    `profile`.
    """
    from memplan.profiler.callback import MemoryCallback

    return MemoryCallback(setup, reconcile=reconcile, **options)


def reconcile(prediction: Prediction, measurement: Measurement) -> Reconciliation:
    """Prediction against measurement: error by tier, moment and component, and the unexplained remainder."""
    from memplan.validate.reconcile import reconcile as compare

    return compare(prediction, measurement)


def recorded_accuracy(engine: str, prediction: Prediction | None = None) -> Accuracy:
    """How far this engine was from the recorded runs that resemble the prediction, or from all; says so where
    no run was recorded.
    """
    from memplan.validate.evidence import accuracy_of_engine
    from memplan.validate.published_evidence import evidence

    return accuracy_of_engine(engine) if prediction is None else evidence(prediction)


def learned_positions(model: Model) -> int | None:
    """The longest sequence that learned positions allow; None where positions are computed or only the trace
    knows the family.
    """
    try:
        return model.spec().max_positions
    except UsageError:
        if model.config.get("model_type") is None:
            raise
        return None


def unknown_family(model: Model) -> bool:
    """Whether the formula has no family for the model, or none for a part of it (a vision tower), while
    transformers, installed with all that a trace runs, has its class.
    """
    from memplan.planner.inputs.families.table import FAMILIES, language_part

    tower = has_tower(model.config)
    kind = (model.config if tower else language_part(model.config)).get("model_type")
    if not isinstance(kind, str) or (kind in FAMILIES and not tower):
        return False
    from memplan.planner.run.extras import has_causal_model

    return has_causal_model(kind)


def traced_alone(model: Model, setup: Setup) -> bool:
    """Whether the trace is all that answers, and installed: the formula has no family for the model, or no
    rule for merging its adapter.
    """
    from memplan.planner.inputs.families.table import FAMILIES, language_part

    packed = setup.checkpoint_quant not in ("none", *NO_BITS)  # whose kernels no trace runs
    kind = language_part(model.config).get("model_type")
    if unknown_family(model):
        return not packed or kind not in FAMILIES
    from memplan.planner.formula.lacking import lacking

    if setup.adapter is not None or not lacking(model.spec(), setup):
        return False
    from memplan.planner.run.extras import has_causal_model

    return has_causal_model(str(kind))


def fit_by_trace(model: Model, setup: Setup, gpu: Gpu, **options: Any) -> Fit:
    """What fits a GPU, where the formula lacks the family, or what is asked of it: then of the method that is
    asked for alone, since each takes traces. Options are those of planner/answers/fit/traced.py.
    """
    from memplan.planner.run.extras import require

    if not unknown_family(model):
        options.setdefault("methods", ())
    refusals.refuse_tracing(setup, model.config.get("model_type"))
    require()
    from memplan.planner.answers.fit.traced import fit_by_trace as search

    error = recorded_accuracy("trace").margin
    missing = (*options.pop("not_modelled", ()), *pictures.uncounted(model.config, setup))
    return search(model.name, model.config, setup, gpu, error=error, not_modelled=missing, **options)
