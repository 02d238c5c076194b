"""What a row of RECIPES holds (planner/tables/recipes.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.tables.loops import Loop


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training stack: its loop, Setup defaults, those per method, and where each was read (`ours` where
    it is our choice).
    """

    name: str
    summary: str
    loop: Loop
    defaults: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[
        tuple[str, str], ...
    ] = ()  # (the setting whose default needs a word, or "" for the stack itself, the word)
    when: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = ()  # (fields, what then changes)
    whole_updates: bool = False
    """It pins a peft before 0.21, whose update of an adapted parameter is as large as the parameter."""
    dropout_beside_experts: bool = False
    """Where PEFT adapts experts of its own accord, they go without the dropout that it refuses there."""

    def layers(self, method: str, trains: str, quantized: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """This recipe's defaults for one method, weakest first, each with the origin that Setup remembers."""
        yield f"recipe {self.name}", self.defaults
        for group, applies in (("adapters", trains == "adapter"), ("quantized", quantized)):
            if applies and group in self.methods:
                yield f"recipe {self.name} with {group}", self.methods[group]
        yield f"recipe {self.name} with {method}", self.methods.get(method, {})
