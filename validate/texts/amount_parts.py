"""What kinds of statements share: an amount of a text made the claimed value of a part, and settings by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memplan.planner.tables.components import HELD_ACROSS_STEPS
from memplan.validate.claimsfile import Part
from memplan.validate.questions.claimed import ABOUT
from memplan.validate.texts.slots import Stated
from memplan.validate.texts.state import amount_text

Values = Mapping[str, Any]
Said = tuple[str, str, list[Part]]
"""The claim in English and in Chinese, and its parts."""
Case = tuple[str, str]
"""What a case is called in English and in Chinese; empty where there is one alone."""

MIXED = {"method": "full", "recipe": "hf", "weight_dtype": "float32"}
PURE = {"method": "full", "recipe": "raw", "weight_dtype": "bfloat16"}
SPLIT = {"method": "full", "recipe": "hf", "weight_dtype": "bfloat16", "parallel": "zero1", "gpus": 1}
"""DeepSpeed's mixed precision: bf16 weights and gradients beside fp32 masters, on one GPU."""
STATES = [{"quantity": "rows", "component": c} for c in HELD_ACROSS_STEPS]
PLAIN = 0.02
"""How far a number without "about" may be off, where its own rounding allows no more."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "nf4": "NF4", "int8": "int8"}
CHECKPOINTING = (
    ("non_reentrant", ("with checkpointing", "开检查点")),
    ("none", ("without checkpointing", "不开检查点")),
)
ATTENTION = (("sdpa", ("sdpa attention", "sdpa 注意力")), ("eager", ("eager attention", "eager 注意力")))


def claiming(part: Part, said: Stated, tolerance: float = 0.0) -> Part:
    """The part with an amount of the text in the text's own unit; a plain number may be off by its rounding."""
    amount = said.amount
    unit = part.unit if amount.unit in ("", "bits") else amount.unit
    if isinstance(amount.value, tuple):
        return replace(part, claimed=amount.value, relation="between", unit=unit)
    wide = max(said.rounding, tolerance or (ABOUT if amount.about else PLAIN))
    wide = wide if amount.relation == "=" else 0.0
    return replace(part, claimed=amount.value, relation=amount.relation, tolerance=wide, unit=unit)


def quantity(
    what: str, zh: str, model: str = "", setup: Values | None = None, unit: str = "", **args: Any
) -> Part:
    """A part of kind `quantity`; `case` and `over` go to the part, the rest to the check."""
    over, (case, case_zh) = args.pop("over", None), args.pop("case", ("", ""))
    return Part(
        what,
        "quantity",
        0,
        zh,
        unit=unit,
        model=model,
        setup=dict(setup or {}),
        args=args,
        over=over,
        case=case,
        case_zh=case_zh,
    )


def text_of_amount(said: Stated, lang: str = "en") -> str:
    """An amount as a sentence has it."""
    return amount_text(said.amount, lang)
