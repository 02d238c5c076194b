"""Which GPU: the smallest that holds a setup, how many share it, and the largest model that one holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.planner.answers.fit.frontier import Room, need, peak_of
from memplan.planner.answers.fit.kernels import cannot_run, kernels
from memplan.planner.answers.fit.suggest import CHOSEN, changed
from memplan.planner.answers.verdict import Need, uncounted_of, withheld
from memplan.planner.formula.engine import rank_of
from memplan.planner.formula.sharding.strategies import compute_dtype
from memplan.planner.formula.sharding.wiring import sharding_plan
from memplan.planner.inputs.models import find, index
from memplan.planner.inputs.setup import Setup
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import Gpu, common_gpus

MOST_CARDS = 1024
STRATEGIES = ("fsdp", "zero3", "zero2", "zero1", "ddp")


@dataclass(frozen=True, slots=True)
class CardChoice:
    """The smallest common GPU that holds the setup alone, and what it would need there. None where no
    single common GPU does, or something is not counted: no GPU smaller than `at_least` then does.
    """

    smallest: str | None
    smallest_bytes: int | None
    holding: tuple[str, ...]
    at_least: str | None = None

    def to_document(self) -> dict[str, Any]:
        """The choice of a GPU as the JSON of `fit` has it."""
        return {
            "smallest": self.smallest,
            "at_least": self.at_least,
            "device_bytes": self.smallest_bytes,
            "holding": list(self.holding),
        }


def choice(holding: Sequence[Gpu], need: Need, setup: Setup, missing: Sequence[str] = ()) -> CardChoice:
    """The choice of those GPUs, smallest first, on which all that is counted fits; `missing` is not."""
    if not holding:
        return CardChoice(None, None, ())
    first, size = holding[0].name, need.device_bytes(holding[0])
    sure = [g.name for g in holding if withheld("fits", (*missing, *uncounted_of(setup, g))) == "fits"]
    if first not in sure:
        return CardChoice(None, size, (), at_least=first)
    return CardChoice(first, size, tuple(sure))


def choose_cards(
    spec: ModelSpec,
    setup: Setup,
    error: float = 0.0,
    cards: Iterable[Gpu] | None = None,
    missing: Sequence[str] = (),
) -> CardChoice:
    """The smallest GPU that holds `setup`, judged with its own kernels; `holding` are the larger ones,
    judged with the same. `missing` is what else the run needs and nothing counts.
    """
    ordered = sorted(cards if cards is not None else common_gpus(), key=lambda gpu: gpu.usable_bytes)
    stays = _stays(spec, setup)
    needs: dict[object, Need] = {}
    for start, gpu in enumerate(ordered):
        room = Room(gpu, error)
        if not room.holds(stays):  # a kernel less to ask about
            continue
        if cannot_run(spec, setup, gpu) is not None:
            continue
        its = kernels(gpu) if gpu.capability is not None else None
        if its not in needs:
            own = setup.with_(gpu=gpu.name) if gpu.capability is not None else setup
            if not room.holds(peak_of(spec, own)):  # the tensors alone are too many: nothing to replay
                continue
            needs[its] = need(spec, own, error)
        if needs[its].fits(gpu):
            larger = [
                card
                for card in ordered[start:]
                if needs[its].fits(card) and cannot_run(spec, setup, card) is None
            ]
            return choice(larger, needs[its], setup, missing)
    return CardChoice(None, None, ())


def _stays(spec: ModelSpec, setup: Setup) -> int:
    """Bytes of the weights that stay on the device, as one rank keeps them: less than any peak."""
    rows = sharding_plan(spec, setup).resident()
    return sum(row.size.evaluate({"R": rank_of(setup)}) for row in rows if row.component == "weights")


@dataclass(frozen=True, slots=True)
class Shared:
    """How many GPUs share a setup under one strategy, and what one rank then needs. `count` is None where
    1,024 do not hold it.
    """

    parallel: str
    count: int | None
    device_bytes: int
    fits: bool
    needs: Mapping[str, Any] = field(default_factory=dict)  # Setup fields without which ranks share less

    def to_document(self) -> dict[str, Any]:
        """The strategy on several GPUs as the JSON of `fit` has it."""
        return {
            "parallel": self.parallel,
            "cards": self.count,
            "device_bytes": self.device_bytes,
            "fits": self.fits,
            "setup": dict(self.needs),
        }


def to_share(setup: Setup, parallel: str) -> dict[str, str]:
    """What lets ranks share 4-bit weights, where nobody chose their storage: as uint8 every rank would keep
    all of them (planner/formula/sharding/strategies.py).
    """
    wide = compute_dtype(setup)
    apart = parallel in ("fsdp", "zero3") and setup.quant_type in ("nf4", "fp4")
    chosen = setup.origins.get("quant_storage") in CHOSEN
    return {"quant_storage": wide} if apart and not chosen and setup.quant_storage != wide else {}


def fewest_cards(
    spec: ModelSpec, setup: Setup, gpu: Gpu, error: float = 0.0, parallel: str = "fsdp"
) -> int | None:
    """How many of `gpu` hold the setup when they share it; 1 where one alone does. None where 1,024 do not,
    or there is no rule.
    """
    found = share(spec, setup, gpu, error, parallel)
    return found.count if found is not None else None


def share(
    spec: ModelSpec, setup: Setup, gpu: Gpu, error: float = 0.0, parallel: str = "fsdp"
) -> Shared | None:
    """The fewest GPUs that hold the setup under one strategy, each with the setup's micro-batch. None where
    there is no rule for it.
    """
    needs = to_share(setup, parallel)

    def shared(count: int) -> Need:
        return need(spec, changed(setup, {**needs, "gpus": count, "parallel": parallel}), error)

    try:
        alone = need(spec, changed(setup, {"gpus": 1, "parallel": "none"}), error)
        if alone.fits(gpu):
            return Shared("none", 1, alone.device_bytes(gpu), True)
        if not (most := shared(MOST_CARDS)).fits(gpu):
            return Shared(parallel, None, most.device_bytes(gpu), False, needs)
        enough = 2
        while not shared(enough).fits(gpu):
            enough *= 2
        few = (
            enough // 2 + 1
        )  # padding can make a count need a little more than one below it: the bisection finds one that holds
        while few < enough:
            middle = (few + enough) // 2
            few, enough = (few, middle) if shared(middle).fits(gpu) else (middle + 1, enough)
        return Shared(parallel, enough, shared(enough).device_bytes(gpu), True, needs)
    except UsageError:
        return None


def share_alike(spec: ModelSpec, setup: Setup, gpu: Gpu, count: int, error: float = 0.0) -> list[Shared]:
    """What one rank needs under the other strategies on as many GPUs."""
    found = []
    for parallel in STRATEGIES:
        needs = to_share(setup, parallel)
        try:
            own = need(spec, changed(setup, {**needs, "gpus": count, "parallel": parallel}), error)
        except UsageError:
            continue
        found.append(Shared(parallel, count, own.device_bytes(gpu), own.fits(gpu), needs))
    return found


def largest_model(setup: Setup, gpu: Gpu, error: float = 0.0) -> tuple[str, int] | None:
    """The catalog's largest model that `setup` holds on a GPU, and its parameters; None where none does.

    Models go from the largest down; one whose weights alone (in the setup's precision) do not fit is passed
    over without its step.
    """
    room = Room(gpu, error)
    sized = sorted(((row["parameters"], name) for name, row in index().items()), reverse=True)
    for parameters, name in sized:
        if parameters * 4 // 8 > gpu.usable_bytes:  # not even 4 bits a weight
            continue
        try:
            spec = find(name).spec()
            if spec.max_positions is not None and setup.sequence_length > spec.max_positions:
                continue
            may = room.holds(_stays(spec, setup)) and room.holds(peak_of(spec, setup))
            if may and need(spec, setup, error).fits(gpu):
                return name, parameters
        except UsageError:
            continue
    return None
