"""Adapters as axolotl's kernels multiply them: what axolotl 0.19 kernels/lora.py and quantize.py make and
save, allocation by allocation. Products are torch's own; only the gated activation is a kernel's, which
allocates its output in the forward and nothing in the backward.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.fused_kernels import LORA_METHODS, swapped


def install(base: nn.Module, setup: Setup) -> None:
    """Give a model's attention and MLP modules axolotl's functions, where all of their layers have adapters
    that these multiply.
    """
    kernels = swapped(str(base.config.model_type), setup.fused_kernels)  # type: ignore[union-attr]
    if setup.method not in LORA_METHODS or setup.quant_type == "int8":
        return
    for module in base.modules():
        if "lora_qkv" in kernels and (layers := _adapted(module, "q_proj", "k_proj", "v_proj")):
            _together(layers)
        if "lora_o" in kernels and hasattr(module, "q_proj") and (layers := _adapted(module, "o_proj")):
            _together(layers)
        if "lora_mlp" in kernels and (layers := _adapted(module, "gate_proj", "up_proj", "down_proj")):
            module.forward = MethodType(_mlp_of(layers), module)


def _adapted(module: nn.Module, *names: str) -> list[Any]:
    """The layers of these names, empty where one is not there or has no adapter."""
    found = [getattr(module, name, None) for name in names]
    return found if all(hasattr(layer, "lora_A") for layer in found) else []


def _factors(layers: list[Any]) -> list[torch.Tensor]:
    """lora_A and lora_B of each."""
    named = [(layer, layer.active_adapters[0]) for layer in layers]
    return [part[name].weight for layer, name in named for part in (layer.lora_A, layer.lora_B)]


def _dropped(layer: Any, x: torch.Tensor) -> torch.Tensor | None:
    """The input that adapters read, where they drop some of it: one mask for all."""
    drop = layer.lora_dropout[layer.active_adapters[0]]
    return None if isinstance(drop, nn.Identity) or not layer.training else drop(x)


def _together(layers: list[Any]) -> None:
    """All of these layers run when the first is called; the others give what was made then."""
    waiting: list[torch.Tensor] = []
    bases = [layer.get_base_layer() for layer in layers]

    def first(self: Any, x: torch.Tensor) -> Any:
        made = Projections.apply(x, _dropped(layers[0], x), bases, *_factors(layers))
        waiting[:] = made[1:]
        return made[0]

    def further(self: Any, x: torch.Tensor) -> Any:
        return waiting.pop(0)

    for number, layer in enumerate(layers):
        layer.forward = MethodType(further if number else first, layer)


def _mlp_of(layers: list[Any]) -> Any:
    bases = [layer.get_base_layer() for layer in layers]

    def forward(self: Any, x: torch.Tensor) -> Any:
        return Mlp.apply(x, _dropped(layers[0], x), bases, *_factors(layers))

    return forward


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """A base weight as a product reads it: itself, or N x K dequantized."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    if not state.nested:
        import bitsandbytes

        return bitsandbytes.functional.dequantize_4bit(weight, state, quant_type=state.quant_type)
    out = torch.empty(tuple(state.shape), dtype=state.dtype, device=weight.device)
    constants = torch.empty(state.absmax.numel(), dtype=torch.float32, device=weight.device)
    constants += state.offset
    return out


