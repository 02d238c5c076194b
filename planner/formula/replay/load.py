"""The events of building: weights read in transformers' order and quantized one by one, upcasts, adapters,
optimizer states that are there at once, the batch.

As `planner/run/{loading,quantize,adapters}.py` do it with the libraries; sources are named there. n elements,
N x K rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from memplan.planner.formula.parameters import NESTED_BLOCK, ParameterTable
from memplan.planner.formula.replay.dora import DoraNorms
from memplan.planner.formula.replay.events import Events
from memplan.planner.formula.replay.experts import Experts, end_of
from memplan.planner.formula.replay.optimizer import states
from memplan.planner.formula.replay.orders import Each, each_of, in_order, natural
from memplan.planner.formula.resident.loading import EXPERTS_APART
from memplan.planner.formula.resident.parameter_spec import ParameterSpec, packed_bytes
from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.inputs.spec import Moe
from memplan.planner.tables.dtypes import itemsize
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.tables.upcasts import PASSES, returns, routes

MOST_LAYERS = 512
"""Layers that a run writes out, four times what any published model has: more would take minutes."""
QUANTIZED = ("nf4", "fp4", "int8")
_ELEMENT = {"nf4": 1, "fp4": 1, "int8": 2}
"""Half bytes that transformers' warm-up counts for an element (planner/run/loading.py _ELEMENT)."""
_CODE = 16 * 4  # bytes of bitsandbytes' QuantState.code
_NESTED_CODE = 256 * 4  # bytes of the nested code
_DESCRIPTION = 160  # bytes of the JSON beside a packed weight, more or less: one block of the allocator

Values = Mapping[str, int]


