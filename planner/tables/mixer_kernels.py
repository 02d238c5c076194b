"""MIXER_KERNELS: packages whose kernels a layer's linear attention and convolution run by, where they are
installed.

Transformers looks for each function in its package when it reads the modeling file, and runs its own of plain
torch where the package is missing (5.24 integrations/hub_kernels.py use_kernel_func_from_hub_with_fallback).
"""

from __future__ import annotations

from typing import Literal

from memplan.planner.tables.gpus import find_gpu

MixerKernel = Literal["fla", "causal-conv1d", "mamba-ssm"]
MIXER_KERNELS: dict[str, str] = {
    "fla": "flash-linear-attention: the delta rules by chunks of 64 tokens",
    "causal-conv1d": "causal-conv1d: the convolution before them, with its activation",
    "mamba-ssm": "mamba-ssm: the scans of state spaces, with the convolution and the projection around them",
}
_DELTA = ("fla", "causal-conv1d")
STATE_SPACES: tuple[MixerKernel, ...] = ("mamba-ssm", "causal-conv1d")
"""What the scans of state spaces take: mamba-ssm calls causal-conv1d itself."""
FAMILIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "glm5_next",
            "kimi_linear",
            "lara_mini",
            "olmo_hybrid",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_next",
            "qwen4_exp",
        ),
        _DELTA,
    ),
    **dict.fromkeys(
        (
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "mamba",
            "mamba2",
            "nemotron_h",
            "zamba",
            "zamba2",
        ),
        STATE_SPACES,
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3"), ("causal-conv1d",)),
}
"""Which packages a model type of transformers 5.24 looks for, as its modeling file names them."""
FUNCTIONS: dict[str, str] = {
    "torch_chunk_gated_delta_rule": "fla",
    "chunk_kimi_delta_attention": "fla",
    "causal_conv1d_fn": "causal-conv1d",
    "causal_conv1d_update": "causal-conv1d",
    "mamba2_split_conv1d_scan_combined": "mamba-ssm",
    "mamba2_chunk_scan": "mamba-ssm",
    "mamba2_selective_state_update": "mamba-ssm",
    "mamba_inner_fn": "mamba-ssm",
    "mamba_selective_scan": "mamba-ssm",
    "mamba_selective_state_update": "mamba-ssm",
}
"""What a modeling file calls the function of plain torch -> the package whose function replaces it."""
LOOPED = {"jamba": 1024, "zamba": 512, "mamba": 2048, "falcon_mamba": 2048}
"""Model types whose scan in plain torch goes through tokens one by one -> how many of these a trace runs in
minutes (mamba-2.8b: 0.06 s each); layers that repeat are run once (mamba_selective_scan in the same files).
"""
UNQUANTIZED: dict[tuple[str, str], tuple[str, ...]] = {("axolotl", "falcon_h1"): ("out_proj",)}
"""(recipe, model type) -> layers that bitsandbytes leaves alone, since mamba-ssm multiplies by their weights
(axolotl 0.19 loaders/model.py _set_quantization_config).
"""
UNFUSED = frozenset({("axolotl", "nemotron_h")})
"""(recipe, model type) whose mixer runs its parts one by one where its out_proj is quantized (axolotl 0.19
monkeypatch/models/nemotron_h/modeling.py guard_nemotron_h_fused_scan); transformers itself fails there.
"""
ONE_TOKEN = ("torch_recurrent_gated_delta_rule", "recurrent_kimi_delta_attention")
"""Functions of a single token behind others, which plain torch's stand for: they hold little."""
_TILES: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (32, 32),
    (7, 5): (32, 32),
    (8, 0): (128, 64),
    (8, 7): (128, 64),
    (9, 0): (128, 128),
    (10, 0): (128, 128),
    (10, 3): (128, 128),
}
"""Compute capability -> channels that a block takes, of tensors of two bytes and of others: fla-core 0.6.0
ops/common/chunk_o.py chunk_bwd_dqkwg, by the shared memory that a block can have (utils/hardware.py Backend; CUDA
C++ Programming Guide, technical specifications per compute capability: 64 KiB, 163 and 227 KiB; 99 KiB of others).
"""
_TILE = (64, 64)


def tile(gpu: str | None, channels: int, halves: bool) -> int:
    """Channels of a key of so many that a block of the delta rule's backward takes; `halves`: all tensors have
    two bytes an element. An A100's where no GPU is named.
    """
    capability = (find_gpu(gpu).capability if gpu is not None else None) or (8, 0)
    most = _TILES.get(capability, _TILE)[0 if halves else 1]
    return min(max(1 << (channels - 1).bit_length(), 16), most)
