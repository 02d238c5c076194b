"""Which of Liger's kernels a training file turns on, in the words of the stack that it is written for."""

from __future__ import annotations

from memplan.planner.importers.rules import Facts, flag
from memplan.planner.tables.fused_kernels import DEFAULT, FUSED_KERNELS

WORDS = {"swiglu": "glu", "geglu": "glu", **{name: name for name in FUSED_KERNELS if name != "glu"}}
"""Arguments of liger-kernel 0.8.5 transformers/monkey_patch.py apply_liger_kernel_to_*."""
LOSS = "fused_linear_cross_entropy"


def settle_liger(facts: Facts, warnings: list[str]) -> None:
    """What use_liger_kernel means: the loss without logits, and the kernels that Liger swaps in by itself
    unless the config says otherwise (transformers 5.24 integrations/liger.py).
    """
    if not facts.get("_liger"):
        return
    config = facts.get("_liger_config") or {}
    said = {str(name): flag(f"liger_kernel_config.{name}", on) for name, on in config.items()}
    if said.pop(LOSS, True):
        facts["loss"] = "fused"
    unknown = sorted(name for name in said if name not in WORDS)
    if unknown:
        warnings.append(f"liger_kernel_config.{unknown[0][:40]} is not modeled")
    asked = dict.fromkeys(DEFAULT, True) | {WORDS[name]: on for name, on in said.items() if name in WORDS}
    facts["fused_kernels"] = tuple(name for name in FUSED_KERNELS if asked.get(name))


def settle_named(facts: Facts) -> None:
    """axolotl's liger_* keys, each a kernel of its own (0.19 integrations/liger/plugin.py)."""
    asked = tuple(name for name in FUSED_KERNELS if facts.get(f"_liger_{name}"))
    if asked:
        facts["fused_kernels"] = asked


def named(kernels: tuple[str, ...]) -> dict[str, bool]:
    """The same keys of kernels that are on."""
    return {f"liger_{'glu_activation' if name == 'glu' else name}": True for name in kernels}


def configured(kernels: tuple[str, ...], fused_loss: bool) -> dict[str, bool]:
    """A liger_kernel_config that turns on these kernels alone."""
    return {LOSS: fused_loss, **{word: kernel in kernels for word, kernel in WORDS.items()}}
