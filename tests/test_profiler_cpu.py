"""Real steps on the CPU's own allocator against the trace engine's prediction, which lay on the disk before
the measured process started.

The two observers share nothing: the prediction watches meta tensors, the measurement reads torch.profiler's
allocator events.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.components import COMPONENTS
from memplan.profiler import record
from memplan.profiler.campaign import run
from memplan.profiler.case_matrix import expand
from memplan.profiler.record import Measurement

pytestmark = pytest.mark.trace

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
}
MODELS = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "model_type": "mistral"},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 1024,
        "n_positions": 256,
    },
}
VERA = {
    "peft_type": "VERA",
    "task_type": "CAUSAL_LM",
    "r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "vera_dropout": 0.0,
}
CASES = [
    {"model": "llama", "method": "full", "attention": "sdpa"},
    {"model": "gpt2", "method": "lora", "micro_batch": 2},
    {"model": "mistral", "method": "qlora"},
    {"model": "mixtral", "method": "full"},
    {"model": "llama", "method": "adalora", "importance_buffers": True},
    {"model": "llama", "method": "lora", "adapter": VERA, "name": "llama vera from an adapter_config"},
]
TOLERANCE = 0.01
DOCUMENT = {
    "device": "cpu",
    "steps": 1,
    "models": MODELS,
    "defaults": {"recipe": "raw", "sequence_length": 128},
    "cases": CASES,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Measurement]]:
    """Every case, run as a campaign: by model and method."""
    out = tmp_path_factory.mktemp("cpu")
    summary = run(expand(DOCUMENT, "cpu"), out)
    assert summary.problems == ()
    return {measurement.case: (path, measurement) for path, measurement in record.scan(out)[0]}


def test_the_cases_cover_what_the_project_promises(measured: dict[str, tuple[Path, Measurement]]) -> None:
    assert len(measured) == len(CASES)
    assert {m.setup.method for _, m in measured.values()} == {"full", "lora", "qlora", "adalora"}
    assert any(m.setup.adapter for _, m in measured.values())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_measured_peak_is_within_one_percent_of_the_prediction(
    measured: dict[str, tuple[Path, Measurement]], number: int
) -> None:
    case = expand(DOCUMENT, "cpu").cases[number]
    path, m = measured[case.name]
    assert m.outcome == "ok", m.failure
    assert m.warnings == ()
    assert m.prediction is not None
    assert m.peak is not None
    predicted = m.prediction["peak"]
    assert predicted["allocated_bytes"] == pytest.approx(m.peak.allocated_bytes, rel=TOLERANCE)
    assert predicted["moment"] == m.peak.moment
    for moment in m.prediction["moments"]:  # totals can hide errors that cancel
        found = m.moment(moment["name"])
        assert moment["allocated_bytes"] == pytest.approx(found.allocated_bytes, rel=TOLERANCE), moment[
            "name"
        ]
        assert found.components is not None
        if moment["name"] in (
            "load",
            "optimizer_step",
        ):  # where nothing hangs on which of two nearly equal places was the higher
            for name in ("weights", "gradients", "optimizer_states"):
                assert moment["components"][name] == pytest.approx(
                    found.components[name], rel=TOLERANCE, abs=2048
                ), (moment["name"], name)
    stem = path.name.removesuffix(".json")
    written = (path.parent / "raw" / f"{stem}.prediction.json").stat().st_mtime
    finished = time.mktime(time.strptime(str(m.recorded_at), "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert m.wall_seconds is not None
    assert written <= finished - m.wall_seconds + 1.0  # the stamp has whole seconds


def test_components_add_up_and_nothing_measured_is_called_temporary(
    measured: dict[str, tuple[Path, Measurement]],
) -> None:
    for _, m in measured.values():
        assert [moment.name for moment in m.moments][:5] == [
            "load_peak",
            "load",
            "forward",
            "backward",
            "optimizer_step",
        ]
        for moment in m.moments:
            assert moment.components is not None
            assert sum(moment.components.values()) == moment.allocated_bytes
            assert set(moment.components) == {*COMPONENTS, "unattributed"}
            assert moment.components["temporaries"] == 0
            assert moment.reserved_bytes is None
        assert m.peak is not None
        assert m.peak.device_bytes is None
        assert m.tokens_per_second
        assert m.flops_per_second
        assert len(m.step_seconds) == 1


def test_the_events_of_one_step_are_aligned(measured: dict[str, tuple[Path, Measurement]]) -> None:
    """CPU kernels have scratch memory of their own (oneDNN, packed attention): measured events without a
    counterpart. The other way round, nearly everything that was predicted happened.
    """
    for _, m in measured.values():
        assert m.alignment is not None
        events = m.alignment["events"]
        assert events["matched"] / events["predicted"] > 0.9, m.case
        never = [
            row
            for row in m.alignment["unmatched"]
            if (row["only"], row["moment"], row["kind"]) == ("predicted", "backward", "alloc")
        ]
        assert not [row for row in never if "add.Tensor" in row["where"]], "backward adds gradients in place"
        assert m.alignment["matched_bytes_share"] > 0.75, m.case
        assert all(row["where"] for row in m.alignment["unmatched"] if row["only"] == "measured")


def test_the_check_fails_where_attention_is_not_the_cpus_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta, SDPA decomposes to its math path, which materializes the scores: the prediction is then wrong,
    and the check says so.
    """
    from memplan.planner.trace import attention
    from memplan.planner.trace.engine import trace
    from memplan.profiler.measure import profile

    config = {**LLAMA, "vocab_size": 256}
    setup = resolve(
        {"method": "full", "recipe": "raw", "device": "cpu", "sequence_length": 256, "load": "random"}
    )
    peak = profile(config, setup, steps=1).peak
    assert peak is not None
    assert trace(config, setup).peak.allocated_bytes == pytest.approx(peak.allocated_bytes, rel=TOLERANCE)

    def math(call: Any, scale: float | None, *_: Any) -> Any:
        return attention._REAL(
            *call.tensors, None, call.dropout, call.causal, scale=scale, enable_gqa=call.gqa
        )

    monkeypatch.setattr(attention, "_cpu", math)
    assert trace(config, setup).peak.allocated_bytes > peak.allocated_bytes * (1 + 5 * TOLERANCE)


