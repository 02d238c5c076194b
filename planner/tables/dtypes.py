"""Bytes per element of every dtype that a row can have."""

from __future__ import annotations

DTYPE_BITS: dict[str, int] = {
    "float64": 64,
    "int64": 64,
    "float32": 32,
    "int32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "nf4": 4,
    "fp4": 4,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
}

PACKED: dict[int, str] = {2: "uint2", 3: "uint3", 4: "uint4", 8: "uint8"}
"""The dtype that a row names for a weight of so many bits that a quantized checkpoint packs into words."""

FLOATS = ("bfloat16", "float16", "float32")


def itemsize(dtype: str) -> int:
    """Bytes per element of a dtype of at least 8 bits; KeyError for an unknown one, ValueError for a
    narrower one.
    """
    bits = DTYPE_BITS[dtype]
    if bits < 8:
        raise ValueError(f"{dtype} has no whole number of bytes per element")
    return bits // 8
