"""What is said of the packages that a model's linear attention and convolution run by, or do without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memplan.planner.tables.mixer_kernels import FAMILIES, MIXER_KERNELS, STATE_SPACES


def said(model_type: str, setup: Any) -> Iterator[str]:
    """Which of the packages that a model of this type looks for are taken to be installed."""
    taken = [name for name in _looked_for(model_type) if name in setup.mixer_kernels]
    if taken and setup.device == "cuda":
        yield f"kernels taken to be installed: {'; '.join(MIXER_KERNELS[name] for name in taken)}"
    if "fla" in taken and setup.device == "cuda":
        yield (
            "the first run of fla's kernels on a machine searches for configurations with 256 MiB beside "
            "what is held, which is not counted"
        )


def warnings(model_type: str, setup: Any) -> Iterator[str]:
    """Of packages that are taken to be missing: plain torch runs instead, which holds more."""
    lacking = [name for name in _looked_for(model_type) if name not in setup.mixer_kernels]
    if "fla" in lacking and setup.device == "cuda":
        yield (
            "assuming that flash-linear-attention is not installed, so that plain PyTorch runs linear "
            "attention and saves other tensors; if it is installed, use --set mixer_kernels=fla (with "
            "causal-conv1d: --set mixer_kernels=fla,causal-conv1d)"
        )
    if "mamba-ssm" in lacking and setup.device == "cuda":
        yield (
            "assuming that mamba-ssm and causal-conv1d are not installed, so that plain PyTorch runs the "
            "state-space scan and saves more tensors; if they are installed, use "
            f"--set mixer_kernels={','.join(STATE_SPACES)}"
        )


def uncounted(model_type: str, setup: Any) -> tuple[str, ...]:
    """What packed rows change: axolotl and LLaMA-Factory then run fla's own convolution, and repeat keys for
    each value head (axolotl 0.19 monkeypatch/models/qwen3_5/modeling.py).
    """
    packed = setup.packed_documents > 1 and setup.device == "cuda"
    if packed and "fla" in setup.mixer_kernels and "fla" in _looked_for(model_type):
        return ("the convolution and the repeated keys of packed rows under flash-linear-attention",)
    return ()


def _looked_for(model_type: str) -> tuple[str, ...]:
    return FAMILIES.get(model_type.removesuffix("_text"), ())
