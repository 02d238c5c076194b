"""The CUDA side of the profiler, on fakes of torch.cuda: histories, counters, components, out of memory,
caps, the environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.cublas import workspace_bytes
from memplan.planner.tables.errors import UsageError
from memplan.profiler import environment, measure, recorders, session
from memplan.profiler.align import Step, align
from memplan.profiler.evidence import Evidence, completed, failure_of, measured_moments
from memplan.profiler.history import (
    LOADED,
    Attribution,
    Event,
    History,
    Mark,
    blocks_of,
    components_at,
    highest,
    levels,
    mark_label,
    own,
)

MIB = 2**20
SETUP = resolve({"method": "full", "recipe": "raw"})


class FakeCuda:
    """An allocator that keeps the statistics and the history that torch.cuda would."""

    def __init__(self) -> None:
        self.trace: list[dict[str, Any]] = []
        self.live: dict[int, int] = {}
        self.allocated = self.freed = self.peak = 0
        self.recording = False
        self.next = 0x7F0000000000

    def alloc(self, nbytes: int) -> int:
        block = -(-nbytes // 512) * 512
        address, self.next = self.next, self.next + block
        self.live[address] = block
        self.allocated += 1
        self.peak = max(self.peak, sum(self.live.values()))
        if self.recording:
            self.note("segment_alloc", address, 2 * MIB)
            self.note("alloc", address, nbytes)
        return address

    def free(self, address: int) -> None:
        size = self.live.pop(address)
        self.freed += 1
        if self.recording:
            self.note("free_requested", address, size)
            self.note("free_completed", address, size)

    def note(self, action: str, address: int, size: int) -> None:
        self.trace.append({"action": action, "addr": address, "size": size})

    def stats(self) -> dict[str, int]:
        now = sum(self.live.values())
        return {
            "allocation.all.allocated": self.allocated,
            "allocation.all.freed": self.freed,
            "allocated_bytes.all.current": now,
            "allocated_bytes.all.peak": self.peak,
            "requested_bytes.all.peak": self.peak,
            "active_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": 20 * MIB,
            "reserved_bytes.all.peak": 20 * MIB,
            "num_alloc_retries": 0,
        }

    def reset(self) -> None:
        self.peak = sum(self.live.values())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    def record(enabled: Any = "all", **_: Any) -> None:
        fake.recording = enabled is not None

    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", record)
    monkeypatch.setattr(
        memory,
        "_snapshot",
        lambda: {"device_traces": [fake.trace], "allocator_settings": {"expandable_segments": False}},
    )
    monkeypatch.setattr(torch.cuda, "memory_stats", fake.stats)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", fake.reset)
    return fake


def run_steps(cuda: FakeCuda) -> Evidence:
    """A model of 4 MiB + 100 bytes, whose instrumented step makes activations, a gradient and optimizer
    states.
    """
    recorder = recorders.CudaRecorder()
    before = cuda.alloc(1000)  # allocated before the history began
    recorder.reset_peaks()
    recorder.start()
    weight, small = cuda.alloc(4 * MIB), cuda.alloc(100)
    temporary = cuda.alloc(MIB)
    cuda.free(temporary)
    cuda.free(before)
    counters: list[tuple[int, str, dict[str, int]]] = [(-1, "load", recorder.counters() or {})]
    recorder.mark(LOADED)
    claims = [Attribution(LOADED, weight, "weights"), Attribution(LOADED, small, "weights")]
    recorder.reset_peaks()
    recorder.mark(mark_label(2, "forward", 0, "begin"))
    saved = cuda.alloc(2 * MIB)
    cuda.free(cuda.alloc(3 * MIB))
    recorder.mark(mark_label(2, "forward", 0, "end"))
    counters.append((2, "forward", recorder.counters() or {}))
    recorder.reset_peaks()
    recorder.mark(mark_label(2, "backward", 0, "begin"))
    gradient = cuda.alloc(4 * MIB)
    cuda.free(saved)
    recorder.mark(mark_label(2, "backward", 0, "end"))
    counters.append((2, "backward", recorder.counters() or {}))
    claims.append(Attribution(mark_label(2, "backward", 0, "end"), gradient, "gradients"))
    history = recorder.stop()
    history.claims = claims
    return Evidence("cuda", SETUP, history, counters, 500 * MIB, 2)


def test_peaks_come_from_the_counters_and_components_from_the_history(cuda: FakeCuda) -> None:
    evidence = run_steps(cuda)
    moments, peak, step_peak, notes = measured_moments(evidence)
    by_name = {moment.name: moment for moment in moments}
    assert list(by_name) == ["load_peak", "load", "forward", "backward"]
    assert by_name["load"].allocated_bytes == 4 * MIB + 512
    assert by_name["load"].components == {
        "weights": 4 * MIB + 512,
        "gradients": 0,
        "optimizer_states": 0,
        "activations": 0,
        "temporaries": 0,
        "unattributed": 0,
    }
    forward, backward = by_name["forward"].components, by_name["backward"].components
    assert forward is not None
    assert backward is not None
    assert (forward["weights"], forward["activations"], forward["unattributed"]) == (
        4 * MIB + 512,
        2 * MIB,
        3 * MIB,
    )
    assert (backward["gradients"], backward["activations"]) == (4 * MIB, 2 * MIB)
    assert peak is not None
    assert (peak.moment, peak.allocated_bytes, peak.reserved_bytes, peak.device_bytes) == (
        "backward",
        10 * MIB + 512,
        20 * MIB,
        520 * MIB,
    )
    assert step_peak == peak
    assert [note.split(":")[0] for note in notes] == [
        "load_peak"
    ]  # what was there before the history is unattributed, and said
    load_peak = by_name["load_peak"].components
    assert load_peak is not None
    assert load_peak["unattributed"] == MIB + 1024
    assert evidence.history.frees_unknown == 1
    document = evidence.history.to_document()
    assert document["segments"][0] == [0, "reserved", 2 * MIB]
    assert document["events"][0] == [
        "alloc",
        4 * MIB,
        1024,
    ]  # the address is relative to the lowest, that of the block before the history
    assert [label for label, _ in document["marks"]][0] == LOADED


def test_a_peak_of_the_warm_up_is_the_runs_peak_and_that_moments(cuda: FakeCuda) -> None:
    evidence = run_steps(cuda)
    high = {**evidence.counters[1][2], "allocated_peak": 30 * MIB}
    warm = Evidence(
        "cuda",
        SETUP,
        evidence.history,
        [evidence.counters[0], (0, "forward", high), *evidence.counters[1:]],
        0,
        2,
    )
    moments, peak, step_peak, _ = measured_moments(warm)
    forward = next(moment for moment in moments if moment.name == "forward")
    assert (forward.allocated_bytes, forward.components) == (
        30 * MIB,
        None,
    )  # that step's place is not in this history
    assert peak is not None
    assert step_peak is not None
    assert (peak.moment, peak.allocated_bytes) == ("forward", 30 * MIB)
    assert (step_peak.moment, step_peak.allocated_bytes) == ("backward", 10 * MIB + 512)


def test_every_component_adds_up_to_allocated(cuda: FakeCuda) -> None:
    for moment in measured_moments(run_steps(cuda))[0]:
        assert moment.components is not None
        assert sum(moment.components.values()) == moment.allocated_bytes


def test_marks_lie_between_the_right_events(cuda: FakeCuda) -> None:
    history = run_steps(cuda).history
    assert [(span.moment, span.end - span.begin) for span in history.spans()] == [
        ("forward", 3),
        ("backward", 2),
    ]
    assert history.position(LOADED) == 5
    with pytest.raises(KeyError):
        history.position("nothing")


def test_a_cut_history_gives_no_components_rather_than_wrong_ones(cuda: FakeCuda) -> None:
    evidence = run_steps(cuda)
    evidence.history.cut = True
    assert all(moment.components is None for moment in measured_moments(evidence)[0])
    assert evidence.alignment(Step({})) is None


def test_a_block_is_owned_for_its_whole_life_and_addresses_are_reused() -> None:
    events = [Event("alloc", 1, 10), Event("free", 1, 10), Event("alloc", 1, 20), Event("alloc", 2, 30)]
    history = History(
        events,
        [Mark(LOADED, 1), Mark("later", 4)],
        [Attribution(LOADED, 1, "weights"), Attribution("later", 1, "gradients")],
    )
    blocks = blocks_of(events)
    own(history, blocks)
    assert [block.owner for block in blocks] == ["weights", "gradients", None]
    assert components_at(blocks, 1)["weights"] == 10
    at_end = components_at(blocks, 4)
    assert (at_end["weights"], at_end["gradients"], at_end["unattributed"]) == (0, 20, 30)
    assert levels(events) == [10, 0, 20, 50]
    assert highest(levels(events), 1, 3) == (20, 3)
    assert highest(levels(events), 0, 0) == (0, 0)


def test_a_workspace_that_a_handle_keeps_is_no_activation() -> None:
    """cuBLAS's outlives the first forward as saved tensors do, and every step: one definition with the
    trace.
    """
    size = workspace_bytes((8, 0))
    events = [Event("alloc", 1, size), Event("alloc", 2, 40), Event("free", 2, 40)]
    marks = [Mark(mark_label(0, "forward", 0, "begin"), 0), Mark(mark_label(0, "forward", 0, "end"), 2)]
    blocks = blocks_of(events)
    own(History(events, marks), blocks)
    assert [block.owner for block in blocks] == ["temporaries", "activations"]


OOM_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.50 "
    "GiB is free. Including "
    "non-PyTorch memory, this process has 5.00 GiB memory in use."
)


def test_out_of_memory_is_told_from_other_errors_with_exact_numbers_where_the_allocator_has_them() -> None:
    failure = failure_of(torch.OutOfMemoryError(OOM_TEXT), "backward")
    assert (failure.kind, failure.moment, failure.requested_bytes, failure.free_bytes) == (
        "oom",
        "backward",
        2 * 2**30,
        3 * 2**29,
    )
    history = recorders.read_trace([{"action": "oom", "size": 2147483700, "device_free": 1610612999}], [])
    exact = completed(failure, history, {"allocated": 7, "reserved": 9})
    assert (exact.requested_bytes, exact.free_bytes, exact.allocated_bytes, exact.reserved_bytes) == (
        2147483700,
        1610612999,
        7,
        9,
    )
    for text in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"):
        assert failure_of(RuntimeError(text), "load_peak").kind == "oom"
    other = failure_of(ValueError("shapes do not match"), "forward")
    assert (other.kind, other.message) == ("exception", "ValueError: shapes do not match")
    assert completed(other, history, None).requested_bytes is None


def test_a_cap_is_set_as_a_fraction_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    card = {"total_bytes": 140 * 2**30, "gpu": "NVIDIA H200"}
    measure._limit(35 * 2**30, card, "cuda")
    measure._limit(None, card, "cuda")
    assert fractions == [0.25]
    with pytest.raises(
        UsageError, match="a cap of 150.00 GiB is more than the 140.00 GiB of this NVIDIA H200"
    ):
        measure._limit(150 * 2**30, card, "cuda")
    with pytest.raises(UsageError, match="--cap limits the CUDA allocator"):
        measure._limit(1, card, "cpu")


def test_the_environment_of_a_card(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(multi_processor_count=132, uuid="x"),
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (139 * 2**30, 140 * 2**30))
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "native")
    found = environment.describe("cuda")
    assert (found["gpu"], found["capability"], found["multiprocessors"], found["total_bytes"]) == (
        "NVIDIA H200",
        [9, 0],
        132,
        140 * 2**30,
    )
    assert found["allocator"]["mode"] == "native"
    assert found["versions"]["torch"]
    assert set(found["versions"]) == set(environment.LIBRARIES)


def test_the_allocators_mode_is_read_from_its_own_settings() -> None:
    assert [
        environment.mode_of(settings)
        for settings in ({"expandable_segments": True}, {"expandable_segments": "False"}, {})
    ] == [
        "expandable",
        "native",
        None,
    ]


def test_without_a_gpu_or_an_extra_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA GPU here .*use --device cpu"):
        environment.describe("cuda")
    monkeypatch.setattr(
        environment, "versions", lambda: {**dict.fromkeys(environment.LIBRARIES, "1"), "accelerate": None}
    )
    with pytest.raises(
        UsageError, match=r"profiling needs accelerate, not installed here: pip install 'memplan\[profile\]'"
    ):
        environment.describe("cpu")


def test_a_snapshot_that_cannot_be_written_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", refuse)
    with pytest.raises(UsageError, match="cannot write the snapshot"):
        session.write_snapshot(Path("nowhere/snapshot.pickle"))


# -- alignment -----------------------------------------------------------------------------------------------


def test_an_alignment_counts_what_matches_and_names_what_does_not() -> None:
    owners = ("model.layers.0.mlp: mm", "model.layers.0.act: silu", "x")
    predicted = Step({"forward": (("alloc", 100), ("alloc", 50), ("free", 50))}, {"forward": owners})
    real = (("alloc", 100), ("alloc", 4096), ("free", 4096), ("alloc", 50), ("free", 50))
    measured = Step({"forward": real, "backward": (("alloc", 7),)})
    found = align(predicted, measured)
    assert found["events"] == {"predicted": 3, "measured": 6, "matched": 3}
    assert found["bytes"] == {"predicted": 150, "measured": 4253, "matched": 150}
    assert found["matched_events_share"] == round(6 / 9, 6)
    assert found["unmatched"][0] == {
        "only": "measured",
        "moment": "forward",
        "kind": "alloc",
        "bytes": 4096,
        "count": 1,
        "where": "model.layers.*.mlp: mm",
    }
    assert {row["moment"] for row in found["unmatched"]} == {"forward", "backward"}
    assert align(Step({}), Step({}))["matched_events_share"] is None


def test_an_alignment_that_takes_too_long_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from memplan.profiler import align as module

    step = Step({"forward": tuple(("alloc", size) for size in range(1, 50))})
    assert align(step, step)["cut"] is False
    monkeypatch.setattr(module, "MOST_SECONDS", -1.0)
    cut = align(step, step)
    assert (cut["cut"], cut["events"]["matched"]) == (True, 0)


@pytest.fixture(params=[1000, 2, 0])
def few_edits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    from memplan.profiler import align as module

    monkeypatch.setattr(module, "MOST_EDITS", request.param)
    yield request.param


def test_a_common_subsequence_is_one_and_the_longest_where_edits_suffice(few_edits: int) -> None:
    import random

    from memplan.profiler.align import common

    chance = random.Random(3)
    for _ in range(300):
        a = [("alloc", chance.randrange(4)) for _ in range(chance.randrange(12))]
        b = [("alloc", chance.randrange(4)) for _ in range(chance.randrange(12))]
        pairs = list(common(a, b))
        assert all(a[i] == b[j] for i, j in pairs)
        assert all(p < q and r < s for (p, r), (q, s) in zip(pairs, pairs[1:], strict=False))
        if few_edits == 1000:
            assert len(pairs) == _longest(a, b)


def _longest(a: list[Any], b: list[Any]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]
