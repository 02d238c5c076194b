"""The discrete structures of a page: every method x checkpointing x loss x attention that a file has room
for, those nearest to the setup asked for first, and that setup on GPUs with other kernels.

What there is no room for, the page says as a command.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

from memplan.planner.answers.fit.kernels import kernels
from memplan.planner.answers.fit.suggest import changed
from memplan.planner.answers.report_runs import SymbolicRun, symbolic_run
from memplan.planner.answers.report_tables import PageTables
from memplan.planner.answers.report_tapes import written_guard, written_structure
from memplan.planner.formula.engine import has_free_rank, rank_of, symbolic
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, gpus
from memplan.planner.tables.progress import tell

METHODS_SHOWN = ("full", "lora", "qlora", "adalora")
LOSSES = ("full", "chunked", "fused")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
MOST_BYTES = 215_000
"""Compressed bytes of a file's texts: with base64 and the rest of a page below 400 kB."""
MOST_EVENTS = 3_000_000
"""Events of all runs that a file holds: ten seconds of work."""
MOST_SERVED = 1_000_000
"""The same of a page that is served, which can ask for more."""


Choice = tuple[str, str, str, str, int]


@dataclass(frozen=True, slots=True)
class ReportStructure:
    """One discrete structure of the page: what its pickers say, and the setup behind it. `kernels`: the place
    of its GPU's kernels in `kernel_classes`.
    """

    method: str
    checkpointing: str
    loss: str
    attention: str
    kernels: int
    setup: Setup

    @property
    def key(self) -> str:
        """The name of this structure in the page's data."""
        return "|".join((self.method, self.checkpointing, self.loss, self.attention, str(self.kernels)))

    @property
    def fixed_rank(self) -> int | None:
        """The one rank that the structure holds for; None where it holds for all."""
        return None if has_free_rank(self.setup) else rank_of(self.setup)


@cache
def kernel_classes() -> tuple[tuple[int, ...], ...]:
    """What kernels ask of GPUs, each answer once: GPUs of one class need the same memory."""
    return tuple(dict.fromkeys(kernels(gpu) for gpu in gpus().values()))


def class_of(gpu: Gpu | None) -> int:
    """The place of a GPU's kernels; of the GPU that is assumed where none is named."""
    return kernel_classes().index(kernels(gpu))


def _representative(which: int) -> str:
    """A GPU with these kernels, by name."""
    return next(gpu.name for gpu in gpus().values() if gpu.verified and class_of(gpu) == which)


@dataclass(slots=True)
class PageContents:
    """The structures of a page as they are found: `of` is what is written of each by key, `runs` how each
    replays; `refused`: why a key cannot run.
    """

    spec: ModelSpec
    setup: Setup
    found: list[ReportStructure] = field(default_factory=list)
    of: dict[str, dict[str, Any]] = field(default_factory=dict)
    replayed: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    tables: PageTables = field(default_factory=PageTables)
    events: int = 0
    tried: set[Choice] = field(default_factory=set)
    _written: dict[Symbolic, dict[str, Any]] = field(default_factory=dict)
    _runs: dict[str, list[SymbolicRun] | None] = field(default_factory=dict)

    def add(self, entry: ReportStructure) -> None:
        """Write a structure and its runs. UsageError where the formula has no rule for it."""
        written = copy.deepcopy(self.write(entry.setup))
        runs = self._runs_of(entry, written)
        if runs is not None:
            for guard, run in zip(written["guards"], runs, strict=True):
                guard["run"] = run.written(self.tables)
            self.replayed.add(entry.key)
        self.of[entry.key] = written
        self.found.append(entry)

    def write(self, setup: Setup) -> dict[str, Any]:
        """What is written of a structure, without runs. UsageError where the formula has no rule for it."""
        structure = symbolic(self.spec, setup)
        if structure not in self._written:
            for guard in structure.guards():  # refusals before anything is written
                structure.program(guard)
            guards = [
                {**written_guard(structure, guard, self.tables), "run": None} for guard in structure.guards()
            ]
            self._written[structure] = {**written_structure(structure, self.tables), "guards": guards}
        return self._written[structure]

    def _runs_of(self, entry: ReportStructure, written: dict[str, Any]) -> list[SymbolicRun] | None:
        """The run of each guard; None where the allocator is not written for it. Attentions that ask for the
        same have the same runs.
        """
        asked = json.dumps([entry.method, entry.checkpointing, entry.setup.allocator, written])
        if asked not in self._runs:
            guards = symbolic(self.spec, entry.setup).guards()
            runs = [symbolic_run(self.spec, entry.setup, guard) for guard in guards]
            made = [run for run in runs if run is not None]
            self._runs[asked] = made if len(made) == len(runs) else None
            self.events += sum(run.count for run in made)
        return self._runs[asked]