class Load:
    """Writes the events of one build into `out`."""

    def __init__(self, parameter_table: ParameterTable, values: Values, out: Events, layers_of: Any) -> None:
        self.parameter_table, self.values = parameter_table, values
        self.setup, self.spec = parameter_table.setup, parameter_table.spec
        self.out, self.layers_of = out, layers_of
        self.own = {tensor.name: tensor.dtype for tensor in weight_tensors(parameter_table.spec)}
        self.held: dict[tuple[int, int], int] = {}  # (kind by identity, layer) -> id
        self.read: dict[int, ParameterSpec] = {}
        if parameter_table.spec.resized_from is not None:
            from memplan.planner.formula.replay.resizing import as_read

            self.read = as_read(parameter_table.spec, parameter_table.base)
        self.experts: Experts | None = None
        self.adapted = 0  # where among the events adapters begin
        self._elements: dict[int, int] = {}
        self._packed_bytes: dict[tuple[int, str], int] = {}

    def run(self) -> None:
        """Write the events of the whole load, in the order in which the stack makes them."""
        self.weights()
        self._prepare()
        self.adapted = len(self.out.events)
        for _ in range(self.setup.adapters or 1):
            self._adapters()
            if self.setup.adapters:
                from memplan.planner.formula.replay.adapter_files import read_file

                read_file(self.out, self.parameter_table, self.layers_of, self.elements)
        self._cast_trained()
        for _, beside in self.parameter_table.seconds():
            Load(beside, self.values, self.out, self.layers_of).weights()
        if OPTIMIZERS[self.setup.optimizer].at_once and METHODS[self.setup.method].trains != "nothing":
            states(self.parameter_table, self.values, self.out, self.layers_of)

    def elements(self, stored: ParameterSpec) -> int:
        """Elements of a tensor at the run's rank."""
        known = self._elements.get(id(stored))
        if known is None:
            known = self._elements[id(stored)] = stored.elements.evaluate(self.values)
        return known

    # ---- the checkpoint ------------------------------------------------------------------------------------

    def arrives(self, stored: ParameterSpec) -> str:
        """The dtype in which a base tensor comes from the checkpoint."""
        return self.own.get(stored.name) or self.setup.weight_dtype

    def weights(self) -> None:
        """The checkpoint's tensors, in the order in which they are read."""
        base = [self.read.get(id(stored), stored) for stored in self.parameter_table.base]
        kinds = [stored for stored in base if stored.role != "buffer"]
        if self.setup.load == "pretrained":
            if self.setup.device == "cuda" and not self.setup.quantize_experts:  # axolotl leaves it out then
                self.out.about = ("warm-up of the allocator", (), "uint8", "")
                self.out.through(self._warm_up(kinds))
            for each in sorted(each_of(kinds), key=partial(natural, self.spec.model_type)):
                self._read(each)
            for stored, layer in each_of(s for s in base if s.role == "buffer"):
                self.keep(stored, layer, stored.dtype)
        else:  # quantized layers first, then module by module (planner/run/loading.py _made_here)
            for each in sorted(in_order(base), key=lambda each: not _is_layer(each[0])):
                if each[0].role == "buffer":
                    self.keep(*each, each[0].dtype)
                else:
                    self._read(each)
        if self.read:
            from memplan.planner.formula.replay.resizing import resize

            resize(self)

    def _warm_up(self, kinds: Sequence[ParameterSpec]) -> int:
        """Bytes of the block that stays reserved: those of all that will be loaded."""
        halves = sum(
            self.elements(s) * s.count * (_ELEMENT.get(s.dtype) or 2 * itemsize(self.arrives(s)))
            for s in kinds
            if not self._as_stored(s)
        )
        halves += 2 * sum(self._stored_bytes(s) * s.count for s in kinds if self._as_stored(s))
        return halves // 4 * 2

    def _stored_bytes(self, stored: ParameterSpec) -> int:
        """Bytes of one weight and its constants as the checkpoint has them."""
        beside = (
            row.size.evaluate(self.values) // row.count for row in self.parameter_table.constants(stored)
        )
        return packed_bytes(self.elements(stored), stored.dtype).evaluate(self.values) + sum(beside)

    def keep(self, stored: ParameterSpec, layer: int, dtype: str) -> None:
        """A tensor that stays, in the dtype in which it is made."""
        kind = id(stored), dtype  # the same in every layer
        nbytes = self._packed_bytes.get(kind)
        if nbytes is None:
            nbytes = packed_bytes(self.elements(stored), dtype).evaluate(self.values)
            self._packed_bytes[kind] = nbytes
        self.out.about = (stored.name, stored.shape, dtype, "")
        self.held[id(stored), layer] = self.out.alloc(nbytes)

    def _read(self, each: Each) -> None:
        stored, layer = each
        if stored.dtype in QUANTIZED and self.setup.checkpoint_quant != "none":
            self._packed(stored, layer)
        elif self._as_stored(stored):
            self.keep(stored, layer, stored.dtype)
            self._beside(stored)
        elif stored.dtype in QUANTIZED and stored.role != "expert":
            self._quantize(stored, layer)
        elif stored.dtype in QUANTIZED:
            self._quantize_expert(stored, layer)
        elif self._apart(stored):
            self._merge(stored, layer)
        else:
            self.keep(stored, layer, self.arrives(stored))

    def _as_stored(self, stored: ParameterSpec) -> bool:
        checkpoint = self.parameter_table.checkpoint
        return checkpoint is not None and stored.dtype == checkpoint.dtype and stored.logical

    def _beside(self, stored: ParameterSpec) -> None:
        """The constants of a weight that is read as the checkpoint has it."""
        for row in self.parameter_table.constants(stored):
            self.out.about = (row.name, row.shape, row.dtype, "")
            self.out.alloc(row.size.evaluate(self.values) // row.count)

    def _packed(self, stored: ParameterSpec, layer: int) -> None:
        """A weight that bitsandbytes quantized before: its tensors arrive as they are kept, and a description
        in JSON that goes once it is read (transformers 5.24 integrations/bitsandbytes.py Bnb4bitDeserialize,
        Bnb8bitDeserialize; bitsandbytes 0.50 functional.py QuantState.from_dict).
        """
        self.keep(stored, layer, stored.dtype)
        self.out.about = (stored.name, (_DESCRIPTION,), "uint8", " quantization state")
        description = self.out.alloc(_DESCRIPTION)
        self._beside(stored)
        self.out.free(description)

    def _quantize_expert(self, stored: ParameterSpec, layer: int) -> None:
        """All experts' weights at once, merged where the checkpoint has them apart; the cache then goes."""
        if self._apart(stored):
            self._merge(stored, layer)
            self._quantize(stored, layer, self.held.pop((id(stored), layer)))
        else:
            self._quantize(stored, layer)
        if self.setup.load == "pretrained":
            self.out.empty_cache()

    def _quantize(self, stored: ParameterSpec, layer: int, read: int | None = None) -> None:
        out, n = self.out, self.elements(stored)
        out.about = (stored.name, stored.shape, self.setup.weight_dtype, "")
        read = out.alloc(n * itemsize(self.setup.weight_dtype)) if read is None else read
        if stored.dtype == "int8":
            made = (
                [out.alloc(n * itemsize(self.setup.weight_dtype))] if self.setup.load == "pretrained" else []
            )
            if self.setup.weight_dtype != "float16":
                made.append(out.alloc(n * 2))
            out.about = (stored.name, (stored.shape[0],), "float32", " scales")
            out.alloc(stored.shape[0] * 4)  # type: ignore[operator,arg-type]
            out.about = (stored.name, stored.shape, stored.dtype, "")
            self.held[id(stored), layer] = out.alloc(n)
            out.free(*reversed(made), read)
            return
        blocks = -(-n // self.setup.quant_block)
        constants = (stored.name, (blocks,), "float32", " quantization constants")
        out.about = constants
        absmax = out.alloc(blocks * 4)
        out.about = (stored.name, stored.shape, stored.dtype, "")
        self.held[id(stored), layer] = out.alloc(-(-n // 2))
        out.about = constants
        out.alloc(_CODE)
        if self.setup.double_quant:
            out.alloc(4)
            centered = out.alloc(blocks * 4)
            out.alloc(-(-blocks // NESTED_BLOCK) * 4)
            out.alloc(blocks)
            out.alloc(_NESTED_CODE)
            out.free(centered, absmax)
        out.free(read)

    def _apart(self, stored: ParameterSpec) -> bool:
        return (
            stored.role == "expert"
            and self.setup.load == "pretrained"
            and self.spec.model_type in EXPERTS_APART
        )

    def _merge(self, stored: ParameterSpec, layer: int) -> None:
        """A parameter of all experts, from what the checkpoint has of each."""
        if self.experts is None:
            count = next(layer.mlp.experts for _, layer in self.spec.layers if isinstance(layer.mlp, Moe))
            threaded = self.setup.quant_type == "none" or self.setup.checkpoint_quant != "none"
            self.experts = Experts(self.out, self.spec.model_type, count, threaded=threaded)
        nbytes = {
            end_of(each): self.elements(each) * itemsize(self.arrives(each))
            for each in self.parameter_table.base
            if each.role == "expert"
        }
        self.out.about = (stored.name, stored.shape, self.arrives(stored), "")
        self.held[id(stored), layer] = self.experts.merge(stored, layer, nbytes)

    # ---- what a stack does to them -------------------------------------------------------------------------

    def _prepare(self) -> None:
        """What is not quantized goes to fp32 tensor by tensor, and the cache goes (peft 0.20
        prepare_model_for_kbit_training).
        """
        setup = self.setup
        kbit = setup.kbit_prepare and setup.quant_type != "none"
        if setup.upcast_modules in PASSES and not kbit:
            self._there_and_back()
            return
        if kbit or setup.upcast_modules != "none":
            for stored, layer in in_order(self.parameter_table.base):
                upcast = stored.role != "buffer" and stored.dtype == "float32" and not stored.trained
                if upcast and self.arrives(stored) != "float32":
                    self._recast(stored, layer)
        if kbit:
            self.out.empty_cache()

    def _there_and_back(self) -> None:
        """axolotl's passes for adapters: norms, routers and embeddings to fp32; all that is not quantized
        too; norms and embeddings back (planner/tables/upcasts.py).
        """
        plain = [
            (stored, layer, self.parameter_table.modules_of(stored.name, stored.name.rpartition(".")[0]))
            for stored, layer in in_order(self.parameter_table.base)
            if stored.logical and stored.dtype not in QUANTIZED and self.arrives(stored) != "float32"
        ]
        first = [each for each in plain if any(returns(m) or routes(m) for m in each[2])]
        for stored, layer, _ in first:
            self._recast(stored, layer, "float32")
        if self.setup.upcast_modules == "unquantized":
            for each in plain:
                if each not in first:
                    self._recast(*each[:2], "float32")
            self.out.empty_cache()
        for stored, layer, modules in first:
            if any(returns(module) for module in modules):
                self._recast(stored, layer)

    def _recast(self, stored: ParameterSpec, layer: int, dtype: str | None = None) -> None:
        old = self.held[id(stored), layer]
        self.keep(stored, layer, dtype or stored.dtype)
        self.out.free(old)

    def _adapters(self) -> None:
        """PEFT makes every tensor, then casts those that are trained in fp32, one after the other."""
        tensors = [t for adapter in self.parameter_table.adapters.values() for t in adapter.tensors]
        ordered = in_order([(t, self.layers_of(t)) for t in tensors])
        # experts' modules have no `weight`, so peft leaves what it adds to them on the host, to the end
        late = {id(t) for a in self.parameter_table.adapters.values() if a.experts > 1 for t in a.tensors}
        every = [each for each in ordered if id(each[0]) not in late]
        first, norms = self._first_dtypes(), DoraNorms(self)
        for stored, layer in every:
            dtype = first.get(id(stored), stored.dtype)
            if norms.takes(stored):
                norms.write(stored, layer, dtype)
            else:
                self.keep(stored, layer, dtype)
        copies = [*each_of(self.parameter_table.saved_modules)]
        for stored, layer in copies:
            self.keep(stored, layer, self._copied(stored))
        for stored, layer in copies:
            if self._copied(stored) != stored.dtype:
                self._recast(stored, layer)
        for stored, layer in every:
            if stored.dtype != first.get(id(stored), stored.dtype):
                self._recast(stored, layer)
        for stored, layer in ordered:
            if id(stored) in late:
                self.keep(stored, layer, stored.dtype)

    def _first_dtypes(self) -> dict[int, str]:
        """In which dtype PEFT makes each adapter tensor, by identity: the base's own, a 4-bit layer's compute
        dtype, float32 beside int8 (peft 0.21 tuners/tuners_utils.py _get_base_layer_device_and_dtype); the
        model's where no one layer is the base. Bottlenecks are ours, and made as they are.
        """
        if self.setup.method == "adapter":
            return {}
        base = {stored.name: stored.dtype for stored in self.parameter_table.base}
        of_base = {**dict.fromkeys(("nf4", "fp4"), self.setup.compute_dtype), "int8": "float32"}
        found = {}
        for adapter in self.parameter_table.adapters.values():
            for tensor in adapter.tensors:
                module = tensor.name.rpartition(".")[0]
                dtype = base.get(f"{module}.weight", base.get(module, self.setup.weight_dtype))
                found[id(tensor)] = of_base.get(dtype, dtype)
        return found

    def _copied(self, stored: ParameterSpec) -> str:
        """The dtype of a module's trained copy before it is cast: the module's own (peft 0.21 utils/other.py
        ModulesToSaveWrapper copies it).
        """
        name, spec = stored.name.removesuffix(" (trained copy)"), self.spec
        if spec.tied and name == f"{spec.head_name}.weight":
            name = f"{spec.embedding_name}.weight"
        return next((base.dtype for base in self.parameter_table.base if base.name == name), stored.dtype)

    def _cast_trained(self) -> None:
        """Trained weights in fp32 where the stack wants them so: each is cast in turn."""
        for stored, layer in in_order(self.parameter_table.base):
            if stored.trained and stored.dtype == "float32" and self.arrives(stored) != "float32":
                self._recast(stored, layer)


def _is_layer(stored: ParameterSpec) -> bool:
    """Whether this is the weight of a linear layer that is quantized; experts are tensors of a module."""
    return stored.dtype in QUANTIZED and stored.role != "expert"
