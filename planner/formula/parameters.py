"""What is resident through a run: base weights, quantization constants, adapters, optimizer states, as
symbolic rows.

R rank; N x K a weight's rows and columns; n its elements. Gradients are not here: they are born in the
backward pass (activations.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from memplan.planner.formula.resident.adapters import R, adapters, no_target, waiting
from memplan.planner.formula.resident.constants import NESTED_BLOCK, constants
from memplan.planner.formula.resident.low_rank import any_projected, projected
from memplan.planner.formula.resident.parameter_spec import NEVER_QUANTIZED, ParameterSpec, packed_bytes
from memplan.planner.formula.resident.states import FLOOR_PAGED, elements_of, optimizer_of, states
from memplan.planner.formula.resident.tensors import WeightTensor, weight_tensors
from memplan.planner.formula.rows import SymbolicRow
from memplan.planner.formula.symbolic.expr import Expr, product, symbol, total
from memplan.planner.inputs import quantized
from memplan.planner.inputs.checkpoint_formats import BITSANDBYTES
from memplan.planner.inputs.companions import same_vocabulary, teacher_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import trained_head
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.upcasts import PASSES, is_expert, upcast

B, S = symbol("B"), symbol("S")
__all__ = ["B", "NESTED_BLOCK", "R", "S", "ParameterTable", "ParameterSpec"]
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA keeps of each adapter tensor: its score, and the moving averages of score and uncertainty."""


