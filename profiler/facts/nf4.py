"""Facts about NF4 itself, read by quantizing numbers with bitsandbytes on the CPU: what is stored, and what
is lost.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from memplan.profiler.facts.models import BLOCK, Finding, Probe, quantized
from memplan.profiler.localized_message import said


def _zero_point() -> Finding:
    """Zero is stored exactly as zero and no per-block offset exists: absmax alone scales a block; the code
    book has an exact zero.
    """
    state = quantized(double=False).weight.quant_state
    per_block = [
        name
        for name, value in vars(state).items()
        if hasattr(value, "numel") and value.numel() == 64 * 64 // BLOCK
    ]
    codes = [round(float(c), 4) for c in state.code]
    stored = (
        "per-block tensors of the quantization state: {names}; offset {offset}; exact 0 in the code: {exact}"
    )
    return state.offset is not None, said(
        stored, names=", ".join(per_block), offset=str(state.offset), exact=0.0 in codes
    )


def _code_bits() -> Finding:
    packed = quantized(rows=256, columns=256).weight.data
    bits = 8 * packed.nbytes / 2**16
    return packed.nbytes / 2**16, said(
        "{bytes} bytes of codes for 2^16 weights: {bits:g} bits each", bytes=packed.nbytes, bits=bits
    )


def _constant_bits(nested: bool) -> Probe:
    def probe() -> Finding:
        state = quantized(double=nested, rows=256, columns=256).weight.quant_state
        bits = 8 * state.absmax.element_size()
        dtype, each = str(state.absmax.dtype).removeprefix("torch."), state.blocksize
        if not nested:
            return bits, said("block constants are {dtype}, one each {each} weights", dtype=dtype, each=each)
        twice = (
            "block constants are {dtype}, one each {each} weights, then one float32 each {second} constants"
        )
        return bits, said(twice, dtype=dtype, each=each, second=state.state2.blocksize)

    return probe


def _bits_saved() -> Finding:
    """Bits a weight of both states' tensors, code books and scalars apart; 2^20 weights, so that the second
    level's blocks are full.
    """
    sizes = []
    for nested in (False, True):
        state = quantized(double=nested, rows=1024, columns=1024).weight.quant_state
        sizes.append(state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0))
    saved = 8 * (sizes[0] - sizes[1]) / 2**20
    counted = (
        "constants of 2^20 weights: {single} bytes, double-quantized {double}: {saved:.4f} bits a weight "
        "saved"
    )
    return saved, said(counted, single=sizes[0], double=sizes[1], saved=saved)


@cache
def _samples() -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(2**18, generator=generator)


def _bin_shares() -> Finding:
    """Share of normal weights in the fullest of the 16 bins over that in the emptiest, after blockwise absmax
    scaling.
    """
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, _ = quantize_4bit(_samples().reshape(512, 512), blocksize=BLOCK, quant_type="nf4")
    flat = packed.flatten()
    counts = torch.bincount(torch.cat([flat >> 4, flat & 15]).long(), minlength=16).double() / (
        2 * flat.numel()
    )
    least, most = float(counts.min()), float(counts.max())
    shares = (
        "of 2^18 normal weights the 16 bins hold between {least:.2f} % and {most:.2f} %; equal bins would "
        "hold 6.25 %"
    )
    return most / least, said(shares, least=100 * least, most=100 * most)


def _error(kind: str, samples: Any) -> float:
    """Root mean square error of quantizing and dequantizing, blocks of 64, the first weight of each block
    apart (an outlier may sit there). int4: 15 even levels scaled by absmax.
    """
    if kind == "int4":
        blocks = samples.reshape(-1, BLOCK)
        scale = blocks.abs().amax(1, keepdim=True) / 7
        back = (blocks / scale).round().clamp(-7, 7) * scale
    else:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(samples.reshape(512, 512), blocksize=BLOCK, quant_type=kind)
        back = dequantize_4bit(packed, state).reshape(-1, BLOCK)
    return float((back - samples.reshape(-1, BLOCK))[:, 1:].square().mean().sqrt())


def _relative_error(other: str) -> Finding:
    nf4, theirs = _error("nf4", _samples()), _error(other, _samples())
    errors = (
        "root mean square error on normal weights: nf4 {nf4:.4f}, {other} {theirs:.4f} of a standard "
        "deviation"
    )
    return nf4 / theirs, said(errors, nf4=nf4, other=other, theirs=theirs)


def _outlier_growth(other: str) -> Finding:
    """How much one outlier of 10 standard deviations in every block multiplies the error of the *other*
    weights, nf4 over `other`.
    """
    spiked = _samples().clone().reshape(-1, BLOCK)
    spiked[:, 0] = 10.0
    growth = {kind: _error(kind, spiked.flatten()) / _error(kind, _samples()) for kind in ("nf4", other)}
    grown = (
        "an outlier of 10 sigma in every block multiplies the error by {nf4:.2f} (nf4), {theirs:.2f} "
        "({other})"
    )
    return growth["nf4"] / growth[other], said(grown, nf4=growth["nf4"], theirs=growth[other], other=other)


NF4: dict[str, tuple[Probe, str]] = {
    "nf4_code_bits": (_code_bits, "bitsandbytes"),
    "nf4_has_zero_point": (_zero_point, "bitsandbytes"),
    "nf4_constant_bits": (_constant_bits(False), "bitsandbytes"),
    "double_quantized_constant_bits": (_constant_bits(True), "bitsandbytes"),
    "double_quantization_bits_saved": (_bits_saved, "bitsandbytes"),
    "nf4_fullest_over_emptiest_bin": (_bin_shares, "bitsandbytes"),
    "nf4_error_over_fp4": (partial(_relative_error, "fp4"), "bitsandbytes"),
    "nf4_error_over_int4": (partial(_relative_error, "int4"), "bitsandbytes"),
    "nf4_outlier_growth_over_int4": (partial(_outlier_growth, "int4"), "bitsandbytes"),
    "nf4_outlier_growth_over_fp4": (partial(_outlier_growth, "fp4"), "bitsandbytes"),
}
