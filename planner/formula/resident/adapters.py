"""The tensors that a method adds beside linear layers and beside the 3-D parameters of experts (peft 0.21).

R rank, N x K a weight's rows and columns, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from memplan.planner.formula.resident.added import ADDED
from memplan.planner.formula.resident.parameter_spec import NEVER_QUANTIZED, ParameterSpec
from memplan.planner.formula.symbolic.expr import Sized, symbol
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import Linear, ModelSpec, Moe
from memplan.planner.tables.errors import UsageError, nearest, unknown
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.peft_targets import LINEAR_MODULES, ia3_feedforward, peft_targets
from memplan.planner.tables.upcasts import is_expert

R = symbol("R")
Kind = Literal["lora", "dora", "adalora", "ia3", "added"]
Shapes = tuple[tuple[str, tuple[Sized, ...]], ...]


class Adapter(NamedTuple):
    """The tensors that a method adds beside one layer, by their short name. `experts`: how many the layer
    holds in one parameter.
    """

    kind: Kind
    tensors: tuple[ParameterSpec, ...]
    experts: int = 0

    def tensor(self, short: str) -> ParameterSpec:
        """The adapter's tensor of that last name (`lora_A`)."""
        return next(t for t in self.tensors if t.name.rpartition(".")[2] == short)


def adapters(spec: ModelSpec, setup: Setup) -> dict[str, Adapter]:
    """Adapters by the linear layer, parameter or part of a layer that they sit on. UsageError for a target
    that matches nothing.
    """
    if setup.method in ADDED:
        return {name: Adapter("added", tensors) for name, tensors in ADDED[setup.method](spec, setup).items()}
    method = method_of(setup)
    if method not in SHAPES:
        return {}
    chosen, experts = targets(spec, setup), expert_targets(spec, setup)
    found = {}
    for linear, count, prefix in linears(spec):
        if linear.name in chosen:
            kind, shapes = SHAPES[method](linear, spec.model_type)
            packed = (
                setup.quant_type != "none"
                and linear.name != spec.head_name
                and spec.model_type not in NEVER_QUANTIZED
            )
            found[linear.name] = Adapter(
                kind, _stored(setup, f"{prefix}{linear.name}", shapes, count, packed)
            )
    routers = _router_dtypes(spec)
    for name, (shape, rank, count, prefix) in experts.items():
        held = shape[0] if len(shape) == 3 else 1
        rows, columns = shape[-2:]
        shapes = (("lora_A", (R * (rank * held), columns)), ("lora_B", (rows, R * (rank * held))))
        stored = _stored(setup, f"{prefix}{name}", shapes, count, base=routers.get(name))
        found[name] = Adapter("lora", stored, held)
    return found


def method_of(setup: Setup) -> str:
    """The method whose adapters stand beside the base: LoRA's where an inference has some."""
    return "lora" if setup.adapters else setup.method


def waiting(setup: Setup, chosen: dict[str, Adapter]) -> list[ParameterSpec]:
    """The tensors of adapters that are there and not active, beside each of the active one's."""
    idle = (setup.adapters or 1) - 1
    return [
        replace(tensor, name=f"{tensor.name} (of adapters that wait)", count=tensor.count * idle)
        for adapter in chosen.values()
        for tensor in adapter.tensors
        if idle
    ]


def _router_dtypes(spec: ModelSpec) -> dict[str, str | None]:
    """The dtypes of routers' parameters by name; None: the model's."""
    mixtures = (layer.mlp for _, layer in spec.layers if isinstance(layer.mlp, Moe))
    return {name: moe.router_dtype for moe in mixtures for name, _ in moe.router}


def _stored(
    setup: Setup, name: str, shapes: Shapes, count: int, packed: bool = False, base: str | None = None
) -> tuple[ParameterSpec, ...]:
    frozen = FROZEN.get(setup.method, ())
    trained = METHODS[setup.method].trains != "nothing"
    if setup.method == "adalora" and setup.device == "cpu" and setup.weight_dtype == "float32":
        frozen = ("ranknum",)
    return tuple(
        ParameterSpec(
            f"{name}.{short}",
            shape,
            adapter_dtype(setup, packed, short not in frozen, base),
            count,
            trained and short not in frozen,
            "adapter",
        )
        for short, shape in shapes
    )