class ParameterTable:
    """Every resident parameter of a model under a setup, and what the walk asks of it."""

    def __init__(self, spec: ModelSpec, setup: Setup) -> None:
        self.spec, self.setup, self.method = spec, setup, METHODS[setup.method]
        self.checkpoint = quantized.packed(spec.config, setup)
        self.first_trained = self._first_trained()
        self.base = [
            projected(stored, tensor.shape, setup)
            for tensor in weight_tensors(spec)
            for stored in self._store(tensor)
        ]
        any_projected(self.base, setup)
        self.adapters = adapters(spec, setup)
        self.saved_modules = list(self._saved_modules())
        self.all = [
            *self.base,
            *(t for adapter in self.adapters.values() for t in adapter.tensors),
            *waiting(setup, self.adapters),
            *self.saved_modules,
        ]
        self.reference = self._second()
        teacher = teacher_of(setup)
        self.teacher = None if teacher is None else frozen(teacher, setup.with_(**UNQUANTIZED))
        if teacher is not None:
            same_vocabulary("teacher", str(setup.teacher), spec.vocab, teacher.vocab)
        self.by_name = {(t.name, t.trained): t for t in self.all}

    # ---- base weights --------------------------------------------------------------------------------------

    def _first_trained(self) -> int:
        """The first decoder layer that is trained: 0 where all are, the depth where none is."""
        if self.method.trains == "last_layers":
            count = self.setup.trainable_layers or 0
            if count > self.spec.depth:
                raise UsageError(
                    f"trainable_layers {count} is more than the {self.spec.depth} layers of this model"
                )
            return self.spec.depth - count
        return 0 if self.method.trains == "all" else self.spec.depth

    def stored_dtype(self, tensor: WeightTensor) -> str:
        """The dtype in which a base tensor is stored."""
        setup = self.setup
        if tensor.role == "buffer" or tensor.dtype is not None:
            return tensor.dtype or "float32"
        if (
            setup.quant_type != "none"
            and tensor.role in ("linear", "conv1d", "tower_linear")
            and self.spec.model_type not in NEVER_QUANTIZED
            and not self._left_out(tensor)
        ):
            return setup.quant_type
        if setup.quantize_experts and tensor.role == "expert" and is_expert(tensor.name, len(tensor.shape)):
            return setup.quant_type
        if self.checkpoint is not None and self.checkpoint.converts(tensor.role, tensor.name):
            return self.checkpoint.dtype
        if setup.kbit_prepare and setup.quant_type != "none":
            return "float32"
        if setup.trainable_dtype == "float32" and self.method.trains == "all":
            return "float32"
        modules = self.modules_of(tensor.name, tensor.module)
        kept = all if setup.upcast_modules in PASSES else any  # a pass that goes back casts what is shared
        wide = kept(upcast(module, setup.upcast_modules) for module in modules)
        return "float32" if wide else setup.weight_dtype

    def modules_of(self, name: str, module: str) -> tuple[str, ...]:
        """The modules that hold a tensor: of tied embeddings the output projection too."""
        tied = self.spec.tied and name == f"{self.spec.embedding_name}.weight"
        return (module, self.spec.head_name) if tied else (module,)

    def _left_out(self, tensor: WeightTensor) -> bool:
        """Whether the checkpoint's own list leaves this kind of module as it is."""
        if self.setup.checkpoint_quant != BITSANDBYTES:
            return False
        found = quantized.read(self.spec.config)
        return found is not None and any(quantized.skips(name, tensor.module) for name in found.skipped)

    def _store(self, tensor: WeightTensor) -> Iterator[ParameterSpec]:
        """A tensor's layers split into frozen and trained ones; tied tensors are stored once, under the name
        that owns them.
        """
        if tensor.tied_to is not None:
            return
        dtype = self.stored_dtype(tensor)
        if tensor.role == "buffer":
            yield ParameterSpec(
                tensor.name,
                tensor.shape,
                dtype,
                tensor.count,
                False,
                tensor.role,
                tensor.layers,
                logical=False,
            )
            return
        if not tensor.layers:
            trained = self.method.trains == "all" and not tensor.role.startswith("tower")
            yield ParameterSpec(tensor.name, tensor.shape, dtype, 1, trained, tensor.role)
            return
        for trained in (False, True):
            layers = tuple(i for i in tensor.layers if (i >= self.first_trained) == trained)
            if layers:
                upcast = "float32" if trained and self.setup.trainable_dtype == "float32" else dtype
                yield ParameterSpec(
                    tensor.name, tensor.shape, upcast, len(layers), trained, tensor.role, layers
                )

    # ---- what a method adds --------------------------------------------------------------------------------

    def _saved_modules(self) -> Iterator[ParameterSpec]:
        """PEFT's trained copies of whole modules (modules_to_save), in the dtype of the original."""
        if self.method.trains != "adapter" or "modules_to_save" not in self.method.reads:
            return
        tensors = list(weight_tensors(self.spec))
        for module in dict.fromkeys((*self.setup.modules_to_save, *trained_head(self.spec, self.setup))):
            found = [t for t in tensors if t.module == module or t.module.endswith("." + module)]
            if not found:
                raise no_target(module, {t.module.rpartition(".")[2] for t in tensors})
            for tensor in found:
                dtype = self.stored_dtype(tensor)
                if dtype in ("nf4", "fp4", "int8") or self._packed(dtype):
                    raise UsageError(
                        f"modules_to_save '{module}' is a quantized layer: the formula has no rule for "
                        "that; use --engine trace"
                    )
                dtype = "float32" if self.setup.trainable_dtype == "float32" else dtype
                if (
                    dtype == "float32"
                    and self.setup.adapter_dtype == "bfloat16"
                    and self.setup.trainable_dtype != "float32"
                ):
                    dtype = "bfloat16"  # cast with everything that is trained
                yield ParameterSpec(
                    f"{tensor.name} (trained copy)",
                    tensor.shape,
                    dtype,
                    tensor.count,
                    True,
                    tensor.role,
                    tensor.layers,
                )

    def _packed(self, dtype: str) -> bool:
        return self.checkpoint is not None and dtype == self.checkpoint.dtype

    def _second(self) -> ParameterTable | None:
        """The second model that a task's loss compares with, as it is resident; None where there is none."""
        return base_only(self) if self.setup.reference == "model" else None

    def seconds(self) -> Iterator[tuple[str, ParameterTable]]:
        """The models that are there beside the trained one, in the order in which they are loaded, each with
        what it is called.
        """
        for what, table in (("reference model", self.reference), ("teacher", self.teacher)):
            if table is not None:
                yield what, table

    # ---- counts --------------------------------------------------------------------------------------------

    @property
    def trained(self) -> list[ParameterSpec]:
        """The tensors that are trained, in the model's order."""
        return [stored for stored in self.all if stored.trained]

    def trainable_parameters(self) -> Expr:
        """Elements of all trained tensors."""
        return total(t.elements * t.count for t in self.trained)

    def total_parameters(self) -> Expr:
        """Elements of the base (tied once, 4-bit weights by their logical shape) and of what the method
        adds.
        """
        return total(t.elements * t.count for t in self.all if t.logical)

    def checkpoint_bytes(self) -> Expr:
        """Bytes of what training saves for later use: the adapter (and trained copies), or the whole
        model.
        """
        kept = self.trained if self.method.trains == "adapter" else [t for t in self.base if t.logical]
        return total(packed_bytes(t.elements, t.dtype) * t.count for t in kept)

    # ---- rows ----------------------------------------------------------------------------------------------

    def weight_rows(self) -> list[SymbolicRow]:
        """A row of bytes for each kept tensor, and for its quantization constants."""
        rows = []
        for stored in self.all:
            why = "trained" if stored.trained else "a buffer" if not stored.logical else "frozen"
            if stored.role in ("adapter", "prompt"):
                why = f"adapter of method {self.setup.method}"
            elif (
                self.setup.kbit_prepare
                and self.setup.quant_type != "none"
                and stored.dtype == "float32"
                and stored.logical
            ):
                why = "not quantized, upcast to fp32 by prepare_model_for_kbit_training"
            rows.append(
                SymbolicRow(
                    stored.name,
                    stored.shape,
                    stored.dtype,
                    stored.count,
                    packed_bytes(stored.elements, stored.dtype) * stored.count,
                    "weights",
                    why,
                )
            )
            rows += self.constants(stored)
        return rows

    def constants(self, stored: ParameterSpec) -> Iterator[SymbolicRow]:
        """Rows of what stands beside a quantized weight."""
        return constants(stored, self.setup, self.checkpoint)

    def second_rows(self) -> list[SymbolicRow]:
        """The weights of the models beside the trained one."""
        return [
            replace(row, name=f"{what}: {row.name}", why=f"the {what}")
            for what, table in self.seconds()
            for row in table.weight_rows()
        ]

    def state_rows(self) -> list[SymbolicRow]:
        """Optimizer states on the device; paged tensors are in `host_rows`."""
        rows = [row for stored in self.kept_by_optimizer for row in self.states_of(stored, paged=False)]
        rows += [
            SymbolicRow(
                f"{t.name} {what}",
                t.shape,
                t.dtype,
                t.count,
                product((*t.shape, itemsize(t.dtype), t.count)),
                "optimizer_states",
                "AdaLoRA's importance scores (peft 0.21 tuners/adalora/layer.py RankAllocator)",
            )
            for t in self.scored
            for what in IMPORTANCE
        ]
        return rows

    @property
    def kept_by_optimizer(self) -> list[ParameterSpec]:
        """The tensors that the optimizer has states of."""
        if OPTIMIZERS[self.setup.optimizer].of_frozen:
            return [stored for stored in self.all if stored.logical]
        return self.trained

    @property
    def scored(self) -> list[ParameterSpec]:
        """The adapter's tensors whose importance AdaLoRA keeps; none for another method."""
        if self.setup.method != "adalora" or not self.setup.importance_buffers:
            return []
        return [t for t in self.trained if t.role == "adapter" and not t.name.endswith("ranknum")]

    def host_rows(self) -> list[SymbolicRow]:
        """Optimizer states in managed memory, which torch does not count, or on the host."""
        return [row for stored in self.trained for row in self.states_of(stored, paged=True)]

    def states_of(self, stored: ParameterSpec, paged: bool) -> Iterator[SymbolicRow]:
        """The optimizer states of one tensor: on the device, or in managed memory or on the host."""
        optimizer = optimizer_of(OPTIMIZERS[self.setup.optimizer], stored)
        elements = elements_of(stored.low, self.setup) if optimizer.floors else None
        paged_out = optimizer.paged and elements is not None and elements >= FLOOR_PAGED
        on_host = paged_out or optimizer.on_host
        embeddings_32bit = self.setup.loop.embeddings_32bit and not optimizer.low_rank
        kept = [(*each, stored.low) for each in optimizer.states]
        kept += [(*each, stored) for each in optimizer.projects if stored.projector is not None]
        for state, rule, like in kept:
            for suffix, shape, dtype, pageable, size in states(rule, like, elements, embeddings_32bit):
                if (on_host and pageable) == paged:
                    yield SymbolicRow(
                        f"{stored.name} {state}{suffix}",
                        shape,
                        dtype,
                        stored.count,
                        product((*shape, itemsize(dtype), stored.count)),
                        "optimizer_states",
                        f"{optimizer.name}: {size} ({optimizer.source})",
                    )


UNQUANTIZED = {
    "quant_type": "none",
    "quantize_experts": False,
    "checkpoint_quant": "none",
    "upcast_modules": "none",
    "vocabulary": None,
}
"""How a companion is loaded, whatever the trained model's own loading (planner/run/companions.py)."""


def base_only(table: ParameterTable) -> ParameterTable:
    """The model alone, nothing of it trained and nothing beside it."""
    return frozen(table.spec, table.setup)


def frozen(spec: ModelSpec, setup: Setup) -> ParameterTable:
    """A model of which nothing is trained, with nothing beside it."""
    alone = {"modules_to_save": (), "reference": "none", "teacher": None, "task": "sft", "adapters": None}
    return ParameterTable(spec, setup.with_(method="inference", **alone))


def reference_of(table: ParameterTable) -> ParameterTable | None:
    """The tensors that a reference's forward computes with: the second model's, or the base's where the
    adapter is switched off; None where no reference runs.
    """
    return base_only(table) if table.setup.reference == "base" else table.reference
