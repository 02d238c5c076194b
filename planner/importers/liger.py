"""Which of Liger's and axolotl's kernels a training file turns on, in the words of the stack that it is written
for.
"""

from __future__ import annotations

from memplan.planner.importers.rules import SIDE, Facts, flag
from memplan.planner.tables.fused_kernels import DEFAULT, FUSED_KERNELS, LORA

WORDS = {
    "swiglu": "glu",
    "geglu": "glu",
    **{name: name for name in FUSED_KERNELS if name not in (*LORA, "glu")},
}
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


def settle_named(facts: Facts, warnings: list[str]) -> None:
    """axolotl's liger_* keys and lora_*_kernel keys, each a kernel of its own (0.19
    integrations/liger/plugin.py, utils/schemas/config.py).
    """
    by_itself = LORA if _enables(facts) else ()
    asked = tuple(name for name in FUSED_KERNELS if facts.get(f"_{name}") or name in by_itself)
    if asked:
        facts["fused_kernels"] = asked
    if facts.get("_lora_embedding") and {"embed_tokens", "lm_head"} & set(facts.get("targets") or ()):
        warnings.append(f"lora_embedding_kernel is not modeled: {EMBEDDING}{SIDE['high']}")


EMBEDDING = "an embedding's adapter as one function"


def _enables(facts: Facts) -> bool:
    """Whether axolotl turns on all of its adapter kernels: no file names one, and neither a reinforcement
    trainer, an 8-bit base, a repository's code nor FSDP1 is in the way (check_auto_enable_lora_kernels).
    """
    told = any(f"_{name}" in facts for name in (*LORA, "lora_embedding"))
    eight = facts.get("_adapter") == "lora" and facts.get("_eight_bit")
    fsdp1 = "_fsdp_version" in facts and facts["_fsdp_version"] == 1
    adapted = facts.get("_adapter") in ("lora", "qlora")
    return adapted and not (told or eight or fsdp1 or facts.get("_rl") or facts.get("_remote_code"))


def named(kernels: tuple[str, ...]) -> dict[str, bool]:
    """The liger_* keys of kernels that are on."""
    words = {name: "glu_activation" if name == "glu" else name for name in kernels if name not in LORA}
    return {f"liger_{word}": True for word in words.values()}


def adapter_kernels(kernels: tuple[str, ...]) -> dict[str, bool]:
    """axolotl's keys of its adapter kernels, which it turns on where no file names one."""
    return {f"{name}_kernel": name in kernels for name in (*LORA, "lora_embedding")}


def configured(kernels: tuple[str, ...], fused_loss: bool) -> dict[str, bool]:
    """A liger_kernel_config that turns on these kernels alone."""
    return {LOSS: fused_loss, **{word: kernel in kernels for word, kernel in WORDS.items()}}