def _product(
    x: torch.Tensor, base: Any, a: torch.Tensor, b: torch.Tensor, dropped: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + x A^T B^T (+ bias), the adapter's part added in place."""
    flat = x.view(-1, x.shape[-1])
    read = flat if dropped is None else dropped.view(-1, x.shape[-1])
    weight = _whole(base.weight)
    out = torch.matmul(flat, weight.t())
    del weight
    a, b = a.t().to(x.dtype), b.t().to(x.dtype)
    out.addmm_(read @ a, b)
    if base.bias is not None:
        out += base.bias
    return out.view(*x.shape[:-1], -1)


def _of_factors(
    grad: torch.Tensor, read: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """grad B, which the input's gradient reads again, and the gradients of A and B."""
    low = grad @ b
    of_a, of_b = torch.empty_like(a.t()), torch.empty_like(b.t())
    of_a.addmm_(read.t(), low, beta=0)
    of_b.addmm_(a @ read.t(), grad, beta=0)
    return low, of_a.t(), of_b.t()


class Projections(torch.autograd.Function):
    """Projections of one x (B, S, K), each with its adapter: LoRA_QKV, and LoRA_O of one layer."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, bases: list[Any], *factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Every layer's output; saves x, what adapters read of it, and adapters in its dtype."""
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        made = [_product(x, base, *pair, dropped) for base, pair in zip(bases, pairs, strict=True)]
        ctx.save_for_backward(x, x if dropped is None else dropped, *(each.to(x.dtype) for each in factors))
        ctx.bases, ctx.drops = bases, dropped is not None
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of x, of what adapters read, and of every factor."""
        x, read, *factors = ctx.saved_tensors
        shape = x.shape
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        read = read.view(-1, shape[-1])
        found = [
            _of_factors(grad, read, a, b)
            for grad, a, b in zip(flat, factors[::2], factors[1::2], strict=True)
        ]
        result = None
        for grad, base in zip(flat, ctx.bases, strict=True):
            weight = _whole(base.weight)
            result = torch.mm(grad, weight) if result is None else result.addmm_(grad, weight)
            del weight
        assert result is not None
        adapted = _adapters_part(ctx.drops, result, [each[0] for each in found], factors[::2], read)
        of_factors = [each for _, *pair in found for each in pair]
        return (result.view(shape), None if adapted is None else adapted.view(shape), None, *of_factors)


def _adapters_part(
    drops: bool,
    result: torch.Tensor,
    low: list[torch.Tensor],
    factors: list[torch.Tensor],
    read: torch.Tensor,
) -> torch.Tensor | None:
    """What adapters give to their input's gradient: added to that of the base, or apart where they read
    another input.
    """
    if drops and len(low) == 1:
        return low[0] @ factors[0] * 1.0
    part = torch.zeros_like(read) if drops else result
    for each, a in zip(low, factors, strict=True):
        part.addmm_(each, a)
    return part if drops else None


class Mlp(torch.autograd.Function):
    """down(act(gate(x)) * up(x)) of x (B, S, H), each with its adapter: LoRA_MLP."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, bases: list[Any], *factors: torch.Tensor
    ) -> torch.Tensor:
        """The output; saves x, what adapters read of it, gate, up, and adapters in the dtype of x."""
        gate = _product(x, bases[0], factors[0], factors[1], dropped)
        up = _product(x, bases[1], factors[2], factors[3], dropped)
        hidden = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
        out = _product(hidden, bases[2], factors[4], factors[5])
        kept = x if dropped is None else dropped
        ctx.save_for_backward(x, kept, gate, up, *(each.to(x.dtype) for each in factors))
        ctx.bases, ctx.drops = bases, dropped is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """The gradients of x, of what adapters read, and of every factor; gate's and up's are written over
        them, the hidden states over their own.
        """
        x, read, gate, up, gate_a, gate_b, up_a, up_b, down_a, down_b = ctx.saved_tensors
        shape = x.shape
        grad = grad.view(-1, grad.shape[-1])
        read, gate, up = (each.view(-1, each.shape[-1]) for each in (read, gate, up))
        weight = _whole(ctx.bases[2].weight)
        hidden = torch.matmul(grad, weight)
        del weight
        hidden.addmm_(grad @ down_b, down_a)
        of_down = _of_factors(grad, hidden, down_a, down_b)
        of_up = _of_factors(up, read, up_a, up_b)
        of_gate = _of_factors(gate, read, gate_a, gate_b)
        result = adapted = None
        if ctx.needs_input_grad[0]:
            weight = _whole(ctx.bases[1].weight)
            result = torch.matmul(up, weight)
            del weight
            weight = _whole(ctx.bases[0].weight)
            result.addmm_(gate, weight)
            del weight
            part = torch.zeros_like(read) if ctx.drops else result
            part.addmm_(of_up[0], up_a)
            part.addmm_(of_gate[0], gate_a)
            result, adapted = result.view(shape), part.view(shape) if ctx.drops else None
        return (result, adapted, None, *of_gate[1:], *of_up[1:], *of_down[1:])
