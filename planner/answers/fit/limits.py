"""How far one setup can go on a GPU: the largest micro-batch, the longest sequence."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.planner.answers.fit.frontier import Room, Structure
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest micro-batch at a setup's sequence length and the longest sequence at its micro-batch that
    the replay says `fits`; None where not even 1 does.
    """

    largest_batch: int | None
    longest_sequence: int | None


def limits(spec: ModelSpec, setup: Setup, gpu: Gpu, error: float = 0.0) -> Limits:
    """The limits of a setup on a GPU, by the formula. Raises UsageError where it has no rule."""
    structure = Structure(spec, setup, Room(gpu, error).around(spec, setup))
    return Limits(structure.largest_batch(), structure.longest_sequence())