def nearest(made: PageContents) -> None:
    """Add each method and checkpointing with the setup's own loss and attention, whatever room they take."""
    for near, choice in _choices(made.setup, False):
        if near:
            _try(made, choice)


def further(made: PageContents, wide: bool) -> None:
    """Add what else pickers say, while there is room. `wide`: the other methods' losses and attentions too;
    else what is one picker from the setup asked for.
    """
    most = MOST_EVENTS if wide else min(MOST_EVENTS, MOST_SERVED)
    for near, choice in _choices(made.setup, wide):
        if near or choice in made.tried:
            continue
        if made.tables.compressed > MOST_BYTES or made.events > most:
            made.complete = False
            break
        _try(made, choice)


def _try(made: PageContents, choice: Choice) -> None:
    made.tried.add(choice)
    method, checkpointing, loss, attention, _ = choice
    tell(f"{method}, checkpointing {checkpointing}, loss {loss}, attention {attention}")
    try:
        entry = ReportStructure(*choice, _setup_of(made.setup, choice))
        if entry.setup.checkpointing == checkpointing:
            made.add(entry)
    except UsageError as refused:
        made.refused["|".join(map(str, choice))] = str(refused)


def _choices(setup: Setup, wide: bool) -> Iterator[tuple[bool, Choice]]:
    """What pickers can say, nearest to the setup first; whether it is near whatever room there is."""
    checkpointed = setup.checkpointing if setup.checkpointing != "none" else "non_reentrant"
    words = tuple(dict.fromkeys((setup.checkpointing, "none", checkpointed)))
    methods = tuple(dict.fromkeys((setup.method, *METHODS_SHOWN)))
    losses = tuple(dict.fromkeys((setup.loss, *LOSSES)))
    attentions = tuple(dict.fromkeys((setup.attention, *ATTENTIONS)))
    own = class_of(_gpu_of(setup))
    for method, word in product(methods, words):
        yield True, (method, word, setup.loss, setup.attention, own)
    others = [which for which in range(len(kernel_classes())) if which != own]
    for which in others if setup.device == "cuda" else ():
        yield False, (setup.method, setup.checkpointing, setup.loss, setup.attention, which)
    for word, loss, attention in product(words, losses, attentions):
        yield False, (setup.method, word, loss, attention, own)
    for method, word, loss, attention in product(methods, words, losses, attentions) if wide else ():
        yield False, (method, word, loss, attention, own)
    for which, method, word in product(others, methods, words) if wide and setup.device == "cuda" else ():
        yield False, (method, word, setup.loss, setup.attention, which)


def _gpu_of(setup: Setup) -> Gpu | None:
    from memplan.planner.tables.gpus import find_gpu

    return find_gpu(setup.gpu) if setup.gpu is not None else None


def _setup_of(setup: Setup, choice: Choice) -> Setup:
    """The setup with what the pickers say: itself where they say what it says. UsageError."""
    method, checkpointing, loss, attention, which = choice
    wanted = {"method": method, "checkpointing": checkpointing, "loss": loss, "attention": attention}
    fields: dict[str, Any] = {name: value for name, value in wanted.items() if value != getattr(setup, name)}
    if fields:  # what a new method would choose by itself is not what the pickers say
        fields = wanted
    if which != class_of(_gpu_of(setup)):
        fields["gpu"] = _representative(which)
    return changed(setup, fields) if fields else setup