def adapter_dtype(setup: Setup, packed: bool, trained: bool, base: str | None = None) -> str:
    """The dtype of an adapter's tensor: float32 where PEFT's cast is on, else the base's own where that is a
    floating one (`base`: where it is not the model's).

    peft 0.21 tuners/tuners_utils.py cast_adapter_dtype, _move_adapter_to_device_of_base_layer. What is still
    float32 and trained goes to bfloat16 where the stack casts it.
    """
    if setup.adapter_dtype == "float32" or (trained and setup.trainable_dtype == "float32"):
        return "float32"
    base = base or (
        setup.weight_dtype
        if not packed
        else "float32"
        if setup.quant_storage == "uint8"
        else setup.quant_storage
    )
    return (
        setup.adapter_dtype if base == "float32" and trained and setup.adapter_dtype == "bfloat16" else base
    )


def linears(spec: ModelSpec) -> Iterator[tuple[Linear, int, str]]:
    """Every linear layer by kind: (linear, how many layers have it, the prefix of its full name)."""
    counts: dict[Linear, int] = {}
    prefix = ""
    for count, layer in spec.layers:
        prefix = f"{layer.prefix}.*."
        for linear in layer.linears():
            counts[linear] = counts.get(linear, 0) + count
    yield from ((linear, count, prefix) for linear, count in counts.items())
    yield from ((linear, 1, "") for linear in (*spec.projections, spec.head))


# ---- targets -----------------------------------------------------------------------------------------------


def targets(spec: ModelSpec, setup: Setup) -> set[str]:
    """The names of the linear layers that adapters sit on. UsageError for a target that matches nothing."""
    attention = {
        linear.name.rpartition(".")[2] for _, layer in spec.layers for linear in layer.attention.linears
    }
    known = {linear.name for linear, _, _ in linears(spec)}
    moved = set(_moved(spec, setup))
    chosen: set[str] = set()
    for target in named_targets(spec, setup):
        tuples = TUPLES.get(spec.model_type, "")
        if tuples and target in ("all-linear", tuples.rpartition(".")[2]):
            raise UsageError(
                f"targets {target} covers {tuples}, which returns a tuple: PEFT's layer fails there; use "
                "--targets attention"
            )
        if target == "all-linear":
            chosen |= {name for name in known - {spec.head_name} if name.rpartition(".")[2] not in moved}
        elif target == "attention":
            chosen |= {
                name for name in known if name.rpartition(".")[2] in attention
            }  # GPT-2 calls two layers c_proj
        elif target not in moved:
            found = {name for name in known if name == target or name.endswith("." + target)}
            if not found:
                raise no_target(target, known)
            chosen |= found
    return chosen


def named_targets(spec: ModelSpec, setup: Setup) -> tuple[str, ...]:
    """The targets as a user names them, or PEFT's own for the method and the model type."""
    if setup.targets == (LINEAR_MODULES,):
        names = {linear.name for linear, _, _ in linears(spec)} - {spec.head_name}
        return tuple(sorted({name.rpartition(".")[2] for name in names}))
    if setup.targets != ("peft-default",):
        return setup.targets
    return peft_targets(spec.whole_type or spec.model_type, METHODS[method_of(setup)].peft_type)


# Linear layers of a class of their own that return more than a tensor (transformers 5.23 models/phimoe
# PhimoeTopKRouter): peft 0.21 tuners/lora/layer.py Linear.forward reads the output's dtype.
TUPLES = {"phimoe": "mlp.router"}

