"""The allocator's replay: hand-derived sequences, a literal second implementation, and invariants on random
sequences.
"""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.allocator.native import OutOfMemory, Undecided, round_size
from memplan.planner.allocator.replay import MODES, Peaks, Replay, RunningReplay, replay, smallest_capacity

MIB = 2**20
BOTH = pytest.mark.parametrize("mode", ["native", "expandable"])
TIES = pytest.mark.parametrize("ties", ["address", "creation", "segment"])  # torch 2.11, 2.12, 2.13 and later


def alloc(key, nbytes):
    return ("alloc", key, nbytes)


def free(key):
    return ("free", key, 0)


def counters(events, **options):
    result = replay(events, **options)
    return list(result.allocated), list(result.reserved)


def test_small_requests_round_to_512_and_share_a_2_mib_segment():
    assert counters([alloc(0, 1), alloc(1, 513), alloc(2, MIB), free(1)]) == (
        [512, 1536, 1536 + MIB, 512 + MIB],
        [2 * MIB] * 4,
    )


def test_an_empty_storage_asks_for_nothing():
    assert counters([alloc(0, 0), alloc(1, 1), free(0)]) == ([0, 512, 512], [0, 2 * MIB, 2 * MIB])
    assert smallest_capacity([alloc(0, 0)]) == 0


@pytest.mark.parametrize(
    ("nbytes", "reserved"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 1, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (10 * MIB - 512, 20 * MIB),
    ],
)
def test_what_native_mode_reserves_for_one_request(nbytes, reserved):
    """The 10 MiB threshold is compared with the rounded request, exclusively."""
    assert counters([alloc(0, nbytes)])[1] == [reserved]


def test_a_large_remainder_up_to_1_mib_is_not_split_and_counts_as_allocated():
    """An 11 MiB request takes a 12 MiB segment whole; 11 MiB - 512 leaves more than 1 MiB, which is split
    off.
    """
    assert replay([alloc(0, 11 * MIB)]).block_bytes == {0: 12 * MIB}
    assert replay([alloc(0, 11 * MIB - 512)]).block_bytes == {0: 11 * MIB - 512}


def test_expandable_mode_splits_large_blocks_at_512_bytes():
    events = [alloc(0, 11 * MIB), alloc(1, 9 * MIB - 512), alloc(2, 512 * 3)]
    result = replay(events, mode="expandable")
    assert result.block_bytes == {0: 11 * MIB, 1: 9 * MIB - 512, 2: 1536}
    assert list(result.reserved) == [20 * MIB, 20 * MIB, 22 * MIB]


def test_expandable_mode_grows_by_what_the_free_tail_lacks():
    events = [alloc(0, 30 * MIB), alloc(1, 30 * MIB), free(0), free(1), alloc(2, 60 * MIB), alloc(3, MIB + 1)]
    assert counters(events, mode="expandable")[1] == [
        40 * MIB,
        60 * MIB,
        60 * MIB,
        60 * MIB,
        60 * MIB,
        80 * MIB,
    ]


def test_best_fit_takes_the_smallest_block_that_serves():
    events = [alloc(0, 40 * MIB), alloc(1, 30 * MIB), free(0), free(1), alloc(2, 29 * MIB)]
    assert replay(events).block_bytes[2] == 30 * MIB, "1 MiB is left over: not split"


def test_freed_neighbors_merge():
    events = [
        alloc(0, 4 * MIB),
        alloc(1, 4 * MIB),
        alloc(2, 12 * MIB),
        free(0),
        free(2),
        free(1),
        alloc(3, 20 * MIB),
    ]
    assert counters(events)[1] == [20 * MIB] * 7


def test_a_full_card_releases_cached_segments_and_retries():
    events = [alloc(0, 40 * MIB), free(0), alloc(1, 60 * MIB)]
    assert counters(events)[1] == [40 * MIB, 40 * MIB, 100 * MIB]
    tight = replay(events, capacity=60 * MIB)
    assert (list(tight.reserved), tight.retries, tight.oom) == ([40 * MIB, 40 * MIB, 60 * MIB], 1, None)
    failed = replay(events, capacity=58 * MIB)
    assert (len(failed.reserved), failed.retries, failed.oom) == (2, 1, 2)
    assert smallest_capacity(events) == 60 * MIB


