"""memplan fit: what fits a GPU, for each method; what to change; which method; which GPU. Formula only, a
whole answer in under a second.

The parts are elsewhere: `frontier` (exact boundaries), `changes` (single changes and the waterfall), `decide`
(the method), `cards` (which GPU, how many, which model). Here they become one answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memplan.planner import __version__
from memplan.planner.answers.fit.changes import Effect, remedy, single_changes, waterfall
from memplan.planner.answers.fit.decide import CONSIDERED, Candidate, Decision, Prefer, Remedy, decide
from memplan.planner.answers.fit.frontier import BATCHES, Cell, Room, Structure, need
from memplan.planner.answers.fit.gpus import CardChoice, choose_cards
from memplan.planner.answers.fit.suggest import changed, under
from memplan.planner.answers.parts import parts
from memplan.planner.answers.verdict import Word, not_counted, uncounted_of, withheld
from memplan.planner.formula.engine import plan, rank_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.prediction import Parts
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.progress import tell
from memplan.planner.tables.units import gib

SCHEMA = "memplan.fit/1"
TRACED = (
    "traced: single changes, other numbers of GPUs and the grid are searched only for families that the "
    "formula knows"
)
"""What an answer by traces leaves out."""
METHODS_COMPARED = ("full", "lora", "adalora", "qlora")


@dataclass(frozen=True, slots=True)
class MethodFit:
    """What one method can do on the GPU. Boundaries are None where nothing fits; `error` says why a method
    could not be evaluated. Where something is not counted the verdict is None (unless it is `no`), the
    boundaries are upper bounds, and `holds` says that what is counted fits.
    """

    method: str
    setup: Setup | None
    device_bytes: int = 0
    verdict: Word | None = "no"
    largest_batch: int | None = None
    longest_sequence: int | None = None
    frontier: tuple[tuple[int, int | None], ...] = ()
    cells: tuple[Cell, ...] = ()
    trainable_parameters: int = 0
    checkpoint_bytes: int = 0
    error: str | None = None
    holds: bool = False

    @property
    def fits(self) -> bool | None:
        """Whether the verdict is that it fits, margin included; None where there is no verdict."""
        return None if self.verdict is None else self.verdict == "fits"

    def to_document(self) -> dict[str, Any]:
        """The method as the JSON of `fit` has it."""
        if self.error is not None:
            return {"method": self.method, "error": self.error}
        return {
            "method": self.method,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
            "verdict": self.verdict,
            "largest_micro_batch": self.largest_batch,
            "longest_sequence": self.longest_sequence,
            "trainable_parameters": self.trainable_parameters,
            "checkpoint_bytes": self.checkpoint_bytes,
            "frontier": [
                {"micro_batch": batch, "longest_sequence": sequence} for batch, sequence in self.frontier
            ],
            "cells": [cell.to_document() for cell in self.cells],
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """The whole answer of `memplan fit`."""

    model: str
    gpu: Gpu
    setup: Setup
    methods: tuple[MethodFit, ...]
    changes: tuple[Effect, ...]
    waterfall: tuple[Effect, ...]
    decision: Decision
    cards: CardChoice  # for the setup that was asked for
    chosen_cards: CardChoice | None  # for the decision; None where it is what was asked for, or none
    error: float
    chosen: MethodFit | None = None  # the decision with its changes; None where nothing fits
    not_modelled: tuple[str, ...] = ()  # what is not counted: no verdict says `fits`, sizes are lower bounds
    parts: Parts | None = None  # of the setup that was asked for: loading and the step apart
    typed: str = ""  # what a person types for the model; empty: its name
    engine: str = "formula"
    lengths: Mapping[str, Any] | None = None  # of a dataset: the setup is that of its longest batch

    def method(self, name: str) -> MethodFit:
        """One method's answer; KeyError where it was not asked for."""
        return next(fit for fit in self.methods if fit.method == name)

    @property
    def asked(self) -> MethodFit:
        """The answer for the setup that was asked for."""
        return self.method(self.setup.method)

    def to_document(self) -> dict[str, Any]:
        """The JSON of `fit`."""
        gpu = {
            "name": self.gpu.name,
            "usable_bytes": self.gpu.usable_bytes,
            "context_bytes": self.gpu.context_bytes,
        }
        return {
            "schema": SCHEMA,
            "memplan_version": __version__,
            "engine": self.engine,
            "model": self.model,
            "gpu": gpu,
            "setup": self.setup.to_document(),
            "worst_error": self.error or None,
            "methods": [fit.to_document() for fit in self.methods],
            "not_modelled": list(self.not_modelled),
            "parts": self.parts.to_document() if self.parts is not None else None,
            "changes": [self._effect(effect) for effect in self.changes],
            "waterfall": [self._effect(effect) for effect in self.waterfall],
            "decision": self.decision.to_document(),
            "cards": self.cards.to_document(),
            "chosen_cards": self.chosen_cards.to_document() if self.chosen_cards else None,
            **({"lengths": dict(self.lengths)} if self.lengths is not None else {}),
        }

    def _effect(self, effect: Effect) -> dict[str, Any]:
        document = effect.to_document()
        return document | {"fits": None} if effect.fits and self.not_modelled else document


