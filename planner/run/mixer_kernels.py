"""Linear attention and convolution by the packages that a setup says are installed, in place of what a
transformers model runs without them.

Its code looks each function up by the name of the one in plain torch, which the package's replaces (5.24
integrations/hub_kernels.py use_kernel_func_from_hub_with_fallback).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.delta_rules import GatedDeltaRule, KimiDeltaRule
from memplan.planner.tables.mixer_kernels import FUNCTIONS, ONE_TOKEN, tile

Kernel = Callable[..., Any]


@contextmanager
def functions(base: nn.Module, setup: Setup) -> Iterator[None]:
    """While active, the functions that the code of a model's modules looks up are those of the packages that
    the setup names, and of plain torch for all others, whatever is installed here.
    """
    with ExitStack() as stack:
        for code, name, kernel in _replaced(base, setup):
            stack.enter_context(patch.object(code, name, kernel))
        yield


def _replaced(base: nn.Module, setup: Setup) -> Iterator[tuple[Any, str, Kernel]]:
    """(the module of code, the function's name, the function) of each; on a CPU no package's runs."""
    taken = setup.mixer_kernels if setup.device == "cuda" else ()
    for code in dict.fromkeys(sys.modules[type(module).__module__] for module in base.modules()):
        for name in (*FUNCTIONS, *ONE_TOKEN):
            found = getattr(code, name, None)
            if found is not None:
                ours = FUNCTIONS.get(name) in taken
                yield code, name, _kernel(name, setup) if ours else inspect.unwrap(found)


def _kernel(name: str, setup: Setup) -> Kernel:
    def gated(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **_: Any,
    ) -> Any:
        given = (query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel)
        if name == "chunk_kimi_delta_attention":
            return KimiDeltaRule.apply(*given)
        halves = value.element_size() == query.element_size() == 2
        return GatedDeltaRule.apply(*given, tile(setup.gpu, key.shape[-1], halves))

    return _convolved if name == "causal_conv1d_fn" else gated


class CausalConvolution(torch.autograd.Function):
    """x (B, D, T) convolved along T with a weight (D, W), and its activation: saves x (causal-conv1d 1.7.0
    causal_conv1d_interface.py CausalConv1dFn, cpp_functions.py; csrc/causal_conv1d.cpp).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output, laid out as x is."""
        if 1 not in (x.stride(1), x.stride(2)):
            x = x.contiguous()
        ctx.save_for_backward(x, weight, bias)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """The gradients of x, weight and bias, the last two summed in fp32 whether they train or not."""
        x, weight, bias = ctx.saved_tensors
        if 1 not in (grad.stride(1), grad.stride(2)):
            grad = grad.contiguous()
        dx = torch.empty_like(x)
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        dbias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        _launched(x, grad)
        return dx, dweight.type_as(weight), None if bias is None or dbias is None else dbias.type_as(bias)


def _launched(x: torch.Tensor, grad: torch.Tensor) -> None:
    """The kernel copies a gradient that is not laid out as x is, and drops the copy."""
    if x.stride(1) == 1 and x.stride(2) > 1:
        grad.transpose(1, 2).contiguous()
    else:
        grad.contiguous()


def _convolved(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *_: Any, **__: Any
) -> Any:
    return CausalConvolution.apply(hidden_states, weight, bias)
