"""A transformers TrainerCallback: predicts before training starts, warns or stops where it will not fit, then
compares with what was.

    from memplan import trainer_callback trainer = Trainer(model, args, train_dataset=data,
    callbacks=[trainer_callback(sequence_length=2048, on_misfit="stop")])

The reconciler is handed in: this package does not know `validate`. Torch and transformers are those of the
training itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from memplan.planner.answers.verdict import judge, what_it_takes
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.run.renamed import renamed
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.units import gib
from memplan.profiler.environment import describe
from memplan.profiler.history import highest, levels
from memplan.profiler.record import MeasuredMoment, MeasuredPeak, Measurement
from memplan.profiler.recorders import CpuRecorder, CudaRecorder

LOG = logging.getLogger("memplan")
WATCHED_STEPS = (
    3  # the CPU's allocator is watched this long; CUDA's counters cost nothing and are read to the end
)
_LOOKED_AT = 1000


class DoesNotFit(UsageError):
    """Training was stopped before its first step: the prediction is above what the device has."""

    exit_code = 1


class MemoryCallback(TrainerCallback):
    """Give one to `Trainer(callbacks=[...])`.

    setup: how the model is trained; None reads it off the TrainingArguments and the model. sequence_length:
    the longest row in tokens; None looks at the first rows of the dataset. capacity: bytes of the device;
    None asks CUDA. on_misfit: "warn" logs, "stop" raises DoesNotFit before the first step. predict: (config,
    setup, name) -> Prediction, by default the trace engine. reconcile: (Prediction, Measurement) -> anything,
    kept as `reconciliation`. report: where the sentences go.
    """

    def __init__(
        self,
        setup: Setup | None = None,
        *,
        sequence_length: int | None = None,
        capacity: int | None = None,
        on_misfit: Literal["warn", "stop"] = "warn",
        predict: Callable[[Any, Setup, str], Prediction] | None = None,
        reconcile: Callable[[Prediction, Measurement], Any] | None = None,
        report: Callable[[str], None] = LOG.warning,
    ) -> None:
        if on_misfit not in ("warn", "stop"):
            raise UsageError(f"on_misfit is {on_misfit!r}, expected 'warn' or 'stop'")
        self.setup = setup
        self.prediction: Prediction | None = None
        self.measurement: Measurement | None = None
        self.reconciliation: Any = None
        self._sequence_length, self._capacity, self._on_misfit = sequence_length, capacity, on_misfit
        self._predict, self._reconcile, self._report = predict, reconcile, report
        self._recorder: CpuRecorder | CudaRecorder | None = None
        self._held = 0  # CPU: bytes of the model, which was there before the recorder
        self._config: dict[str, Any] = {}
        self._name = "model"
        self._peaks: dict[str, dict[str, int]] = {}
        self._steps = 0
        self._times: list[float] = []

    # -- what the Trainer calls ------------------------------------------------------------------------------

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None, **_: Any
    ) -> None:
        """Read the setup, predict, warn or stop where it does not fit, and start recording."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config, self._name = base.config.to_dict(), type(base).__name__
        device: Literal["cuda", "cpu"] = "cuda" if args.device.type == "cuda" else "cpu"
        if self.setup is None:
            length = self._sequence_length or longest_row(train_dataloader)
            self.setup = setup_of(args, model, length, device)
        try:
            with torch.random.fork_rng(
                devices=[]
            ):  # a prediction must not change the training's random numbers
                self.prediction = (self._predict or _trace)(self._config, self.setup, self._name)
        except UsageError as error:
            self._report(f"memplan cannot predict this training: {error}")
        self._judge(device)
        self._recorder = CudaRecorder() if device == "cuda" else CpuRecorder()
        if device == "cpu":
            self._held = _bytes_of(model)
            self._recorder.start()
        self._recorder.reset_peaks()
        self._time = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start a step: its forward and backward are one interval."""
        self._edge("begin")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End of backward."""
        self._edge("backward")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End of the optimizer step."""
        self._edge("optimizer_step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the step time; on a CPU, stop recording after a few steps."""
        self._steps += 1
        now = time.perf_counter()
        self._times.append(now - self._time)
        self._time = now
        if self._steps == WATCHED_STEPS and isinstance(self._recorder, CpuRecorder):
            self._stop_watching()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Build the measurement, report it beside the prediction, and reconcile the two."""
        if self._recorder is None or self.setup is None:
            return
        if isinstance(self._recorder, CpuRecorder):
            self._stop_watching()
        self.measurement = self._measured()
        self._recorder = None
        if self.prediction is None or self.measurement.peak is None:
            return
        predicted, measured = self.prediction.peak.allocated_bytes, self.measurement.peak.allocated_bytes
        error = f" ({(predicted - measured) / measured:+.2%})" if measured else ""
        self._report(f"memplan: predicted {gib(predicted)} allocated, measured {gib(measured)}{error}")
        if self._reconcile is not None:
            self.reconciliation = self._reconcile(self.prediction, self.measurement)

    # -- how it does it --------------------------------------------------------------------------------------

    def _judge(self, device: str) -> None:
        if self.prediction is None:
            return
        capacity = self._capacity
        if capacity is None and device == "cuda":
            free, _ = torch.cuda.mem_get_info()
            capacity = (
                free + torch.cuda.memory_reserved() + self.prediction.peak.context_bytes
            )  # the context is taken already
        needed = (
            self.prediction.peak.device_bytes if device == "cuda" else self.prediction.peak.allocated_bytes
        )
        if capacity is None:
            self._report(f"memplan: this training will need about {gib(needed)}")
            return
        word: str = "fits" if needed <= capacity else "no"
        needs = f"it needs about {gib(needed)} of the {gib(capacity)} available"
        if device == "cuda":
            there = Gpu("this GPU", capacity, self.prediction.peak.context_bytes, "free now", "predicted")
            verdict = judge(self.prediction, there)
            if verdict.verdict is None:
                self._report(f"memplan: this training needs at least {gib(needed)}; {verdict.why}")
                return
            word = verdict.verdict
            if word == "tight":
                takes = what_it_takes(self.prediction, there)
                self._report(f"memplan: this training is tight: {needs}; {takes}")
                return
        if word == "fits":
            self._report(f"memplan: this training fits: {needs}")
            return
        sentence = f"this training needs about {gib(needed)}; only {gib(capacity)} available"
        if self._on_misfit == "stop":
            raise DoesNotFit(f"{sentence}: stopped before the first step")
        self._report(f"memplan: {sentence}: it does not fit")

    def _edge(self, name: str) -> None:
        """The end of one part of a step: its counters, and the next part's fresh peak."""
        recorder = self._recorder
        if recorder is None:
            return
        if isinstance(recorder, CpuRecorder):
            recorder.mark(f"{self._steps} {name}")
            return
        counters = recorder.counters()
        if name != "begin" and counters is not None:
            before = self._peaks.get(name)
            if before is None or counters["allocated_peak"] > before["allocated_peak"]:
                self._peaks[name] = counters
        recorder.reset_peaks()

    def _stop_watching(self) -> None:
        """CPU: read the allocator's events, once."""
        recorder = self._recorder
        assert isinstance(recorder, CpuRecorder)
        history = recorder.stop()
        running = levels(history.events)
        marks = [(mark.label.split()[-1], mark.position) for mark in history.marks]
        for (_, begin), (name, end) in zip(marks, marks[1:], strict=False):
            if name != "begin":
                level = self._held + highest(running, begin, end)[0]
                if level > self._peaks.get(name, {}).get("allocated_peak", -1):
                    self._peaks[name] = {"allocated_peak": level}

    def _measured(self) -> Measurement:
        assert self.setup is not None
        peaks = {name: self._peaks[name] for name in ("backward", "optimizer_step") if name in self._peaks}
        moments = tuple(
            MeasuredMoment(name, row["allocated_peak"], row.get("reserved_peak"))
            for name, row in peaks.items()
        )
        peak = None
        if moments:
            top = max(moments, key=lambda moment: moment.allocated_bytes)
            reserved = [moment.reserved_bytes for moment in moments if moment.reserved_bytes is not None]
            peak = MeasuredPeak(top.name, top.allocated_bytes, max(reserved) if reserved else None)
        return Measurement(
            case=f"{self._name} in the Trainer",
            model={"name": self._name, "architecture": self._name, "config": self._config},
            setup=self.setup,
            environment=describe(self.setup.device),
            outcome="ok" if peak else "error",
            steps=max(1, self._steps),
            peak=peak,
            step_peak=peak,
            moments=moments,
            step_seconds=tuple(round(t, 6) for t in self._times),
            warnings=("forward and backward are one interval here, recorded as backward",),
        )


