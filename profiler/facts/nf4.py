"""Facts about NF4 itself, read by quantising numbers with bitsandbytes on the CPU: what is stored, and what is lost."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from profiler.facts.models import BLOCK, Probe, Value, quantised


def _zero_point() -> tuple[Value, str]:
    """Zero is stored exactly as zero and no per-block offset exists: absmax alone scales a block; the code book has an exact zero."""
    state = quantised(double=False).weight.quant_state
    per_block = [name for name, value in vars(state).items() if hasattr(value, "numel") and value.numel() == 64 * 64 // BLOCK]
    codes = [round(float(c), 4) for c in state.code]
    return (
        state.offset is not None,
        f"per-block tensors of the quantisation state: {', '.join(per_block)}; offset {state.offset}; exact 0 in the code: {0.0 in codes}",
    )


def _constant_bits(nested: bool) -> Probe:
    def probe() -> tuple[Value, str]:
        state = quantised(double=nested, rows=256, columns=256).weight.quant_state
        bits = 8 * state.absmax.element_size()
        second = f", then one float32 each {state.state2.blocksize}" if nested else ""
        return bits, f"block constants are {str(state.absmax.dtype).removeprefix('torch.')}, one each {state.blocksize} weights{second}"

    return probe


def _bits_saved() -> tuple[Value, str]:
    """Bits a weight of both states' tensors, code books and scalars apart; 2^20 weights, so that the second level's blocks are full."""
    sizes = []
    for nested in (False, True):
        state = quantised(double=nested, rows=1024, columns=1024).weight.quant_state
        sizes.append(state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0))
    saved = 8 * (sizes[0] - sizes[1]) / 2**20
    return saved, f"constants of 2^20 weights: {sizes[0]} bytes, double-quantised {sizes[1]}: {saved:.4f} bits a weight saved"


@cache
def _samples() -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(2**18, generator=generator)


def _bin_shares() -> tuple[Value, str]:
    """Share of normal weights in the fullest of the 16 bins over that in the emptiest, after blockwise absmax scaling."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, _ = quantize_4bit(_samples().reshape(512, 512), blocksize=BLOCK, quant_type="nf4")
    flat = packed.flatten()
    counts = torch.bincount(torch.cat([flat >> 4, flat & 15]).long(), minlength=16).double() / (2 * flat.numel())
    least, most = float(counts.min()), float(counts.max())
    return (
        most / least,
        f"of 2^18 normal weights the 16 bins hold between {100 * least:.2f} % and {100 * most:.2f} %; equal bins would hold 6.25 %",
    )


def _error(kind: str, samples: Any) -> float:
    """Root mean square error of quantising and dequantising, blocks of 64, the first weight of each block apart (an outlier may sit
    there). int4: 15 even levels scaled by absmax."""
    if kind == "int4":
        blocks = samples.reshape(-1, BLOCK)
        scale = blocks.abs().amax(1, keepdim=True) / 7
        back = (blocks / scale).round().clamp(-7, 7) * scale
    else:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(samples.reshape(512, 512), blocksize=BLOCK, quant_type=kind)
        back = dequantize_4bit(packed, state).reshape(-1, BLOCK)
    return float((back - samples.reshape(-1, BLOCK))[:, 1:].square().mean().sqrt())


def _relative_error(other: str) -> tuple[Value, str]:
    nf4, theirs = _error("nf4", _samples()), _error(other, _samples())
    return nf4 / theirs, f"root mean square error on normal weights: nf4 {nf4:.4f}, {other} {theirs:.4f} of a standard deviation"


def _outlier_growth(other: str) -> tuple[Value, str]:
    """How much one outlier of 10 standard deviations in every block multiplies the error of the *other* weights, nf4 over `other`."""
    spiked = _samples().clone().reshape(-1, BLOCK)
    spiked[:, 0] = 10.0
    growth = {kind: _error(kind, spiked.flatten()) / _error(kind, _samples()) for kind in ("nf4", other)}
    return growth["nf4"] / growth[
        other
    ], f"an outlier of 10 sigma in every block multiplies the error by {growth['nf4']:.2f} (nf4), {growth[other]:.2f} ({other})"


NF4: dict[str, tuple[Probe, str]] = {
    "nf4_has_zero_point": (_zero_point, "bitsandbytes"),
    "nf4_constant_bits": (_constant_bits(False), "bitsandbytes"),
    "double_quantised_constant_bits": (_constant_bits(True), "bitsandbytes"),
    "double_quantisation_bits_saved": (_bits_saved, "bitsandbytes"),
    "nf4_fullest_over_emptiest_bin": (_bin_shares, "bitsandbytes"),
    "nf4_error_over_fp4": (partial(_relative_error, "fp4"), "bitsandbytes"),
    "nf4_error_over_int4": (partial(_relative_error, "int4"), "bitsandbytes"),
    "nf4_outlier_growth_over_int4": (partial(_outlier_growth, "int4"), "bitsandbytes"),
    "nf4_outlier_growth_over_fp4": (partial(_outlier_growth, "fp4"), "bitsandbytes"),
}
