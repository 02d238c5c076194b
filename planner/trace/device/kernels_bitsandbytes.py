"""What bitsandbytes' CUDA kernels allocate inside one op (bitsandbytes 0.50 backends/cuda/ops.py)."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from memplan.planner.trace.device.rule import OpCall, Workspace, bytes_of


def gemm_4bit(c: OpCall) -> Iterator[Workspace]:
    """Beyond what the fused kernel serves, N x K weights are dequantized in the input's dtype, nested absmax
    twice in fp32. Under autocast F.linear then casts bias, weights and input.
    """
    inputs, packed, shape = c.args[0], c.args[1], c.args[2]
    absmax_8bit = c.args[7] if len(c.args) > 7 else None
    if fused(c):
        if not inputs.is_contiguous():
            yield Workspace("contiguous input", bytes_of(inputs), before=True)
        return
    if absmax_8bit is not None:
        yield Workspace("dequantized absmax", absmax_8bit.numel() * 4, before=True)
        yield Workspace("absmax plus offset", absmax_8bit.numel() * 4, before=True)
    if not packed.is_contiguous():
        yield Workspace("contiguous weights", bytes_of(packed), before=True)
    yield Workspace("dequantized weights", prod(shape) * inputs.element_size(), before=True, last=True)
    if c.outputs[0].dtype != inputs.dtype:
        size = c.outputs[0].element_size()
        bias = shape[0] if len(c.args) > 6 and c.args[6] is not None else 0
        for name, count in (("bias", bias), ("weights", prod(shape)), ("input", inputs.numel())):
            yield Workspace(f"{name} as autocast casts it", count * size, before=True)


def gemm_4bit_product(c: OpCall) -> str:
    """The library that multiplies: none where the fused kernel does, else F.linear's, which fuses a bias in
    cuBLASLt.
    """
    if fused(c):
        return ""
    return "cublaslt" if len(c.args) > 6 and c.args[6] is not None else "cublas"


def fused(c: OpCall) -> bool:
    """Whether gemm_4bit runs without dequantizing the weights."""
    inputs, shape = c.args[0], c.args[2]
    rows = inputs.numel() // inputs.shape[-1]
    return fused_gemm_4bit(
        c.target.capability, c.target.sms, inputs.dtype, rows, shape[0], shape[1], c.args[4]
    )


def fused_gemm_4bit(
    capability: tuple[int, int], sms: int, dtype: torch.dtype, m: int, n: int, k: int, blocksize: int
) -> bool:
    """Whether M x K times the N x K weights runs without dequantizing them: the installed library's own rule,
    run for another GPU.

    False for a version of bitsandbytes that has no fused kernel.
    """
    rule, most = _library_rule()
    if rule is None or m > most or k % blocksize:
        return False
    return bool(rule(capability, sms)(0, dtype, m, n, k))


@cache
def _library_rule() -> tuple[Callable[[tuple[int, int], int], Callable[..., bool]] | None, int]:
    """(capability, sms) -> _gemm_4bit_use_custom_cuda of the installed bitsandbytes, and the most rows that
    it is asked about.

    The module itself cannot be imported without CUDA, so the one function is taken from its source and given
    the GPU's properties.
    """
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return None, 0
    path = Path(spec.origin).parent / "backends/cuda/ops.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    wanted: list[ast.stmt] = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "_gemm_4bit_use_custom_cuda"
    ]
    if not wanted:
        return None, 0
    for node in wanted:
        node.decorator_list = []  # type: ignore[attr-defined]
    numbers = _numbers(tree)
    code = compile(ast.Module(wanted, []), str(path), "exec")

    @cache
    def for_card(capability: tuple[int, int], sms: int) -> Callable[..., bool]:
        names: dict[str, Any] = {
            "torch": torch,
            "_gpu_dispatch_props": lambda index: (sms, *capability),
            **numbers,
        }
        exec(code, names)
        found: Callable[..., bool] = names["_gemm_4bit_use_custom_cuda"]
        return found

    return for_card, numbers.get("_gemm_4bit_custom_max_m", 0)


def _numbers(tree: ast.Module) -> dict[str, int]:
    """Module-level integer constants, the first value of each (CUDA's branch stands before ROCm's)."""
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, int)
        ):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.lower().startswith("_gemm_4bit"):
                    found.setdefault(target.id, node.value.value)
    return found


def int8_scaled_mm(c: OpCall) -> Iterator[Workspace]:
    """The int32 product, then an fp16 result, converted where another dtype is wanted."""
    out = c.outputs[0]
    yield Workspace("int32 product", out.numel() * 4, before=True)
    if out.dtype != torch.float16:
        yield Workspace("fp16 result", out.numel() * 2, before=True)


def int8_vectorwise_quant(c: OpCall) -> Iterator[Workspace]:
    """With a threshold, |A| is compared with it: one fp16 copy, one byte an element for the outcome."""
    inputs = c.args[0]
    threshold = c.args[1] if len(c.args) > 1 else 0.0
    if threshold > 0:
        yield Workspace("absolute values", bytes_of(inputs))
        yield Workspace("outliers", inputs.numel())
