"""How long the batches are that a training run draws from a dataset: exact order statistics, no simulation.

A batch is padded to its longest row. Of N examples without replacement, as transformers' samplers shuffle an
epoch, k rows are all at most n long with probability C(c, k) / C(N, k), where c examples are; of a law, with
F(n)^k.

With group_by_length (transformers 5.24 trainer_pt_utils.py get_length_grouped_indices) 50 batches' worth of
shuffled examples (a quarter of the dataset, where that is less) are sorted, longest first, and cut into
batches: of M examples, of which K are longer than n, ceil(K / k) of M / k batches hold one. The longest
example of all is put into the first batch.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from memplan.planner.inputs import tasks
from memplan.planner.inputs.lengths import Lengths
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS

How = Literal["random", "by_length"]
MEGA_BATCH = 50  # batches that are sorted together
MOST_TERMS = 100_000
"""Steps over which the first of a kind is summed up exactly; beyond, as if steps had no edges."""
GRID = 128
"""Distinct lengths up to which the padding of sorted batches is exact; of more, the mean of an upper and a
lower sum over so many.
"""


@dataclass(frozen=True)
class Batches:
    """What a step draws: `rows` a micro-batch, `step_rows` on all GPUs, `group` rows that group_by_length
    takes for one batch. Rows are cut off at `limit` and padded to a multiple of `multiple`.
    """

    lengths: Lengths
    rows: int
    step_rows: int
    group: int
    how: How = "random"
    limit: int | None = None
    multiple: int = 1
    flat: bool = False  # one behind another, none padded
    _known: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)

    def padded(self, length: int) -> int:
        """Tokens of a row of a batch whose longest example has so many."""
        cut = length if self.limit is None else min(length, self.limit)
        return -(-cut // self.multiple) * self.multiple

    @property
    def worst(self) -> int:
        """Tokens of a row of the longest batch."""
        return self.padded(self.lengths.longest)

    @property
    def pads(self) -> bool:
        """Whether the longest row itself is padded."""
        longest = self.lengths.longest
        return self.worst > (longest if self.limit is None else min(longest, self.limit))

    @cached_property
    def values(self) -> tuple[int, ...]:
        """Every length that a batch can have, ascending."""
        return tuple(dict.fromkeys(map(self.padded, self.lengths.values)))

    def longer(self, length: int, rows: int | None = None) -> float:
        """The share of steps (of batches of so many rows) that are padded to more than `length` tokens."""
        if length >= self.worst:
            return 0.0
        examples = length // self.multiple * self.multiple  # longer ones are padded to more
        rows = self.step_rows if rows is None else rows
        key = examples, rows
        if key not in self._known:
            find = self._longer_sorted if self.how == "by_length" else self._longer_shuffled
            self._known[key] = min(1.0, max(0.0, find(self.lengths.up_to(examples), rows)))
        return self._known[key]

    def at_least(self, length: int) -> float:
        """The share of steps that are padded to so many tokens or more."""
        place = bisect_left(self.values, length)
        return 1.0 if place == 0 else self.longer(self.values[place - 1])

    def quantile(self, share: float) -> int:
        """The smallest length that so large a share of the steps does not exceed."""
        low, high = 0, len(self.values) - 1
        while low < high:
            middle = (low + high) // 2
            if 1 - self.longer(self.values[middle]) >= share - 1e-12:
                high = middle
            else:
                low = middle + 1
        return self.values[low]

    def first(self, length: int) -> float:
        """The step, counted from 1, in which a batch of so many tokens or more is met first, expected."""
        share = self.at_least(length)
        if share >= 1 or self.how == "by_length":
            return 1.0
        place = bisect_left(self.values, length)
        short = self.lengths.up_to(self.values[place - 1] // self.multiple * self.multiple)
        if self.lengths.examples is None:
            return 1 / share
        total, rows = self.lengths.examples, self.step_rows
        long = total - int(short)
        if total / rows > MOST_TERMS:  # its place among the examples, and half a step
            return (total + 1) / (long + 1) / rows + (rows - 1) / (2 * rows)
        return math.fsum(self._without(long, total, taken) for taken in range(0, total - long + 1, rows))

    @cached_property
    def padding(self) -> float:
        """The share of a batch's tokens that are padding, over the whole run."""
        tokens = self.lengths.mean if self.limit is None else self.lengths.mean_up_to(self.limit)
        return 1 - tokens / self.mean

    @cached_property
    def mean(self) -> float:
        """Tokens that a row of a micro-batch is padded to, on average."""
        values, exact = self.values, self.how == "random" or len(self.values) <= GRID
        if not exact:
            values = tuple(values[round(at * (len(values) - 1) / (GRID - 1))] for at in range(GRID))
        shares = [self.longer(value, self.rows) for value in values]
        found = float(values[0])
        for at in range(len(values) - 1):
            share = shares[at] if exact else (shares[at] + shares[at + 1]) / 2
            found += (values[at + 1] - values[at]) * share
        return found

    def drawn(self, seed: int, rows: int) -> Iterator[tuple[int, bool]]:
        """The steps of a run of one GPU, `rows` each, for ever, seeded, with replacement: tokens of a row,
        and whether any of them is padding.
        """
        draw = random.Random(seed).random
        together = rows if self.how == "random" else self._together
        longest = self.how == "by_length"
        while True:
            found = sorted((self.lengths.quantile(draw()) for _ in range(together)), reverse=True)
            if longest:
                found[0], longest = self.lengths.longest, False
            for at in range(0, together, rows):
                yield self._step(found[at : at + rows])

    def _step(self, rows: list[int]) -> tuple[int, bool]:
        """The longest row first, the shortest last. Flat, they are as long as they are on average."""
        if self.flat:
            return -(-sum(map(self.padded, rows)) // len(rows)), False
        length = self.padded(rows[0])
        shortest = rows[-1] if self.limit is None else min(rows[-1], self.limit)
        return length, shortest < length

    @property
    def _together(self) -> int:
        """Examples that are sorted together."""
        if self.lengths.examples is None:
            return MEGA_BATCH * self.group
        return max(1, min(MEGA_BATCH, self.lengths.examples // (4 * self.group))) * self.group

    def _longer_shuffled(self, short: float, rows: int) -> float:
        """`short`: how many examples (which share of them) are not longer."""
        if self.lengths.examples is None:
            return -math.expm1(rows * math.log(short)) if short else 1.0
        total = self.lengths.examples
        return 1 - self._without(total - int(short), total, min(rows, total))

    @staticmethod
    def _without(long: int, total: int, taken: int) -> float:
        """The probability that so many of all examples hold none of the long ones."""
        if taken > total - long:
            return 0.0
        if min(long, taken) <= 64:  # by the smaller of the two, whose roles are alike
            few, many = min(long, taken), max(long, taken)
            return math.prod((total - many - each) / (total - each) for each in range(few))
        return math.exp(_log_ways(total - long, taken) - _log_ways(total, taken))

    def _longer_sorted(self, short: float, rows: int) -> float:
        total, many = self.lengths.examples, self._together
        if total is None:
            counts = _binomial(many, 1 - short)
        else:
            many = min(many, total)
            counts = _hypergeometric(total, total - int(short), many)
        batches = -(-many // rows)
        return math.fsum(share * -(-count // rows) for count, share in counts) / batches


Counts = Iterator[tuple[int, float]]


def _binomial(many: int, share: float) -> Counts:
    """How many of so many draws are of a kind, each with its probability."""
    if share in (0.0, 1.0):
        yield (many if share else 0), 1.0
        return
    for count in range(many + 1):
        ways = _log_ways(many, count)
        yield count, math.exp(ways + count * math.log(share) + (many - count) * math.log1p(-share))


def _hypergeometric(total: int, kind: int, many: int) -> Counts:
    """The same of draws without replacement from `total`, of which `kind` are of the kind."""
    everything = _log_ways(total, many)
    for count in range(max(0, many - total + kind), min(many, kind) + 1):
        both = _log_ways(kind, count) + _log_ways(total - kind, many - count)
        yield count, math.exp(both - everything)


def _log_ways(total: int, taken: int) -> float:
    """ln C(total, taken)."""
    return math.lgamma(total + 1) - math.lgamma(taken + 1) - math.lgamma(total - taken + 1)


SAID = ("user", "import")


@dataclass(frozen=True)
class Loader:
    """A dataset's lengths and what the loader makes of them: rows cut off at `limit` (None: nobody said so),
    or full rows of several examples where it packs.
    """

    lengths: Lengths
    limit: int | None
    packs: bool

    def batches(self, setup: Setup, how: How | None = None) -> Batches:
        """The batches of a setup, drawn as it says or as `how` does."""
        rows = setup.micro_batch * tasks.rows(setup)
        step = rows * setup.gradient_accumulation
        drawn: How = "by_length" if setup.group_by_length else "random"
        multiple = 1 if setup.padding_free else setup.pad_to_multiple_of
        return Batches(
            self.lengths,
            rows,
            step * setup.gpus,
            step,
            how or drawn,
            self.limit,
            multiple,
            setup.padding_free,
        )

    def applied(self, setup: Setup) -> Setup:
        """The setup of the longest batch that the run meets: with a mask where a row of it is padded."""
        if self.packs:
            return setup
        found = self.batches(setup)
        changes: dict[str, object] = {"sequence_length": found.worst}
        if setup.origins.get("padded") not in SAID and not setup.padding_free:
            changes["padded"] = (found.rows > 1 and len(found.values) > 1) or found.pads
        origins = {**setup.origins, **dict.fromkeys(changes, "lengths")}
        return setup.with_(**changes, origins=origins)

    def of_any_batch(self, setup: Setup) -> Setup:
        """The same with a mask, which every micro-batch of more than one row has."""
        if setup.origins.get("padded") != "lengths" or len(self.lengths.values) == 1:
            return setup
        return setup.with_(padded=True)


def loader_of(lengths: Lengths, setup: Setup, positions: int | None = None) -> Loader:
    """What a setup's loader makes of these lengths. `positions`: how many the model has learned. Raises
    UsageError where a row is longer, and for a task or method that draws no rows from a dataset.
    """
    if TASKS[setup.task].generates:
        raise UsageError(f"--lengths: task '{setup.task}' samples its rows: give --seq and completion_length")
    if METHODS[setup.method].trains == "nothing":
        raise UsageError(f"--lengths: method '{setup.method}' trains on no dataset: give --seq")
    said = setup.origins.get("sequence_length") in SAID
    packs = not setup.padding_free and (
        setup.packed_documents > 1 or (setup.origins.get("padded") in SAID and not setup.padded)
    )
    found = Loader(lengths, setup.sequence_length if said or packs else None, packs)
    worst = found.batches(setup).worst
    if positions is not None and not packs and worst > positions:
        raise UsageError(
            f"--lengths: the longest row has {worst:,} tokens, the model {positions:,} positions: "
            f"--seq {positions} cuts rows off there"
        )
    return found