# Model types whose experts were linear layers before transformers 5: peft 0.21
# utils/transformers_weight_conversion.py turns such targets into the fused parameters, with twice the rank
# for the fused gate and up. Model type -> old name -> parameter.
_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj", "gate": "weight"}
MOVED: dict[str, dict[str, str]] = {
    "mixtral": {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj", "gate": "weight"},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "qwen3_moe", "olmoe"), _FUSED),
}
CONVERTED_METHODS = ("lora", "qlora", "rslora", "lora+", "lora-fa", "dora")  # peft's LORA type


def _moved(spec: ModelSpec, setup: Setup) -> dict[str, str]:
    return MOVED.get(spec.whole_type or spec.model_type, {}) if method_of(setup) in CONVERTED_METHODS else {}


def expert_targets(spec: ModelSpec, setup: Setup) -> dict[str, tuple[tuple[int, ...], int, int, str]]:
    """Expert and router parameters that adapters sit on: name -> (shape, ranks fused into one, layers,
    prefix).
    """
    moved = _moved(spec, setup)
    wanted: dict[str, int] = {}
    for target in named_targets(spec, setup):
        for old, new in moved.items():
            if target in ("all-linear", old):
                wanted[new] = wanted.get(new, 0) + 1
    if not wanted:
        return {}
    if setup.method == "dora":
        raise UsageError(
            "peft has no DoRA for the parameters of experts: name targets outside them, such as --targets "
            "attention"
        )
    if wanted.get("gate_up_proj") == 1:
        raise UsageError("gate and up projections of the experts are one parameter: target both or neither")
    found: dict[str, tuple[tuple[int, ...], int, int, str]] = {}
    for count, layer in spec.layers:
        if isinstance(layer.mlp, Moe):
            for name, shape in (*layer.mlp.router, *layer.mlp.parameters):
                ranks = wanted.get(name.rpartition(".")[2])
                # peft 0.21 tuners/tuners_utils.py _inject_parameters finds no parameter that is parametrized
                left_out = setup.quantize_experts and is_expert(name, len(shape))
                if ranks and not left_out:
                    before = found[name][2] if name in found else 0
                    found[name] = (shape, ranks, before + count, f"{layer.prefix}.*.")
    return found


def no_target(target: str, known: set[str]) -> UsageError:
    """The error for a target that matches no linear layer, with the nearest names."""
    leaves = {name.rpartition(".")[2] for name in known}
    if target in ("embed_tokens", "wte", "embed_in"):
        return UsageError(
            f"target '{target}' is an embedding: the formula has no rule for adapters on embeddings; use "
            "--engine trace"
        )
    close = nearest(target, leaves)
    return unknown(
        "target",
        target,
        leaves | {"all-linear", "attention"},
        "" if close else "(targets are names of linear layers)",
    )


# ---- shapes by method --------------------------------------------------------------------------------------


def _lora(linear: Linear, model_type: str) -> tuple[Kind, Shapes]:
    return "lora", (("lora_A", (R, linear.in_features)), ("lora_B", (linear.out_features, R)))


def _dora(linear: Linear, model_type: str) -> tuple[Kind, Shapes]:
    return "dora", (*_lora(linear, model_type)[1], ("lora_magnitude_vector", (linear.out_features,)))


def _adalora(linear: Linear, model_type: str) -> tuple[Kind, Shapes]:
    """A, E, B and the number of ranks.

    `ranknum` is made without a gradient but becomes a trained parameter when it is moved to the base layer's
    device or dtype (peft 0.21 tuners/tuners_utils.py _move_adapter_to_device_of_base_layer): everywhere but
    on an fp32 base on the CPU.
    """
    return "adalora", (
        ("lora_A", (R, linear.in_features)),
        ("lora_E", (R, 1)),
        ("lora_B", (linear.out_features, R)),
        ("ranknum", (1,)),
    )


def _ia3(linear: Linear, model_type: str) -> tuple[Kind, Shapes]:
    forward = linear.name.endswith(ia3_feedforward(model_type))
    return "ia3", (("ia3_l", (1, linear.in_features) if forward else (linear.out_features, 1)),)


SHAPES: dict[str, Callable[[Linear, str], tuple[Kind, Shapes]]] = {
    **dict.fromkeys(("lora", "qlora", "rslora", "lora+", "lora-fa"), _lora),
    "dora": _dora,
    "adalora": _adalora,
    "ia3": _ia3,
}
FROZEN: dict[str, tuple[str, ...]] = {"lora-fa": ("lora_A",)}
