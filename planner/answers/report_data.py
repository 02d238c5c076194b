"""What the report page computes with: the formula's own symbolic rows as JavaScript, one structure for each
method and checkpointing.

The page does not hold a second formula: each structure's functions are emitted by `expr.javascript` from the
expressions that `plan` evaluates, and a test compares the two on a grid. Sizes are bytes, as BigInt.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from memplan.planner.answers.fit.frontier import Room, need
from memplan.planner.answers.fit.suggest import CHOSEN, changed
from memplan.planner.answers.report_runs import SymbolicRun, symbolic_run
from memplan.planner.answers.report_tables import PageTables
from memplan.planner.answers.report_tapes import written_guard, written_structure
from memplan.planner.answers.verdict import margin_of, uncounted
from memplan.planner.formula.engine import SEGMENT, rank_of, symbolic, whole_segments
from memplan.planner.inputs.models import names
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.progress import tell
from memplan.planner.tables.torch_versions import TORCH_VERSIONS

METHODS_SHOWN = ("full", "lora", "adalora", "qlora")
LONGEST = 131072
MOST_RUNS = 180_000
"""Bytes, compressed, of the runs that a page has room for; structures beyond it have a table of replays."""


@dataclass(frozen=True, slots=True)
class ReportStructure:
    """One discrete structure of the page: its key and the setup behind it."""

    method: str
    checkpointing: str
    setup: Setup

    @property
    def key(self) -> str:
        """The name of this structure in the page's data."""
        return f"{self.method}|{self.checkpointing}"


def structures(spec: ModelSpec, setup: Setup) -> list[ReportStructure]:
    """Every method with and without checkpointing that the formula has a rule for; the setup's own first."""
    checkpointed = setup.checkpointing if setup.checkpointing != "none" else "non_reentrant"
    found: list[ReportStructure] = []
    for method in dict.fromkeys((setup.method, *METHODS_SHOWN)):
        for word in dict.fromkeys((setup.checkpointing, "none", checkpointed)):
            own = method == setup.method and word == setup.checkpointing
            tell(f"the step of {method}, checkpointing {word}")
            try:
                this = setup if own else changed(setup, {"method": method, "checkpointing": word})
                symbolic(spec, this)
            except UsageError:
                continue
            if this.checkpointing == word:
                found.append(ReportStructure(method, word, this))
    return found


SCALES = (0.25, 1, 4, 16)
"""Sequence lengths, as shares of the setup's own, at which the page knows what the replay reserves."""


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
    lengths = {max(1, min(longest, round(scale * setup.sequence_length))) for scale in SCALES}
    found = [need(spec, setup.with_(sequence_length=length), error) for length in sorted(lengths)]
    points = sorted((one.allocated, one.reserved) for one in found)
    rising = accumulate((reserved for _, reserved in points), max)  # more tokens never reserve less
    table = dict(zip((allocated for allocated, _ in points), rising, strict=True))
    return ReservedTable(tuple(table.items()), max(one.margin for one in found))


Runs = dict[str, list[SymbolicRun]]


def runs_of(spec: ModelSpec, found: Iterable[ReportStructure]) -> Runs:
    """By structure the run of each guard, of as many structures as a page has room for, in their order; none
    of one that the allocator is not written for, or that GPUs share.
    """
    runs: Runs = {}
    known: set[str] = set()
    room = MOST_RUNS
    for entry in found:
        tell(f"events of {entry.method}, checkpointing {entry.checkpointing}")
        own = [symbolic_run(spec, entry.setup, guard) for guard in symbolic(spec, entry.setup).guards()]
        made = [run for run in own if run is not None]
        new = {text for run in made for text in (run.steps, run.which)} - known
        size = sum(len(gzip.compress(text.encode(), 6)) for text in new)
        if len(made) == len(own) and size <= room:
            room -= size
            known |= new
            runs[entry.key] = made
    return runs


