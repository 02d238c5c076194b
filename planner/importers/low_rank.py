"""Optimizers of low rank as training files name them: rank, targets and projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.rules import (
    Facts,
    Rule,
    flag,
    ignored,
    integer,
    names,
    not_modelled,
    one_of_text,
    use,
)
from memplan.planner.tables.low_rank import ALL, ALL_BUT_HEAD
from memplan.planner.tables.optimizers import OPTIMIZERS

PROJECTIONS = ("std", "reverse_std", "right", "left")
FULL = "a projection from both sides (proj_type full)"
_NUMBERS = ("update_proj_gap", "scale", "scale_type")
"""Of GaLore's and APOLLO's arguments those that move no memory of a step that makes new projections."""


def arguments(key: str, value: Any) -> dict[str, str]:
    """An optimizer's arguments: `name=value, ...`, or a mapping (transformers 5.24 trainer_optimizer.py
    _parse_optim_args). What is neither is a name that no optimizer knows.
    """
    if isinstance(value, Mapping):
        return {str(name): str(each) for name, each in value.items()}
    pairs = [pair.partition("=") for pair in str(value).replace(" ", "").split(",") if pair]
    return {name: each for name, _, each in pairs}


def target_modules(key: str, value: Any) -> tuple[str, ...]:
    """optim_target_modules: parts of names, a regular expression, or all-linear."""
    if isinstance(value, str) and value.replace("_", "-") == ALL:
        return (ALL,)
    return (value,) if isinstance(value, str) and value else names(key, value)


def settle_low_rank(facts: Facts) -> str:
    """Turn the arguments of an optimizer of low rank into Setup fields; what of them no field follows, ""
    where all do. Other optimizers' arguments stay.
    """
    row, given = OPTIMIZERS.get(facts.get("optimizer", "")), facts.get("_optim_args") or {}
    if row is None or not row.low_rank:
        facts.pop("optim_targets", None)
        return ""
    left = dict(given)
    if "rank" in left:
        facts["optim_rank"] = integer("optim_args rank", left.pop("rank"))
    kind = left.pop("proj_type", "std")
    if kind in PROJECTIONS:
        facts["optim_projection"] = kind
    if left.get("proj") == "random":
        left.pop("proj")
    facts["_optim_args"] = {}
    strange = sorted(set(left) - {*_NUMBERS}) + ([] if kind in PROJECTIONS else ["proj_type"])
    return f"{', '.join(strange)} of {row.name}" if strange else ""


LLAMAFACTORY: dict[str, Rule] = {
    **{
        f"{kind}_{name}": use(f"_{kind}_{name}", read)
        for kind in ("galore", "apollo")
        for name, read in (
            ("rank", integer),
            ("target", names),
            ("layerwise", flag),
            ("proj_type", one_of_text(*PROJECTIONS, "full")),
        )
    },
    **{f"use_{kind}": use(f"_use_{kind}", flag) for kind in ("galore", "apollo")},
    "apollo_proj": not_modelled("a projection by singular value decomposition", ("random",)),
    **ignored("numbers of a projection", "galore_* apollo_*"),
}
"""LLaMA-Factory 0.9.5 hparams/finetuning_args.py."""
_KINDS = {
    "adamw_torch": "galore_adamw",
    "adamw_torch_fused": "galore_adamw",
    "adamw_bnb_8bit": "galore_adamw_8bit",
    "adamw_8bit": "galore_adamw_8bit",
    "paged_adamw_8bit": "galore_adamw_8bit",
    "adafactor": "galore_adafactor",
}
"""LLaMA-Factory 0.9.5 train/trainer_utils.py _create_galore_optimizer."""


def settle_llamafactory(facts: Facts) -> None:
    """LLaMA-Factory's GaLore and APOLLO: rank 16, every linear layer but the output projection, unless the
    file says other ones.
    """
    kind = next((each for each in ("galore", "apollo") if facts.get(f"_use_{each}")), None)
    if kind is None:
        return
    base = _KINDS.get(facts.get("optimizer", "adamw_torch"), "galore_adamw")
    facts["optimizer"] = base if kind == "galore" else "apollo_adamw"
    facts["optimizer_in_backward"] = facts.get(f"_{kind}_layerwise", False)
    facts["optim_rank"] = facts.get(f"_{kind}_rank", 16)
    found = facts.get(f"_{kind}_target", ("all",))
    facts["optim_targets"] = (ALL_BUT_HEAD,) if found == ("all",) else found
    projection = facts.get(f"_{kind}_proj_type", "std")
    if projection in PROJECTIONS:
        facts["optim_projection"] = projection
    else:
        facts["_lacks"] = {**facts.get("_lacks", {}), f"{kind}_proj_type": FULL}
