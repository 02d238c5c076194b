"""The CUDA side of the profiler on histories as torch writes them: traced steps played through the
allocator's replay, and real CPU steps mirrored into it. What comes out must be what went in, and noise must
come out as noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from fake_cuda import CONTEXT, MIB, FakeCuda, Mirror

from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.cublas import HELD
from memplan.planner.tables.torch_versions import TORCH_VERSIONS
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events.log import ALLOC, Log
from memplan.planner.trace.events.record import record
from memplan.planner.trace.events.timeline import Timeline
from memplan.profiler import measure, nvml
from memplan.profiler.align import Step
from memplan.profiler.cases import predicted_step
from memplan.profiler.evidence import Evidence, measured_moments
from memplan.profiler.history import LOADED, Attribution, mark_label
from memplan.profiler.nvml import Usage
from memplan.profiler.recorders import CudaRecorder

pytestmark = pytest.mark.trace
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
}
WIDE = {**LLAMA, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 512}
SETUPS = {
    "qlora checkpointed": {"method": "qlora", "checkpointing": "non_reentrant"},
    "full": {"method": "full", "micro_batch": 2},
    "lora expandable": {"method": "lora", "allocator": "expandable"},
    "adalora": {"method": "adalora"},
}


@dataclass(frozen=True)
class Traced:
    setup: Setup
    log: Log
    timeline: Timeline


@pytest.fixture(scope="module", params=SETUPS)
def traced(request: pytest.FixtureRequest) -> Traced:
    setup = resolve(
        {"recipe": "raw", "gpu": "h200", "sequence_length": 256, "load": "random", **SETUPS[request.param]}
    )
    log, _ = record(LLAMA, setup, target_of(setup))
    return Traced(setup, log, Timeline(log, setup, target_of(setup)))


def played(fake: FakeCuda, traced: Traced, every: int = 0) -> Evidence:
    """The traced run, as the profiler would record it; `every` so many events, a library does something that
    nobody predicted.
    """
    log, recorder = traced.log, CudaRecorder()
    recorder.reset_peaks()
    recorder.start()
    addresses: dict[int, int] = {}
    claims: list[Attribution] = []
    counters: list[tuple[int, str, dict[str, int]]] = []
    steps = [mark for mark in log.marks if mark.step >= 0]

    def claim(label: str, component: str) -> None:
        alive = [s for s in log.storages if s.id in addresses and s.component == component]
        claims.extend(Attribution(label, addresses[s.id], component) for s in alive)

    for index in range(len(log.events) + 1):
        for mark in steps:
            if mark.end == index:
                label = mark_label(mark.step, mark.moment, 0, "end")
                recorder.mark(label)
                counters.append((mark.step, mark.moment, recorder.counters() or {}))
                for component in HELD_AFTER.get(mark.moment, ()):
                    claim(label, component)
        if index == steps[0].begin:
            counters.append((-1, "load", recorder.counters() or {}))
            recorder.mark(LOADED)
            for component in ("weights", "activations"):
                claim(LOADED, component)
        for mark in steps:
            if mark.begin == index:
                recorder.reset_peaks()
                recorder.mark(mark_label(mark.step, mark.moment, 0, "begin"))
        if index == len(log.events):
            break
        if every and index % every == every - 1:
            fake.free(fake.malloc(NOISE), another_stream_reads=True)
        if every and index % every == every // 2:
            fake.complete()
        kind, number, nbytes = log.events[index]
        if kind == ALLOC:
            addresses[number] = fake.malloc(nbytes) if nbytes else 0
        elif kind == "free":
            address = addresses.pop(number)
            if address:
                fake.free(address)
        else:
            fake.allocator.empty_cache()
    history = recorder.stop()
    history.claims = claims
    return Evidence("cuda", traced.setup, history, counters, CONTEXT, steps[-1].step)


NOISE = 333 * 1024
HELD_AFTER = {
    "backward": ("gradients",),
    "optimizer_step": ("optimizer_states", "weights"),
    "update_and_allocate": ("optimizer_states", "weights"),
}


@pytest.fixture
def card(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    ties = TORCH_VERSIONS[traced.setup.torch].equal_blocks  # the fake is of the release that was traced
    return FakeCuda(expandable=traced.setup.allocator == "expandable", ties=ties).install(monkeypatch)


def predicted(log: Log) -> Step:
    found = predicted_step(log)
    return Step(
        {name: tuple((kind, nbytes) for kind, nbytes, _ in events) for name, events in found.items()},
        {name: tuple(owner for *_, owner in events) for name, events in found.items()},
    )


def test_a_run_that_goes_as_predicted_is_measured_as_predicted(traced: Traced, card: FakeCuda) -> None:
    """To the byte: allocated, reserved, each component, and every event of the steady step."""
    evidence = played(card, traced)
    moments, peak, step_peak, notes = measured_moments(evidence)
    breakdowns, expected, steady = traced.timeline.moments()
    assert notes == []
    assert evidence.history.frees_unknown == 0
    assert [moment.name for moment in moments] == [breakdown.moment for breakdown in breakdowns]
    for moment, breakdown in zip(moments, breakdowns, strict=True):
        assert moment.allocated_bytes == breakdown.allocated_bytes, moment.name
        found, want = moment.components or {}, breakdown.components
        assert sum(found.values()) == moment.allocated_bytes
        for name in ("weights", "gradients", "optimizer_states"):
            assert found[name] == want[name], (moment.name, name)
        workspaces = sum(row.charged for row in breakdown.rows if row.why == HELD)
        assert found["temporaries"] == workspaces, "nothing else is told from what nobody predicted"
    assert peak is not None
    assert step_peak is not None
    assert (peak.moment, peak.allocated_bytes, peak.reserved_bytes) == (
        expected.moment,
        expected.allocated_bytes,
        expected.reserved_bytes,
    )
    assert (step_peak.allocated_bytes, step_peak.reserved_bytes) == (
        steady.allocated_bytes,
        steady.reserved_bytes,
    )
    found = evidence.alignment(predicted(traced.log))
    assert found is not None
    assert found["unmatched"] == []
    assert found["matched_bytes_share"] == 1.0


def test_noise_is_told_from_what_was_predicted(traced: Traced, card: FakeCuda) -> None:
    """A library's own allocations, freed while another stream still reads them: each is unmatched, nothing
    else is.
    """
    evidence = played(card, traced, every=7)
    moments, *_, notes = measured_moments(evidence)
    assert notes == []  # the replay of the history itself still reaches the allocator's counters
    assert all(moment.components is not None for moment in moments)
    found = evidence.alignment(predicted(traced.log))
    assert found is not None
    assert found["events"]["matched"] == found["events"]["predicted"]
    assert {(row["only"], row["bytes"]) for row in found["unmatched"]} == {("measured", NOISE)}
    begin = min(mark.begin for mark in traced.log.marks if mark.step == evidence.instrumented)
    end = max(mark.end for mark in traced.log.marks if mark.step == evidence.instrumented)
    made = sum(index % 7 == 6 for index in range(begin, end))
    assert found["events"]["measured"] - found["events"]["predicted"] == 2 * made


def test_a_history_cut_by_its_buffer_is_not_aligned(
    traced: Traced, card: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memplan.profiler.recorders.MOST_EVENTS", 500)
    evidence = played(card, traced)
    assert evidence.history.cut
    assert evidence.alignment(predicted(traced.log)) is None
    assert {moment.name: moment.components for moment in measured_moments(evidence)[0]}["backward"] is None


# -- the whole of `profile` on a GPU: real CPU tensors, mirrored into the fake ------------------------------


@pytest.fixture
def mirrored(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    from memplan.planner.run import build as module

    fake = FakeCuda().install(monkeypatch)
    real = module.build
    monkeypatch.setattr(
        module, "build", lambda config, setup, device: real(config, setup.replaced(device="cpu"), "cpu")
    )
    monkeypatch.setattr(nvml, "look", lambda: Usage())
    monkeypatch.setattr("memplan.profiler.measure.look", lambda: Usage(1000 * MIB, {1: 1000 * MIB}))
    monkeypatch.setattr(
        "memplan.profiler.session.look",
        lambda: Usage(1000 * MIB + CONTEXT + fake.allocator.reserved, {1: 1000 * MIB}),
    )
    with Mirror(fake):
        yield fake


def setup_of(**fields: Any) -> Setup:
    return resolve({"method": "full", "recipe": "raw", "sequence_length": 64, "load": "random", **fields})


def test_profile_on_a_card_from_end_to_end(mirrored: FakeCuda, tmp_path: Path) -> None:
    history = tmp_path / "history.json.gz"
    m = measure.profile(LLAMA, setup_of(allocator="expandable"), steps=2, cap=2 * 2**30, history=history)
    assert (m.outcome, m.failure and m.failure.message) == ("ok", None)
    assert mirrored.calls[:2] == ["expandable_segments:True", "history all None python"]
    assert mirrored.calls[2:] == ["history None all all"]
    assert int((mirrored.fraction or 0) * mirrored.total) == 2 * 2**30
    assert m.environment["allocator"]["mode"] == "expandable"
    assert [moment.name for moment in m.moments] == [
        "load_peak",
        "load",
        "forward",
        "backward",
        "optimizer_step",
    ]
    for moment in m.moments:
        assert moment.components is not None
        assert sum(moment.components.values()) == moment.allocated_bytes
        assert (moment.reserved_bytes or 0) >= moment.allocated_bytes >= (moment.requested_bytes or 0)
    step = m.moment("optimizer_step").components or {}
    weights = 2 * (m.total_parameters or 0)
    for name, held in (("weights", weights), ("gradients", weights), ("optimizer_states", 2 * weights)):
        assert held <= step[name] <= held + MIB, name
    assert m.peak is not None
    assert m.peak.context_bytes == CONTEXT
    assert m.to_document()["device_bytes_source"] == nvml.GROWTH
    assert m.warnings == (nvml.NOTES[nvml.GROWTH],)
    assert len(m.step_seconds) == 2
    assert m.tokens_per_second
    assert history.stat().st_size > 1000


def test_a_4_bit_model_is_built_in_little_more_than_its_own_size(mirrored: FakeCuda) -> None:
    """Layer by layer, quantized as made, random fills in place: over what stays lies one layer in 16 bits and
    its quantization's scraps.
    """
    m = measure.profile(WIDE, setup_of(method="qlora", sequence_length=16), steps=1)
    assert (m.outcome, m.failure and m.failure.message) == ("ok", None)
    largest = 2 * WIDE["hidden_size"] * WIDE["intermediate_size"]
    above = m.moment("load_peak").allocated_bytes - m.moment("load").allocated_bytes
    assert above <= 4 * largest
    every_layer = WIDE["num_hidden_layers"] * 3 * largest
    assert above < every_layer / 4


def test_out_of_memory_under_a_cap_is_a_record_of_what_was_asked_and_what_was_free(
    mirrored: FakeCuda,
) -> None:
    m = measure.profile(LLAMA, setup_of(sequence_length=512), steps=1, cap=64 * MIB)
    assert m.outcome == "oom"
    assert m.failure is not None
    assert m.failure.moment == "forward"
    assert (m.failure.allocated_bytes or 0) + (m.failure.requested_bytes or 0) > 40 * MIB
    assert m.failure.reserved_bytes is not None
    assert m.failure.reserved_bytes <= 64 * MIB
    assert m.failure.free_bytes == mirrored.total - CONTEXT - m.failure.reserved_bytes
    assert [moment.name for moment in m.moments] == ["load_peak", "load"]
    assert m.peak is None
    assert (m.retries or 0) >= 1


def test_a_device_that_an_error_made_unusable_still_leaves_a_record(
    mirrored: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memplan.planner.run import step

    def broken(*_: Any) -> None:
        def refuse() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr("torch.cuda.synchronize", refuse)
        monkeypatch.setattr("torch.cuda.memory._snapshot", refuse)
        monkeypatch.setattr("torch.cuda.mem_get_info", refuse)
        refuse()

    monkeypatch.setattr(step, "run", broken)
    m = measure.profile(LLAMA, setup_of(), steps=1)
    assert (m.outcome, m.failure.kind if m.failure else None) == ("error", "exception")
    assert any("the device cannot be asked any more" in warning for warning in m.warnings)
    assert any("the allocator's history is lost" in warning for warning in m.warnings)
    assert [moment.name for moment in m.moments] == ["load_peak", "load"]


def test_an_evaluation_that_fails_costs_no_measurement(
    mirrored: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("a history like no other")

    monkeypatch.setattr("memplan.profiler.evidence.own", broken)
    monkeypatch.setattr("memplan.profiler.evidence.align", broken)
    m = measure.profile(LLAMA, setup_of(), steps=1, predicted=Step({"forward": (("alloc", 1),)}))
    assert (m.outcome, m.alignment) == ("ok", None)
    assert m.peak is not None
    assert all(moment.components is None for moment in m.moments)
    assert [warning.partition(":")[0] for warning in m.warnings[1:]] == [
        "components were not read",
        "the history was not aligned",
    ]


def test_the_step_that_counts_operations_adds_nothing_to_what_was_measured(
    mirrored: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(step: Any) -> int:
        mirrored.allocator.retries += 5
        return 10**12

    monkeypatch.setattr("memplan.profiler.flops.counted", greedy)
    m = measure.profile(LLAMA, setup_of(), steps=1)
    assert m.retries == 0
    assert m.flops_per_second
