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