def fit(
    spec: ModelSpec,
    setup: Setup,
    gpu: Gpu,
    *,
    error: float = 0.0,
    methods: Iterable[str] = METHODS_COMPARED,
    prefer: Prefer = "quality",
    tasks: int = 1,
    serve: bool = False,
    not_modelled: Sequence[str] = (),
) -> Fit:
    """What fits `gpu` around `setup`, method by method. `error` is the formula's recorded worst error (a
    fraction), 0 for its bare numbers; `not_modelled` names what else the run needs and nothing counts.

    Raises UsageError where the formula has no rule for the model, or the setup's own method cannot be
    evaluated.
    """
    room = Room(gpu, error).around(spec, setup)
    missing = tuple(
        dict.fromkeys((*not_modelled, *filter(None, (spec.uncounted,)), *uncounted_of(setup, gpu)))
    )
    trains = METHODS[setup.method].trains != "nothing"
    names = dict.fromkeys((*methods, setup.method)) if trains else (setup.method,)
    found = []
    for name in names:
        tell(name)
        found.append(method_fit(spec, setup, name, room, missing=missing))
    asked = next(entry for entry in found if entry.method == setup.method)
    if asked.error is not None:
        raise UsageError(asked.error)
    able = [entry for entry in found if entry.error is None]
    candidates = {
        entry.method: Candidate(
            entry.method, entry.holds, entry.device_bytes, entry.checkpoint_bytes, _remedy(spec, entry, room)
        )
        for entry in able
    }
    decision = decide(candidates, prefer=prefer, tasks=tasks, serve=serve) if trains else held(asked)
    if missing and decision.method is not None:
        decision = bounded(decision, candidates, missing)
    return Fit(
        model=spec.name,
        gpu=gpu,
        setup=setup,
        methods=tuple(found),
        changes=tuple(single_changes(spec, setup, room)),
        waterfall=() if asked.holds else tuple(waterfall(spec, setup, room)),
        decision=decision,
        cards=choose_cards(spec, setup, error, missing=missing),
        chosen_cards=_cards_of(spec, decision, able, setup, error, missing),
        error=error,
        chosen=_chosen(spec, decision, able, room, missing),
        not_modelled=missing,
        parts=None if missing else parts(plan(spec, setup), gpu),
    )


def bounded(decision: Decision, candidates: Mapping[str, Candidate], missing: tuple[str, ...]) -> Decision:
    """A decision where something is not counted: the first method whose counted bytes the GPU holds."""
    this = candidates[str(decision.method)]
    need = this.device_bytes if this.fits or this.remedy is None else this.remedy.device_bytes
    return replace(decision, reasons=(f"it needs at least {gib(need)}", not_counted(missing)))


def _chosen(
    spec: ModelSpec, decision: Decision, able: list[MethodFit], room: Room, missing: tuple[str, ...]
) -> MethodFit | None:
    """The method chosen, with the changes that it needs."""
    entry = next((entry for entry in able if entry.method == decision.method), None)
    if entry is None or entry.setup is None or not decision.fields:
        return entry
    return method_fit(spec, changed(entry.setup, decision.fields), entry.method, room, missing=missing)


