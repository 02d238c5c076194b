"""LoRA merged into its base after training, on a tape of its own: linear layer by linear layer, as peft 0.21
merge_and_unload walks them; what `planner/run/merging.py` runs. N rows (outputs), K columns, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable

from memplan.planner.formula.forward.context import Device
from memplan.planner.formula.forward.decoder import Guard
from memplan.planner.formula.parameters import NESTED_BLOCK, ParameterTable
from memplan.planner.formula.resident.adapters import expert_targets
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import ceil_div, product
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Linear, ModelSpec
from memplan.planner.tables.components import MERGE

MERGED = ("lora", "qlora", "rslora", "lora+")
"""Methods whose update is lora_B @ lora_A times a number (peft 0.21 tuners/lora/layer.py get_delta_weight),
and whose adapters the optimizer holds until the end; lora-fa's frozen lora_A go with each merged layer.
"""


def lacking(spec: ModelSpec, setup: Setup) -> str:
    """What of a setup's merge the formula has no rule for, "" where it has one."""
    if setup.method not in MERGED:
        return f"merging an adapter of method {setup.method}"
    if expert_targets(spec, setup):
        return "merging adapters of experts"
    return ""


def run_merge(
    parameter_table: ParameterTable, device: Device, guard: Guard, rank: ShardingPlan | None = None
) -> Tape:
    """The log of merging every adapter, its one moment MERGE; of a setup that `lacking` lets through."""
    return _Merge(parameter_table, device, guard, rank or ShardingPlan(parameter_table)).run()


class _Merge(Step):
    def run(self) -> Tape:
        t, spec = self.tape, self.parameter_table.spec
        self._residents()
        self._left_by_training()
        t.mark(MERGE)
        self._merge(spec.projections)
        key = 0
        for block, times in self.decoder.blocks():
            with t.repeat(times):
                for step in block:
                    with self.w.at_layer(key, step.trained):
                        self._merge(step.layer.linears(), f"{step.layer.prefix}.*.")
                    key += 1
        self._merge([spec.head])
        t.end_forward()
        t.mark("end")
        return t

    def _merge(self, layers: Iterable[Linear], prefix: str = "") -> None:
        """Those of these layers that have an adapter, one after another."""
        for layer in layers:
            if layer.name in self.parameter_table.adapters:
                with self.tape.inside(f"{prefix}{layer.name} "):
                    self._layer(layer, prefix)

    def _layer(self, layer: Linear, prefix: str) -> None:
        """A 16-bit weight is added to in place. A 4-bit one is dequantized, the sum goes to the host and
        comes back to be quantized (peft 0.21 tuners/lora/layer.py and bnb.py merge).
        """
        t, w = self.tape, self.w
        weight = w.weight(f"{prefix}{layer.name}.weight")
        dtype = w.weight(f"{prefix}{layer.name}.lora_B").dtype
        shape = (layer.out_features, layer.in_features)
        if weight.dtype not in ("nf4", "fp4"):
            update = self._update(shape, dtype)
            del update
            return
        dense = self._dequantized(shape)
        update = self._update(shape, dtype)
        both = dense.dtype if dense.dtype == update.dtype else "float32"
        summed = t.alloc("weight + B A", shape, both, "the merged weight")
        back = t.alloc("weight + B A from the host", shape, both, "to be quantized on the GPU")
        made = self._quantized(shape)
        del back, made, summed, update, dense

    def _update(self, shape: tuple[int, int], dtype: str) -> Tensor:
        """lora_B @ lora_A times the scaling, N x K."""
        t = self.tape
        plain = t.alloc("B A", shape, dtype, "lora_B @ lora_A")
        scaled = t.alloc("scaled B A", shape, dtype, "the update of the weight")
        del plain
        return scaled

    def _constants(self, shape: tuple[int, int]) -> Tensor:
        blocks = ceil_div(product(shape), self.setup.quant_block)
        return self.tape.alloc("absmax in fp32", (blocks,), "float32", "one of each block")

    def _dequantized(self, shape: tuple[int, int]) -> Tensor:
        """A 4-bit weight whole (bitsandbytes 0.50 functional.py dequantize_4bit)."""
        constants = self._constants(shape) if self.setup.double_quant else None
        dense = self.tape.alloc(
            "dequantized weight", shape, self.setup.weight_dtype, "the base without its adapter"
        )
        del constants
        return dense

    def _quantized(self, shape: tuple[int, int]) -> list[Tensor]:
        """The new 4-bit weight, beside the old one until that is let go (functional.py quantize_4bit)."""
        t, elements = self.tape, product(shape)
        absmax = self._constants(shape)
        halves = (ceil_div(elements, 2),)
        packed = t.alloc("merged 4-bit weight", halves, "uint8", "quantized again", "weights")
        if not self.setup.double_quant:
            return [absmax, packed]
        blocks = ceil_div(elements, self.setup.quant_block)
        centered = t.alloc("absmax less its mean", (blocks,), "float32", "to be quantized")
        fewer = (ceil_div(blocks, NESTED_BLOCK),)
        nested = t.alloc("nested constants", fewer, "float32", "of the constants", "weights")
        constants = t.alloc(
            "quantization constants", (blocks,), "uint8", "absmax, quantized again", "weights"
        )
        del centered, absmax
        return [packed, nested, constants]
