"""MIXER_KERNELS: packages whose kernels a layer's linear attention and convolution run by, where they are
installed.

Transformers looks for each function in its package when it reads the modeling file, and runs its own of plain
torch where the package is missing (5.24 integrations/hub_kernels.py use_kernel_func_from_hub_with_fallback).
"""

from __future__ import annotations

from typing import Literal

MixerKernel = Literal["fla", "causal-conv1d"]
MIXER_KERNELS: dict[str, str] = {
    "fla": "flash-linear-attention: the delta rules by chunks of 64 tokens",
    "causal-conv1d": "causal-conv1d: the convolution before them, with its activation",
}
