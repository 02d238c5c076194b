"""FUSED_KERNELS: Triton kernels that take the place of a model's own operations, and in which families each one
does.

Liger's are those that liger-kernel 0.8.5 transformers/monkey_patch.py swaps in for a model type, its losses
without logits apart (Setup's `loss`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from memplan.planner.tables.gpus import find_gpu

FusedKernel = Literal[
    "rms_norm", "layer_norm", "glu", "rope", "cross_entropy", "lora_mlp", "lora_qkv", "lora_o"
]
FUSED_KERNELS: dict[str, str] = {
    "rms_norm": "Liger's RMSNorm: saves its input and one fp32 number per token",
    "layer_norm": "Liger's LayerNorm",
    "glu": "Liger's SwiGLU or GEGLU: saves gate and up, and writes their gradients over them",
    "rope": "Liger's rotary embedding: in place, on queries and keys",
    "cross_entropy": "Liger's cross-entropy: writes the gradient over the fp32 logits",
    "lora_mlp": "axolotl's MLP with adapters as one function: saves its input, gate and up",
    "lora_qkv": "axolotl's queries, keys and values with adapters as one function: saves its input",
    "lora_o": "axolotl's output projection with an adapter as one function: saves its input",
}


@dataclass(frozen=True, slots=True)
class Swapped:
    """What is swapped in one family. `unmodeled`: what is swapped too, for a kernel without a rule here; what
    stands in neither moves nothing, such as LayerNorm in a model of RMSNorms. `in_place`: whether a norm's
    gradient is written over the incoming one. `geglu`: whether the gated MLP is LigerGEGLUMLP.
    """

    kernels: frozenset[str] = frozenset({"rms_norm", "glu", "rope", "cross_entropy"})
    unmodeled: frozenset[str] = frozenset()
    in_place: bool = True
    geglu: bool = False


_PLAIN = Swapped()
_BEFORE_LOSS = Swapped(frozenset({"rms_norm", "glu", "rope"}))
"""Its cross-entropy is put where transformers 5 does not look (modeling_mistral.CrossEntropyLoss)."""
_TWO_NORMS = Swapped(in_place=False, geglu=True)
"""A residual stands between two norms, which reads the gradient too (LigerRMSNormForGemma2, Gemma3)."""
_EXPERTS = Swapped(frozenset({"rms_norm", "rope", "cross_entropy"}), frozenset({"glu"}))
"""Experts become LigerExperts, whose grouped kernel has no rule here."""
LIGER: dict[str, Swapped] = {
    "gemma": Swapped(geglu=True),
    "gemma2": _TWO_NORMS,
    "gemma3_text": _TWO_NORMS,
    "granite": _PLAIN,
    "llama": _PLAIN,
    "mistral": _BEFORE_LOSS,
    "mixtral": _EXPERTS,
    "phi3": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "qwen3_moe": _EXPERTS,
    "smollm3": _PLAIN,
}
LORA: tuple[str, ...] = ("lora_mlp", "lora_qkv", "lora_o")
"""axolotl's own, whatever Liger does (0.19 kernels/lora.py)."""
LORA_METHODS = ("lora", "qlora", "rslora")
"""Methods whose adapters they have a rule for; DoRA's they fuse too, by other tensors."""
PATCHED: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"),
        frozenset(LORA),
    ),
    **dict.fromkeys(("mixtral", "qwen3_moe"), frozenset({"lora_qkv", "lora_o"})),
}
"""Which of them are put into a model type: its attention must be written as QKV_PATCHES of 0.19
monkeypatch/lora_kernels.py have it, its MLP have gate_proj, up_proj and down_proj."""
DEFAULT: tuple[str, ...] = ("rms_norm", "layer_norm", "glu", "rope")
"""What Liger swaps where nobody says which, beside its loss without logits (apply_liger_kernel_to_*)."""
UNNAMED_SMS = 108
"""Multiprocessors where no GPU is named: an A100's. A norm's weight gradient has a row for each."""


def multiprocessors(gpu: str | None) -> int:
    """How many multiprocessors the named GPU has; those of an A100 where none is named or it is not known."""
    return (find_gpu(gpu).sms if gpu is not None else None) or UNNAMED_SMS


def swapped(model_type: str, asked: Iterable[str]) -> frozenset[str]:
    """The kernels that are swapped in, of those asked for; none for a family without a row."""
    row = LIGER.get(model_type)
    known = PATCHED.get(model_type, frozenset()) | (frozenset() if row is None else row.kernels)
    return known & frozenset(asked)


def without_rule(model_type: str, asked: Iterable[str]) -> tuple[str, ...]:
    """The kernels that are asked for and may be swapped in, for which there is no rule."""
    row, of_lora = LIGER.get(model_type), model_type in PATCHED
    return tuple(
        name for name in asked if (not of_lora if name in LORA else row is None or name in row.unmodeled)
    )
