"""The single changes of a page: which apply to each of its structures, and which structure each leads to, so
that the page evaluates them wherever its sliders are.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from memplan.planner.answers.fit.changes import COSTS, EXTRA
from memplan.planner.answers.fit.suggest import CHANGES, Change, changed
from memplan.planner.answers.report_structures import PageContents, ReportStructure, further, nearest
from memplan.planner.formula.engine import has_free_rank, rank_of, symbolic
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError

SLIDERS = {"micro_batch": "batch", "sequence_length": "seq", "rank": "rank"}
"""Setup fields that the page's sliders set, and what the page calls them."""
LARGE = 1024


@dataclass(frozen=True, slots=True)
class PageChange:
    """One change of one structure. `to`: the key of what it leads to; `halves`: the slider that it halves,
    where that says more than `above`; `rank`: the one rank that it holds for, None: any.
    """

    text: str
    cost: str
    to: str
    halves: str | None = None
    above: int = 0
    rank: int | None = None

    def to_document(self) -> dict[str, Any]:
        """The change as the page's script reads it."""
        return {
            "text": self.text,
            "cost": self.cost,
            "to": self.to,
            "halves": self.halves,
            "above": self.above,
            "rank": self.rank,
        }


LACKING = PageChange("", "", "")


def contents(spec: ModelSpec, setup: Setup, wide: bool = True) -> PageContents:
    """The structures of a page: those nearest to the setup, what the changes of its own lead to, and others
    while there is room. `wide`: with the other methods' losses and attentions.
    """
    made = PageContents(spec, setup)
    nearest(made)
    page_changes(made)  # they take their room before the others
    made.of = {entry.key: made.of[entry.key] for entry in made.found}
    further(made, wide)
    return made


def page_changes(made: PageContents) -> dict[str, list[PageChange]]:
    """By key the changes that apply, in the order in which Python tries them, LACKING for one whose structure
    the page lacks. For the setup asked for and its checkpointing, what they lead to is added to the page; for
    others a change is there if the page has its structure anyway.
    """
    known = {symbolic(made.spec, entry.setup): entry.key for entry in made.found}
    changes: dict[str, list[PageChange]] = {}
    for entry in made.found:
        own = _is_near(entry, made.setup)
        changes[entry.key] = []
        for change in (*CHANGES, *EXTRA):
            try:
                found = _change(made, entry, change, known, own)
            except UsageError:  # contradicts what the person chose, or has no rule for this model
                continue
            except LookupError:
                found = LACKING
            if found is not None:
                changes[entry.key].append(found)
    return changes


def _is_near(entry: ReportStructure, setup: Setup) -> bool:
    wanted = ("method", "loss", "attention", "gpu")
    return all(getattr(entry.setup, name) == getattr(setup, name) for name in wanted)


def _change(
    made: PageContents, entry: ReportStructure, change: Change, known: dict[Symbolic, str], own: bool
) -> PageChange | None:
    """One change of one structure; None where it does not apply. LookupError where the page lacks what it
    leads to.
    """
    sliders = {name for name in SLIDERS if name != "rank" or _slides_rank(entry.setup)}
    large = entry.setup.with_(**dict.fromkeys(sliders, LARGE))
    if not change.applies(large):
        return None
    fields = dict(change.fields(large))
    halves = next((name for name in fields if name in sliders), None)
    rest = {name: value for name, value in fields.items() if name != halves}
    target = changed(entry.setup, rest) if rest else entry.setup
    structure = symbolic(made.spec, target)
    to = known.get(structure)
    if to is None:
        if not own:
            raise LookupError
        to = known[structure] = f"+{len(known)}"
        made.of[to] = made.write(target)
    words = {name: f"{{{SLIDERS[name]}}}" if name == halves else value for name, value in fields.items()}
    return PageChange(
        change.text.format(**words),
        COSTS[change.kind],
        to,
        SLIDERS[halves] if halves else None,
        _applies_above(change, entry.setup, halves) if halves else 0,
        None if has_free_rank(target) else rank_of(target),
    )


def _slides_rank(setup: Setup) -> bool:
    """Whether the page's slider sets `rank`: it sets AdaLoRA's initial one, and none that is fixed."""
    return has_free_rank(setup) and setup.method != "adalora"


def _applies_above(change: Change, setup: Setup, name: str) -> int:
    """The largest number to which a change that halves a slider does not apply yet."""
    return bisect_left(range(1, LARGE), True, key=lambda n: change.applies(setup.with_(**{name: n})))
