"""Choices that a method does not read: said aloud, never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.methods import METHODS, reads_of


def unread(setup: Setup) -> Iterator[str]:
    """One sentence for each choice of the user's own that this method does not read, such as a rank in full
    fine-tuning.
    """
    reads = reads_of(setup.method, setup.adapters)
    known = {name for row in METHODS.values() for name in row.reads}
    for name, origin in setup.origins.items():
        if origin == "user" and name in known and name not in reads:
            yield f"{name} has no effect: method '{setup.method}' does not use it"