def test_a_segment_with_a_block_in_use_cannot_be_released_in_native_mode_only():
    events = [alloc(0, 4 * MIB), alloc(1, 16 * MIB), free(1), alloc(2, 40 * MIB)]
    assert smallest_capacity(events) == 60 * MIB
    split = [alloc(0, 60 * MIB), free(0), alloc(1, 20 * MIB), alloc(2, 70 * MIB)]
    assert smallest_capacity(split) == 130 * MIB
    assert smallest_capacity(split, "expandable") == 100 * MIB, "40 MiB free at the end grow by two granules"
    hole = [
        alloc(0, 40 * MIB),
        alloc(1, 10 * MIB),
        free(0),
        alloc(2, 60 * MIB),
        free(2),
        alloc(3, 10 * MIB),
        alloc(4, 50 * MIB),
    ]
    assert replay(hole, mode="expandable", capacity=80 * MIB).oom is None, (
        "the granules of the hole are unmapped and mapped again"
    )


def test_a_fraction_is_stricter_than_the_cards_end_in_expandable_mode():
    events = [alloc(0, 50 * MIB), free(0), alloc(1, 70 * MIB)]
    assert replay(events, mode="expandable", capacity=100 * MIB).retries == 0
    assert replay(events, mode="expandable", capacity=100 * MIB, fraction=True).retries == 1


def test_empty_cache_returns_what_is_not_in_use():
    events = [alloc(0, 30 * MIB), alloc(1, 512), free(0), ("empty_cache", 0, 0)]
    assert counters(events)[1][-1] == 2 * MIB
    assert counters(events, mode="expandable")[1][-1] == 2 * MIB


def test_peaks_of_a_range_include_what_was_there_before_it():
    result = replay([alloc(0, 30 * MIB), free(0), alloc(1, 512), alloc(2, 1024)])
    assert result.peaks() == Peaks(30 * MIB, 32 * MIB, 0)
    assert result.peaks(1).allocated == 30 * MIB, "the block is alive when the range starts"
    assert result.peaks(2) == Peaks(1536, 32 * MIB, 3)
    assert replay([]).peaks() == Peaks(0, 0, -1)


@pytest.mark.parametrize(
    ("events", "error"),
    [([free(7)], KeyError), ([alloc(0, 1), alloc(0, 1)], ValueError), ([("resize", 0, 1)], KeyError)],
)
def test_a_malformed_stream_is_refused(events, error):
    with pytest.raises(error):
        replay(events)


def test_nothing_needs_nothing():
    assert smallest_capacity([]) == 0 and smallest_capacity([("empty_cache", 0, 0)]) == 0


# Random sequences -------------------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(1, 5000),
    st.integers(MIB - 2048, MIB + 2048),
    st.integers(MIB, 11 * MIB),
    st.integers(10 * MIB - 1024, 60 * MIB),
    st.sampled_from([2 * MIB, 20 * MIB, 19 * MIB, 21 * MIB, 8 * MIB + 512]),
)


@st.composite
def streams(draw):
    """A well-formed stream: each step allocates, frees a storage that is alive, or (rarely) empties the
    cache.
    """
    events, live = [], []
    for key in range(draw(st.integers(1, 60))):
        choice = draw(st.integers(0, 19))
        if choice == 0:
            events.append(("empty_cache", 0, 0))
        if live and choice >= 10:
            events.append(free(live.pop(draw(st.integers(0, len(live) - 1)))))
        if choice < 16:
            events.append(alloc(key, draw(SIZES)))
            live.append(key)
    return events


def walk(allocator, block):
    """Every block of the segment that holds `block`, in address order."""
    while block.previous is not None:
        block = block.previous
    while block is not None:
        yield block
        block = block.next


@BOTH
@TIES
@settings(max_examples=100, deadline=None)
@given(events=streams(), capacity=st.one_of(st.none(), st.integers(1, 200)))
def test_invariants(mode, ties, events, capacity):
    """Blocks tile their segments without overlap, no two free ones touch, and the counters are sums over
    blocks.
    """
    allocator = MODES[mode](None if capacity is None else capacity * MIB, ties=ties)
    live = {}
    for kind, key, nbytes in events:
        try:
            if kind == "alloc":
                live[key] = (allocator.allocate(nbytes), round_size(nbytes))
            elif kind == "free" and key in live:
                allocator.release(live.pop(key)[0])
            elif kind == "empty_cache":
                allocator.empty_cache()
        except OutOfMemory:
            assert capacity is not None
        if capacity is not None:
            assert allocator.reserved <= capacity * MIB
        everything = {}
        cached = [b for pool in allocator.pools for b in pool.at.values()]
        for block in [b for b, _ in live.values()] + cached:
            previous = None
            for b in walk(allocator, block):
                everything[b.address] = b
                if previous is not None:
                    assert previous.address + previous.size == b.address
                    assert not (previous.free and b.free and previous.mapped == b.mapped), (
                        "free neighbors are merged"
                    )
                previous = b
        assert allocator.reserved == sum(b.size for b in everything.values() if b.mapped)
        used = [b for b in everything.values() if not b.free]
        assert sorted(b.address for b in used) == sorted(b.address for b, _ in live.values())
        for block, requested in live.values():
            slack = block.size - requested
            assert 0 <= slack <= (MIB if mode == "native" and not block.pool.small else 0)
        assert len(cached) == sum(b.free and b.mapped for b in everything.values())
        for pool in allocator.pools:
            assert pool.order == sorted(b.size << 48 | b.tie for b in pool.at.values())
            if ties == "address":
                assert all(b.tie == b.address for b in pool.at.values())
            assert len({b.tie for b in everything.values()}) == len(everything), "a tie is one block's own"