def test_a_run_that_the_host_cannot_hold_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from memplan.profiler import cases
    from memplan.profiler.jobs import case_document

    monkeypatch.setattr(cases, "available_bytes", lambda: 3 * 2**30)
    monkeypatch.setattr("memplan.profiler.measure.profile", lambda *_, **__: pytest.fail("it was started"))
    case = expand({**DOCUMENT, "cases": [CASES[0]]}, "cpu").cases[0]
    prediction = tmp_path / "x.prediction.json"
    prediction.write_text(
        json.dumps({"prediction": {"peak": {"allocated_bytes": 2 * 2**30}, "host_bytes": 2 * 2**30}})
    )
    m = cases.measured(case_document(case), prediction)
    assert (m.outcome, m.failure.kind if m.failure else None) == ("error", "refused")
    assert m.failure is not None
    assert "needs 4.00 GiB of host memory, but only 3.00 GiB is available" in m.failure.message


def test_running_out_of_memory_is_an_outcome_with_what_was_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The host's allocator refuses in the second step's backward: the record has the moment, the request, and
    the moments before it.
    """
    from memplan.planner.run import step
    from memplan.profiler.measure import profile

    plain = step.run

    def refuse(built: Any, watcher: Any, number: int = 0) -> None:
        plain(built, watcher, number)
        if number == 1:
            with watcher.announce("backward", number):
                raise RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                    "123456 bytes."
                )

    monkeypatch.setattr(step, "run", refuse)
    setup = resolve(
        {"method": "full", "recipe": "raw", "device": "cpu", "sequence_length": 32, "load": "random"}
    )
    m = profile({**LLAMA, "vocab_size": 256}, setup, steps=1, history=tmp_path / "history.json.gz")
    assert (m.outcome, m.peak, m.step_seconds) == ("oom", None, ())
    assert m.failure is not None
    assert (m.failure.kind, m.failure.moment, m.failure.requested_bytes) == ("oom", "backward", 123456)
    assert [moment.name for moment in m.moments] == ["load_peak", "load"]
    assert record.load(record.save_in(m, tmp_path)).failure == m.failure
    assert (tmp_path / "history.json.gz").stat().st_size > 100