def held(asked: MethodFit) -> Decision:
    """Where nothing trains there is nothing to choose: whether weights and cache are held."""
    word = "fit" if asked.holds else "do not fit"
    return Decision(
        asked.method if asked.holds else None,
        (f"weights and KV cache {word}: they need {gib(asked.device_bytes)}",),
    )


def _cards_of(
    spec: ModelSpec,
    decision: Decision,
    able: list[MethodFit],
    setup: Setup,
    error: float,
    missing: Sequence[str],
) -> CardChoice | None:
    """The smallest GPU for the method chosen, with the changes that it needs, where that is not what was
    asked for.
    """
    chosen = next((entry.setup for entry in able if entry.method == decision.method), None)
    if chosen is None or (chosen is setup and not decision.fields):
        return None
    return choose_cards(spec, changed(chosen, decision.fields), error, missing=missing)


def _remedy(spec: ModelSpec, entry: MethodFit, room: Room) -> Remedy | None:
    """The mild changes with which a method fits, for those that the decision considers and that do not fit
    without.
    """
    return (
        None
        if entry.holds or entry.setup is None or entry.method not in CONSIDERED
        else remedy(spec, entry.setup, room)
    )


def method_fit(
    spec: ModelSpec,
    setup: Setup,
    method: str,
    room: Room,
    batches: Iterable[int] = BATCHES,
    missing: Sequence[str] = (),
) -> MethodFit:
    """One method's boundaries on a GPU, what the person chose kept; `missing` is not counted. A method that
    contradicts those choices has `error` set.
    """
    try:
        this = under(setup, method)
        room = room.around(spec, this)
        asked = need(spec, this, room.error)
        structure = Structure(spec, this, room)
        parameter_table, named = (
            structure.symbolic.parameter_table,
            {"B": this.micro_batch, "S": this.sequence_length, "R": rank_of(this)},
        )
    except UsageError as problem:
        return MethodFit(method, None, error=str(problem))
    word = asked.word(room.gpu)
    return MethodFit(
        method,
        this,
        asked.device_bytes(room.gpu),
        withheld(word, (*missing, *uncounted_of(this, room.gpu))),
        structure.largest_batch(),
        structure.longest_sequence(),
        tuple(structure.frontier(batches)),
        tuple(structure.cells(batches)),
        parameter_table.trainable_parameters().evaluate(named),
        parameter_table.checkpoint_bytes().evaluate(named),
        holds=word == "fits",
    )


def advise(spec: ModelSpec, setup: Setup, gpu: Gpu, error: float = 0.0) -> list[str]:
    """In sentences, what would have fitted on a GPU: the largest micro-batch, the longest sequence, the best
    single changes.
    """
    room = Room(gpu, error)
    this = method_fit(spec, setup, setup.method, room, missing=tuple(uncounted_of(setup, gpu)))
    if this.error is not None:
        return [this.error]
    lines = []
    if this.fits:
        needed = f"{gib(this.device_bytes)} of {gib(gpu.usable_bytes)}"
        lines.append(
            f"the formula predicts that this setup fits ({needed}): something else was using the "
            "GPU, or memory was fragmented"
        )
    batch = "none fits" if this.largest_batch is None else this.largest_batch
    lines.append(f"largest micro-batch at {setup.sequence_length:,} tokens: {batch}")
    if this.longest_sequence is not None:
        lines.append(f"longest sequence at micro-batch {setup.micro_batch}: {this.longest_sequence:,} tokens")
    enough = [effect for effect in single_changes(spec, setup, room) if effect.fits][:3]
    if not enough and not this.fits:
        enough = waterfall(spec, setup, room)
        lines.append("no single change is enough; applied in order:")
    return lines + [
        f"needs {gib(effect.after)} with {effect.text.replace(': ', ' (', 1)}), {gib(effect.saved)} less"
        for effect in enough
    ]