def _trace(config: Any, setup: Setup, name: str) -> Prediction:
    from memplan.planner.trace.engine import trace

    return trace(config, setup, name)


def setup_of(args: Any, model: Any, sequence_length: int, device: Literal["cuda", "cpu"]) -> Setup:
    """The Setup that TrainingArguments and a model amount to. Raises UsageError for a value that has no
    counterpart.
    """
    from memplan.planner.run.adapters import is_adapter

    adapters = getattr(model, "peft_config", None)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    dtype = next(
        (
            str(p.dtype)[6:]
            for name, p in model.named_parameters()
            if p.is_floating_point() and not is_adapter(name)
        ),
        "float32",
    )
    fields: dict[str, Any] = {
        "recipe": "hf",
        "load": "random",
        "device": device,
        "method": "full",
        "micro_batch": args.per_device_train_batch_size,
        "sequence_length": sequence_length,
        "gradient_accumulation": args.gradient_accumulation_steps,
        "weight_dtype": dtype,
        "autocast": "bfloat16" if args.bf16 else "float16" if args.fp16 else "none",
        "optimizer": getattr(args.optim, "value", args.optim),
        "checkpointing": _checkpointing(args),
        "attention": getattr(base.config, "_attn_implementation", None) or "sdpa",
    }
    if adapters:
        adapter = next(iter(adapters.values())).to_dict()
        plain = {key: _plain(value) for key, value in adapter.items() if value is not None}
        fields.update(method="qlora" if getattr(base, "is_loaded_in_4bit", False) else "lora", adapter=plain)
        trained = {str(p.dtype)[6:] for p in model.parameters() if p.requires_grad}
        fields["adapter_dtype"] = trained.pop() if len(trained) == 1 else "float32"
    return resolve(fields, origin="Trainer")


def _checkpointing(args: Any) -> str:
    if not renamed(args, "activation_checkpointing"):
        return "none"
    options = renamed(args, "activation_checkpointing_kwargs") or {}
    return "reentrant" if options.get("use_reentrant") else "non_reentrant"


def _plain(value: Any) -> Any:
    """JSON types only: sets become sorted lists, enumerations their values."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return getattr(value, "value", value)


def longest_row(dataloader: Any) -> int:
    """Tokens of the longest of the first rows. Raises UsageError where the dataset does not say:
    `sequence_length` must then be given.
    """
    dataset: Any = getattr(dataloader, "dataset", None)
    try:
        rows = [len(dataset[index]["input_ids"]) for index in range(min(len(dataset), _LOOKED_AT))]
    except (TypeError, KeyError, IndexError):
        rows = []
    if not rows:
        raise UsageError("the dataset does not tell its rows' length: give sequence_length=N to the callback")
    return max(rows)


def _bytes_of(model: Any) -> int:
    """Bytes of the storages that a model's parameters and buffers hold, each once."""
    from memplan.planner.run.owners import weights

    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in weights(model)
    }
    return sum(storages.values())
