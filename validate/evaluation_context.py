"""The context that checks work in: predictions asked for once, models and GPUs by name, and recorded
measurements.

Checks never call an engine themselves, so a claim's verdict depends on nothing but its parts and what this
object answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memplan.planner.formula.sharding.refusals import refuse_sharding, refuse_tracing
from memplan.planner.inputs import quantized
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.validate.engines import Engine, Missing, by_formula, by_trace, without_replay

if TYPE_CHECKING:
    from memplan.planner.inputs.models import Model
    from memplan.planner.inputs.spec import ModelSpec
    from memplan.planner.tables.gpus import Gpu
    from memplan.profiler.record import Measurement


class EvaluationContext:
    """Predictions by (model, setup, engine), each made once."""

    def __init__(
        self,
        engine: Engine = by_formula,
        *,
        trace: Engine = by_trace,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        records: Sequence[Measurement] = (),
    ) -> None:
        self._engines: dict[str, Engine] = {"": engine, "formula": engine, "trace": trace}
        light = without_replay if engine is by_formula else engine
        self._light: dict[str, Engine] = {"": light, "formula": light, "trace": trace}
        self._own_models = dict(models or {})
        self._models: dict[str, Model] = {}
        self._predictions: dict[str, Prediction] = {}
        self.records = tuple(records)

    def model(self, name: str) -> Model:
        """A model by the file's own [models.NAME], a catalog alias or a path. Raises UsageError for an
        unknown name.
        """
        if name not in self._models:
            from memplan.planner.inputs.models import find

            own = self._own_models.get(name)
            self._models[name] = find(name) if own is None else find(dict(own))
        return self._models[name]

    def spec(self, name: str) -> ModelSpec:
        """The model of that name as a ModelSpec. Raises UsageError where the formula has no rule for it."""
        return self.model(name).spec()

    def setup(self, name: str, fields: Mapping[str, Any]) -> Setup:
        """A Setup of these fields, resolved with the model's maximum sequence length."""
        try:
            limit = self.spec(name).max_positions
        except UsageError:
            limit = None  # the formula has no rule: the trace reads the config itself
        given = {**fields, "gpu": None} if fields.get("gpu") is None else dict(fields)
        checkpoint = quantized.fields(self.model(name).config, given)
        return resolve(given, checkpoint=checkpoint, max_positions=limit)

    def gpu(self, name: str) -> Gpu:
        """The GPU of that name. Raises UsageError where there is none."""
        from memplan.planner.tables.gpus import find_gpu

        return find_gpu(name)

    def predict(
        self, name: str, fields: Mapping[str, Any], engine: str = "", *, replayed: bool = True
    ) -> Prediction:
        """What the engine predicts; where the formula has no rule for the model, the trace is asked. Whoever
        asks for tensors alone does not need it `replayed` through the allocator.
        """
        key = json.dumps([name, fields, engine], sort_keys=True, default=str)
        if key not in self._predictions and not replayed:
            key = f"not replayed {key}"
        if key not in self._predictions:
            self._predictions[key] = self._predict(name, fields, engine, replayed)
        return self._predictions[key]

    def _predict(self, name: str, fields: Mapping[str, Any], engine: str, replayed: bool) -> Prediction:
        model = self.model(name)
        setup = self.setup(name, fields)
        if setup.adapter is not None and engine != "trace":
            if engine == "formula":
                kind = setup.adapter.get("peft_type")
                raise Missing("the formula has no rule for PEFT type {kind}: the trace runs it", kind=kind)
            engine = "trace"  # a PEFT adapter file implies the trace
        try:
            refuse_sharding(setup)
            if engine == "trace":
                refuse_tracing(setup)
            prediction = self._asked(model, setup, engine, self._engines if replayed else self._light)
        except UsageError as error:
            raise Missing(f"{name}: {error}") from None
        if prediction.trainable_parameters == 0 and METHODS[setup.method].trains != "nothing":
            raise Missing(
                "the {engine} engine counts no trainable parameter for method {method}: it has no rule for "
                "it",
                engine=prediction.engine,
                method=setup.method,
            )
        return prediction

    def _asked(self, model: Model, setup: Setup, engine: str, engines: Mapping[str, Engine]) -> Prediction:
        """One engine's prediction; where none was named and the formula has no rule, the trace's."""
        try:
            return engines[engine](model, setup)
        except UsageError:
            if engine:
                raise
            refuse_tracing(setup)
            return engines["trace"](model, setup)