@BOTH
@settings(max_examples=60, deadline=None)
@given(events=streams())
def test_freeing_everything_restores_the_empty_allocator(mode, events):
    live = {key for kind, key, _ in events if kind == "alloc"} - {
        key for kind, key, _ in events if kind == "free"
    }
    result = replay([*events, *map(free, live), ("empty_cache", 0, 0)], mode=mode)
    assert result.allocated[-1] == 0 and result.reserved[-1] == 0


@BOTH
@TIES
@settings(max_examples=50, deadline=None)
@given(events=streams())
def test_the_smallest_capacity_is_a_boundary(mode, ties, events):
    smallest = smallest_capacity(events, mode, ties=ties)
    unbounded = replay(events, mode=mode, ties=ties)
    most = max(unbounded.reserved, default=0)
    assert smallest <= most and smallest % (2 * MIB) == 0
    assert replay(events, mode=mode, ties=ties, capacity=most).retries == 0
    if smallest:
        assert replay(events, mode=mode, ties=ties, capacity=smallest).oom is None
        assert replay(events, mode=mode, ties=ties, capacity=smallest - 2 * MIB).oom is not None


def picture(allocator):
    """All that decides how an allocator goes on: counters, and every block that is not in use with its
    neighbors.
    """
    pools = allocator.pools
    idle = sorted(
        (
            b.address,
            b.size,
            b.free,
            b.mapped,
            *(n and (n.address, n.size, n.free) for n in (b.previous, b.next)),
        )
        for pool in pools
        for b in (*pool.at.values(), *pool.unmapped)
    )
    return allocator.reserved, allocator.retries, [list(pool.order) for pool in pools], str(idle)


@BOTH
def test_a_request_that_capacities_answer_differently_leaves_the_cache(mode):
    """30 MiB cached, 50 more asked for: 80 fit under no capacity of the range, so the cache has to go; then
    50 fit under some of them and not under others.
    """
    for least, most in ((40, 70), (45, 60)):
        course = RunningReplay(mode, most * MIB)
        course.allocator.lower_bound = least * MIB
        course.run([alloc(0, 30 * MIB), free(0)])
        before = picture(course.allocator)
        with pytest.raises(Undecided):
            course.run([alloc(1, 50 * MIB)])
        assert picture(course.allocator) == before and course.allocator.retries == 0
        assert course.position == 2 and not course.live


@BOTH
@settings(max_examples=100, deadline=None)
@given(events=streams(), bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)), fraction=st.booleans())
def test_an_undecided_request_changes_nothing(mode, events, bounds, fraction):
    most = max(replay(events, mode=mode).reserved, default=0)
    least, highest = (round(most * part) for part in sorted(bounds))
    course = RunningReplay(mode, highest, fraction)
    course.allocator.lower_bound = least
    for event in events:
        before = picture(course.allocator)
        try:
            if course.run([event]).oom is not None:
                return
        except Undecided:
            assert picture(course.allocator) == before
            return


@BOTH
@TIES
@settings(max_examples=80, deadline=None)
@given(
    events=streams(),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    fraction=st.booleans(),
)
def test_capacities_followed_together_go_the_way_of_each(mode, ties, events, bounds, fraction):
    """As far as capacities agree one course serves them all; what is forked from it ends as a replay of its
    own.
    """
    most = max(replay(events, mode=mode, ties=ties).reserved, default=0)
    least, middle, highest = (round(most * part) for part in sorted(bounds))
    together = RunningReplay(mode, highest, fraction, ties)
    together.allocator.lower_bound = least
    with suppress(Undecided):
        together.run(events)
    forked = together.copy(middle)
    before, after = (
        together.result,
        forked.run(events[together.position :]) if together.result.oom is None else Replay(),
    )
    alone = replay(events, mode=mode, capacity=middle, fraction=fraction, ties=ties)
    assert (
        before.allocated + after.allocated == alone.allocated
        and before.reserved + after.reserved == alone.reserved
    )
    assert before.block_bytes | after.block_bytes == alone.block_bytes
    assert forked.allocator.retries == alone.retries
    assert (after.oom if before.oom is None else before.oom) == alone.oom
    assert forked.allocator.retries == alone.retries


