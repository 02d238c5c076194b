"""Whose trainer a piece of Python calls: TRL's, transformers', or a loop of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memplan.planner.importers import hf, trl
from memplan.planner.importers.rules import Facts, Rule, setup_fields


@dataclass(frozen=True, slots=True)
class Stack:
    """Who trains: the table of its arguments, and what turns facts into Setup fields."""

    rules: dict[str, Rule]
    finish: Callable[[Facts, list[str]], dict[str, Any]]


def _with_trl(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    facts["_peft"] = facts.get("_peft", False)
    return {**trl.finish(facts, warnings), "recipe": "trl"}


def _with_trainer(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    hf.settle(facts, warnings, checkpointing=None if facts.get("_kbit", False) else False)
    return {**setup_fields(facts), "recipe": "hf"}


def _with_own_loop(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    hf.settle_checkpointing(facts, warnings, None, reentrant=False)
    return {**setup_fields(facts), "recipe": "raw"}


TRL, TRAINER = Stack(trl.RULES, _with_trl), Stack(hf.RULES, _with_trainer)
OWN_LOOP = Stack(hf.RULES, _with_own_loop)


def method_fields(facts: Facts, four_bit: bool) -> dict[str, Any]:
    """The method of a piece of Python, and LoraConfig's own defaults where it makes one."""
    if not facts.get("_peft"):
        return {"method": "qlora"} if four_bit else {"method": "full"}
    if facts.get("_type") == "ADALORA":
        method: dict[str, Any] = {
            "method": "adalora",
            **({"quant_type": facts.get("quant_type", "fp4")} if four_bit else {}),
        }
    else:
        method = {"method": trl.adapter_method(facts, True, four_bit)}
    if facts.get("_type") != "ADALORA":  # LoraConfig's own defaults, peft 0.21 tuners/lora/config.py
        method |= {
            "rank": facts.get("rank", 8),
            "alpha": facts.get("alpha", 8),
            "dropout": facts.get("dropout", 0.0),
        }
    return method | ({"quant_type": "int8"} if facts.get("_eight_bit") else {})
