"""PEFT_TYPES: every adapter type of peft 0.21, and what a trace has to know about it. None is refused.

Each was compared with a real step on the CPU (tests/test_trace_peft.py): weights, gradients, optimizer states
and what is saved for backward are equal to the byte. Files named are those of peft 0.21.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeftType:
    """One `peft_type`.

    values: constants whose content decides a shape, so that the trace keeps it (live/parts/values.py).
    sparse: holds sparse tensors, of whose CUDA kernels' own temporaries nothing is known. per_task: asks each
    row's task. note: what else a trace does or assumes.
    """

    name: str
    values: str = ""
    sparse: bool = False
    per_task: bool = False
    note: str = ""


_PLAIN = """ADAPTION_PROMPT BEFT BOFT C3A DEFT DELORA FOURIERFT GLORA GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA
LOKR LORA MISS OFT OSF PEANUT PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA ROAD SHADOW SUPERTUNING TINYLORA
TRAINABLE_TOKENS UNILORA VERA"""
_CHECKPOINTING = (
    "transformers 5.23 drops the cache under checkpointing: no real step runs with it, and no trace"
)
_SPECIAL = (
    PeftType(
        "ADALORA",
        note=(
            "the rank allocator runs; the values by which it chooses ranks are zeros "
            "(tuners/adalora/layer.py)"
        ),
    ),
    PeftType(
        "ADAMSS",
        note=(
            "needs scikit-learn, as the real one does; clusters of rows are taken as equal "
            "(tuners/adamss/utils.py)"
        ),
    ),
    PeftType("CARTRIDGE", note=_CHECKPOINTING),
    PeftType(
        "CPT", values="which labels count (peft_model.py _cpt_forward, tuners/cpt/model.py calculate_loss)"
    ),
    PeftType(
        "FROD",
        values="the size of a sparse matrix (tuners/frod/layer.py _get_frod_tensors)",
        sparse=True,
        note=(
            "the decomposition of the base weights in host memory is left out (tuners/frod/model.py "
            "_projection_from_weights)"
        ),
    ),
    PeftType("MULTITASK_PROMPT_TUNING", per_task=True),
    PeftType("POLY", per_task=True),
    PeftType("PREFIX_TUNING", note=_CHECKPOINTING),
    PeftType(
        "SHIRA",
        sparse=True,
        note="how many places the mask sets is counted, not where they are (tuners/shira/layer.py update_layer)",
    ),
    PeftType("VBLORA", note="its logits are taken as finite (tuners/vblora/layer.py)"),
    PeftType(
        "WAVEFT", values="which coefficients lie inside the matrix (tuners/waveft/layer.py get_delta_weight)"
    ),
    PeftType(
        "XLORA",
        note="needs the LoRA checkpoints that it mixes, in local folders (tuners/xlora/config.py adapters)",
    ),
)
PEFT_TYPES: dict[str, PeftType] = {
    row.name: row for row in sorted((*map(PeftType, _PLAIN.split()), *_SPECIAL), key=lambda row: row.name)
}

ORDINARY = PeftType("")
"""A type that this table does not know (of a newer peft): traced as one of which nothing is special."""