class Literal:
    """Native mode again, written as the sentences of its documentation: a list of segments, each a list of
    [size, in use, number of the block object].
    """

    def __init__(self, ties):
        self.segments, self.ties, self.made = [], ties, 0

    def new(self):
        self.made += 1
        return self.made

    def order(self, number, place, made):
        """Of equal sizes the lowest address (later segments lie lower), the oldest object, or the lowest of
        the oldest segment.
        """
        return {"address": (-number, place), "creation": (made,), "segment": (number, place)}[self.ties]

    def allocate(self, nbytes):
        size = max(512, -(-nbytes // 512) * 512)
        small = size <= MIB
        fits = [
            ((block[0], *self.order(number, place, block[2])), number, place)
            for number, (kind, blocks) in enumerate(self.segments)
            if kind == small
            for place, block in enumerate(blocks)
            if not block[1] and block[0] >= size
        ]
        if not fits:
            reserve = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            self.segments.append((small, [[reserve, False, self.new()]]))
            fits = [(0, len(self.segments) - 1, 0)]
        _, number, place = min(fits)
        blocks = self.segments[number][1]
        rest = blocks[place][0] - size
        if rest >= 512 if small else rest > MIB:
            blocks.insert(
                place, [size, True, self.new()]
            )  # the request's is new, the remainder keeps its own
            blocks[place + 1][0] = rest
        blocks[place][1] = True
        return blocks, blocks[place]

    def release(self, handle):
        blocks, block = handle
        block[1] = False
        merged = []
        for b in blocks:
            if merged and not merged[-1][1] and not b[1]:
                merged[-1][0] += b[0]
                merged[-1][2] = block[2]
            else:
                merged.append(b)
        blocks[:] = merged

    def empty_cache(self):
        self.segments = [(kind, blocks) for kind, blocks in self.segments if any(b[1] for b in blocks)]

    def totals(self):
        flat = [b for _, blocks in self.segments for b in blocks]
        return sum(b[0] for b in flat if b[1]), sum(b[0] for b in flat)


@TIES
@settings(max_examples=200, deadline=None)
@given(events=streams())
def test_native_mode_equals_a_literal_second_implementation(ties, events):
    literal, handles, expected = Literal(ties), {}, []
    for kind, key, nbytes in events:
        if kind == "alloc":
            handles[key] = literal.allocate(nbytes)
        elif kind == "free":
            literal.release(handles.pop(key))
        else:
            literal.empty_cache()
        expected.append(literal.totals())
    result = replay(events, ties=ties)
    assert list(zip(result.allocated, result.reserved, strict=True)) == expected


def test_in_torch_2_12_the_oldest_block_object_serves_between_equal_ones():
    """Two free blocks of 30 MiB: the first segment's is older, the second's lies lower. What is taken decides
    whether 60 MiB are one free range afterwards.
    """
    events = [
        *(alloc(key, 30 * MIB) for key in (0, 1)),
        *map(free, (0, 1)),
        alloc(2, 30 * MIB),
        ("empty_cache", 0, 0),
        alloc(3, 20 * MIB),
    ]
    taken = {}
    for ties in ("address", "creation"):
        running = RunningReplay("native", ties=ties)
        running.run(events)
        taken[ties] = running.live[2].address
    assert taken["creation"] > taken["address"], "later segments lie lower"


def test_from_torch_2_13_on_the_lowest_of_the_oldest_segment_serves_between_equal_blocks():
    """Three free blocks of 30 MiB: at the start of the first segment, at its end (the oldest object), and a
    younger segment.
    """
    events = [
        *(alloc(0, 90 * MIB), free(0)),
        *(alloc(key, 30 * MIB) for key in (1, 2, 3)),
        alloc(4, 30 * MIB),
        *map(free, (1, 3, 4)),
    ]
    taken = {}
    for ties in ("address", "creation", "segment"):
        running = RunningReplay("native", ties=ties)
        running.run(events)
        first = running.live[2].address - 30 * MIB
        running.run([alloc(5, 30 * MIB)])
        taken[ties] = running.live[5].address - first
    assert taken["segment"] == 0 and taken["creation"] == 60 * MIB and taken["address"] < 0


def test_expandable_segments_have_addresses_for_any_size():
    """The page asks for the longest rows of any attention: scores of 32 heads x 131,072^2 x 64 rows."""
    events = [("alloc", number, 1 << 47) for number in range(5)]
    assert max(replay(events, mode="expandable").reserved) == 5 << 47
