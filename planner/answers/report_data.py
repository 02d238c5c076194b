"""What the report page computes with: the formula's own structures (report_structures.py), the changes that
lead from one to another, the GPUs, and the setup that was asked for.

The page holds no second formula: its sizes are the expressions that `plan` evaluates, its log and its events
those of the formula, and tests compare the two. Sizes are bytes.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from memplan.planner.answers.fit.frontier import Room, need
from memplan.planner.answers.fit.kernels import cannot_run
from memplan.planner.answers.fit.suggest import CHOSEN
from memplan.planner.answers.report_changes import page_changes
from memplan.planner.answers.report_structures import PageContents, class_of
from memplan.planner.answers.verdict import margin_of, uncounted, uncounted_of
from memplan.planner.formula.engine import SEGMENT, rank_of, whole_segments
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.inputs.tasks import shortest
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import Gpu, gpus
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.torch_versions import TORCH_VERSIONS

LONGEST = 131072
SCALES = (0.25, 1, 4, 16)
"""Sequence lengths, as shares of the setup's own, at which the page knows what is reserved where no run is
written.
"""


@dataclass(frozen=True, slots=True)
class ReservedTable:
    """What a structure reserves, tabulated: (allocated, reserved) bytes of its replays in order, `error` the
    margin of its verdict. Between two of them the page goes along the line through both, as here.
    """

    points: tuple[tuple[int, int], ...]
    error: float

    def reserved(self, allocated: int) -> int:
        """Reserved bytes where so many are allocated, in whole segments; the replay's own at its points."""
        last = len(self.points) - 1
        after = next((n for n, (size, _) in enumerate(self.points) if size >= allocated), last)
        (left, low), (right, high) = self.points[max(0, after - 1)], self.points[min(last, max(1, after))]
        slope = (high - low) / (right - left) if right > left else 1
        return whole_segments(max(allocated, math.floor(low + (allocated - left) * slope + 0.5)))


def reserved_table(spec: ModelSpec, setup: Setup, error: float) -> ReservedTable:
    """The table of one structure at its own micro-batch and rank."""
    longest = min(LONGEST, spec.max_positions or LONGEST)
    lengths = {max(shortest(setup), min(longest, round(scale * setup.sequence_length))) for scale in SCALES}
    found = [need(spec, setup.with_(sequence_length=length), error) for length in sorted(lengths)]
    points = sorted((one.allocated, one.reserved) for one in found)
    rising = accumulate((reserved for _, reserved in points), max)  # more tokens never reserve less
    table = dict(zip((allocated for allocated, _ in points), rising, strict=True))
    return ReservedTable(tuple(table.items()), max(one.margin for one in found))


def script(made: PageContents) -> str:
    """A JavaScript object: the members of report_tables.py, `of`: what is written of each structure by its
    key, and `changes` of each (report_changes.py). Adds to `made` what changes lead to.
    """
    changes = {key: [one.to_document() for one in each] for key, each in page_changes(made).items()}
    of, led = (json.dumps(each, separators=(",", ":")) for each in (made.of, changes))
    return f'({{{made.tables.javascript()},\n"of": {of},\n"changes": {led}}})'


def packed(text: str) -> str:
    """Text compressed for a page (gzip, base64); the same text always gives the same characters."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def data(
    made: PageContents,
    prediction: Prediction,
    gpu: Gpu,
    room: Room,
    model: str,
    measured: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Everything else that the page's script needs, as JSON types. `model`: what a command calls it."""
    spec, setup, found = made.spec, made.setup, made.found
    tables = {e.key: reserved_table(spec, e.setup, 0.0) for e in found if e.key not in made.replayed}
    errors = {e.key: margin_of("formula", e.setup) for e in found if e.key in made.replayed}
    own = room.error or prediction.survival
    return {
        "model": spec.name,
        "command": _command(model, setup),
        "recipe": setup.recipe,
        "components": list(COMPONENTS),
        "keys": [entry.key for entry in found],
        "refused": made.refused,
        "complete": made.complete,
        "offered": {name: list(dict.fromkeys(getattr(e, name) for e in found)) for name in PICKERS},
        "ranks": {entry.method: _rank_option(entry.method) for entry in found},
        "fixed": {entry.key: entry.fixed_rank for entry in found if entry.fixed_rank is not None},
        "trains": {entry.method: METHODS[entry.method].trains for entry in found},
        "state": _state(setup, gpu),
        "said": [name for name in ("loss", "attention") if setup.origins.get(name) in CHOSEN],
        "shortest": shortest(setup),
        "longest": min(LONGEST, spec.max_positions or LONGEST),
        "segment": SEGMENT,
        "ties": TORCH_VERSIONS[setup.torch].equal_blocks,
        "errors": errors | {key: table.error for key, table in tables.items()},
        "reserved": {key: table.points for key, table in tables.items()},
        "uncounted": {e.key: 0 if own else uncounted(e.setup) for e in found},
        "cards": _cards(spec, setup, gpu),
        "missing": list(prediction.not_modelled),
        "traced": _traced(prediction) if prediction.engine == "trace" else None,
        "measured": measured or {},
    }