def script(spec: ModelSpec, found: Iterable[ReportStructure], runs: Runs) -> str:
    """A JavaScript object: the members of report_tables.py, and `of`: for each structure's key what
    report_tapes.py writes of it and of its guards, each with its `run` (report_runs.py) or null.
    """
    tables = PageTables()
    of = {}
    for entry in found:
        tell(f"expressions of {entry.method}, checkpointing {entry.checkpointing}")
        structure = symbolic(spec, entry.setup)
        guards = structure.guards()
        own = [run.written(tables) for run in runs.get(entry.key, ())] or [None] * len(guards)
        of[entry.key] = written_structure(structure, tables) | {
            "guards": [
                written_guard(structure, guard, tables) | {"run": run}
                for guard, run in zip(guards, own, strict=True)
            ]
        }
    return f'({{{tables.javascript()},\n"of": {json.dumps(of, separators=(",", ":"))}}})'


def packed(text: str) -> str:
    """Text compressed for a page (gzip, base64); the same text always gives the same characters."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def data(
    spec: ModelSpec,
    setup: Setup,
    prediction: Prediction,
    cards: Iterable[Gpu],
    gpu: Gpu,
    found: list[ReportStructure],
    runs: Runs,
    room: Room,
    measured: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Everything else that the page's script needs, as JSON types."""
    longest = min(LONGEST, spec.max_positions or LONGEST)
    tables = {entry.key: reserved_table(spec, entry.setup, 0.0) for entry in found if entry.key not in runs}
    errors = {entry.key: margin_of("formula", entry.setup) for entry in found if entry.key in runs}
    return {
        "model": spec.name,
        "command": _command(spec, setup),
        "recipe": setup.recipe,
        "components": list(COMPONENTS),
        "methods": list(dict.fromkeys(entry.method for entry in found)),
        "checkpointings": list(dict.fromkeys(entry.checkpointing for entry in found)),
        "keys": [entry.key for entry in found],
        "ranks": {entry.method: _rank_option(entry.method) for entry in found},
        "trains": {entry.method: METHODS[entry.method].trains for entry in found},
        "state": {
            "batch": setup.micro_batch,
            "seq": setup.sequence_length,
            "rank": rank_of(setup),
            "method": setup.method,
            "checkpointing": setup.checkpointing,
            "card": gpu.name,
        },
        "asked": prediction.moment(prediction.peak.moment).components,
        "longest": longest,
        "segment": SEGMENT,
        "ties": TORCH_VERSIONS[setup.torch].equal_blocks,
        "errors": errors | {key: table.error for key, table in tables.items()},
        "reserved": {key: table.points for key, table in tables.items()},
        "uncounted": {
            entry.key: 0 if room.error or prediction.survival else uncounted(entry.setup) for entry in found
        },
        "cards": [
            {"name": card.name, "usable": card.usable_bytes, "context": card.context_bytes}
            for card in _with(cards, gpu)
        ],
        "missing": list(prediction.not_modelled),
        "engine": prediction.engine,
        "measured": measured or {},
    }


CONTROLLED = ("method", "checkpointing", "micro_batch", "sequence_length", "rank", "init_rank", "gpu")
"""Setup fields that the page's controls set, or that its command says by an option of their own."""


def _rank_option(method: str) -> str:
    """What precedes the rank on a command line; empty where the method has none."""
    if method == "adalora":
        return "--set init_rank="
    return "--rank " if "rank" in METHODS[method].reads else ""


def _command(spec: ModelSpec, setup: Setup) -> str:
    """MODEL and the options that a command has for this setup beside those of the page's controls, quoted for
    a shell.
    """
    model = spec.name if spec.name in names() or "/" in spec.name else "MODEL"
    chosen = {
        name: getattr(setup, name)
        for name, origin in setup.origins.items()
        if origin in CHOSEN and name not in (*CONTROLLED, "recipe")
    }
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in chosen.items()}
    words = [model, "--recipe", setup.recipe, *(w for k, v in values.items() for w in ("--set", f"{k}={v}"))]
    return shlex.join(words)


def _with(cards: Iterable[Gpu], gpu: Gpu) -> list[Gpu]:
    named = {card.name: card for card in cards}
    named.setdefault(gpu.name, gpu)
    return sorted(named.values(), key=lambda card: card.usable_bytes)