MOST_TRACED = 100


def _traced(prediction: Prediction) -> dict[str, Any]:
    """What the trace says of the setup asked for: its peak, verdict, moments, and tensors, of which the
    smaller ones are one row for each component.
    """
    peak, rows = prediction.peak, prediction.peak_rows
    tensors = [
        {
            "name": row.name,
            "shape": list(row.shape),
            "dtype": row.dtype,
            "count": row.count,
            "bytes": row.charged,
            "component": row.component,
            "why": row.why,
        }
        for row in rows[:MOST_TRACED]
    ]
    for component in COMPONENTS:
        rest = [row for row in rows[MOST_TRACED:] if row.component == component]
        if rest:
            size, count = sum(row.charged for row in rest), sum(row.count for row in rest)
            one = {"name": f"{len(rest)} smaller kinds of tensors", "shape": [], "dtype": "", "why": ""}
            tensors.append({**one, "count": count, "bytes": size, "component": component})
    return {
        "moment": peak.moment,
        "allocated": peak.allocated_bytes,
        "reserved": peak.reserved_bytes,
        "word": prediction.gpus[0].verdict,
        "moments": [
            [each.moment, each.allocated_bytes, [each.components[name] for name in COMPONENTS]]
            for each in prediction.moments
        ],
        "tensors": sorted(tensors, key=lambda one: -int(one["bytes"])),
    }


PICKERS = ("method", "checkpointing", "loss", "attention")
"""Setup fields that a picker of the page sets, beside the GPU."""


def _state(setup: Setup, gpu: Gpu) -> dict[str, Any]:
    """Where the page's controls begin."""
    return {
        "batch": setup.micro_batch,
        "seq": setup.sequence_length,
        "rank": rank_of(setup),
        **{name: getattr(setup, name) for name in PICKERS},
        "card": gpu.name,
    }


def _cards(spec: ModelSpec, setup: Setup, gpu: Gpu) -> list[dict[str, Any]]:
    """Every GPU of the table and the one that was named, by usable size: `missing` is what is not counted on
    it, `cannot` why it cannot run the setup asked for.
    """

    @cache
    def refuses(capability: tuple[int, int]) -> str | None:
        return cannot_run(spec, setup, next(g for g in gpus().values() if g.capability == capability))

    named = {card.name: card for card in gpus().values()} | {gpu.name: gpu}
    return [
        {
            "name": card.name,
            "usable": card.usable_bytes,
            "context": card.context_bytes,
            "kernels": class_of(card),
            "missing": list(uncounted_of(setup, card)),
            "cannot": refuses(card.capability) if card.capability in _capabilities() else None,
        }
        for card in sorted(named.values(), key=lambda card: (card.usable_bytes, card.name))
    ]


@cache
def _capabilities() -> frozenset[tuple[int, int]]:
    return frozenset(gpu.capability for gpu in gpus().values() if gpu.capability is not None)


CONTROLLED = (*PICKERS, "micro_batch", "sequence_length", "rank", "init_rank", "gpu")
"""Setup fields that the page's controls set, or that its command says by an option of their own."""


def _rank_option(method: str) -> str:
    """What precedes the rank on a command line; empty where the method has none."""
    if method == "adalora":
        return "--set init_rank="
    return "--rank " if "rank" in METHODS[method].reads else ""


def _command(model: str, setup: Setup) -> str:
    """MODEL and the options that a command has for this setup beside those of the page's controls, quoted for
    a shell.
    """
    chosen = {
        name: getattr(setup, name)
        for name, origin in setup.origins.items()
        if origin in CHOSEN and name not in (*CONTROLLED, "recipe")
    }
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in chosen.items()}
    words = [model, "--recipe", setup.recipe, *(w for k, v in values.items() for w in ("--set", f"{k}={v}"))]
    return shlex.join(words)
