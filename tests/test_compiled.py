"""A compiled trace is the direct one, at sizes that were never traced; what it cannot be is not guessed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

for library in ("torch", "transformers", "peft"):
    pytest.importorskip(library)

import memplan  # noqa: E402
from memplan import api  # noqa: E402
from memplan.cli.main import run  # noqa: E402
from memplan.planner.answers.fit.traced import fit_by_trace  # noqa: E402
from memplan.planner.answers.verdict import judge, margin_of  # noqa: E402
from memplan.planner.compiled import store  # noqa: E402
from memplan.planner.compiled.engine import Compiled  # noqa: E402
from memplan.planner.compiled.nodes import Grid, NotPolynomialError, value  # noqa: E402
from memplan.planner.compiled.program import DifferentStructureError, confirm, same_structure  # noqa: E402
from memplan.planner.compiled.regime import Regime, regimes  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.tables.gpus import find_gpu  # noqa: E402
from memplan.planner.trace.engine import recorded, trace  # noqa: E402
from memplan.planner.trace.events.log import BY_DEPTH  # noqa: E402
from memplan.planner.trace.kernels import Kernels  # noqa: E402
from memplan.render.console import make_console, show  # noqa: E402
from memplan.render.fit import fit_screen  # noqa: E402

GLM = {
    "model_type": "glm4",
    "architectures": ["Glm4ForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,  # so many that flash attention splits no keys
    "num_key_value_heads": 8,
    "head_dim": 16,
    "vocab_size": 1024,
    "pad_token_id": 0,
    "max_position_embeddings": 131072,
}
GLM_FEW_HEADS = {
    **GLM,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "num_hidden_layers": 8,  # of which three run
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memplan" / "compiled"


def solved(config: dict[str, Any], **fields: Any) -> tuple[Compiled, list[str]]:
    notes: list[str] = []
    return Compiled(config, resolve(fields), progress=notes.append), notes


# ---- polynomials -------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 50), min_size=6, max_size=6),
    st.integers(1, 300),
    st.integers(1, 4000),
)
def test_a_polynomial_is_met_everywhere(coefficients: list[int], batch: int, sequence: int) -> None:
    def size(b: int, s: int) -> int:
        c = coefficients
        return c[0] + c[1] * s + c[2] * s * s + b * (c[3] + c[4] * s + c[5] * s * s)

    grid = Grid((2, 3), (512, 1024, 2048))
    assert value([size(*point) for point in grid.points], grid.weights((batch, sequence))) == size(
        batch, sequence
    )


def test_what_is_no_polynomial_has_no_value() -> None:
    grid = Grid((1,), (64, 128, 192))
    rounded = [-(-s // 100) * 100 for s in grid.sequences]
    with pytest.raises(NotPolynomialError):
        value(rounded, grid.weights((1, 150)))
    with pytest.raises(NotPolynomialError):
        value([300, 200, 100], (Fraction(0), Fraction(0), Fraction(-1)))


# ---- regimes -----------------------------------------------------------------------------------------------


def test_regimes_end_where_the_code_branches() -> None:
    setup = resolve({"method": "lora", "micro_batch": 2, "sequence_length": 1024})
    free, by_batch, point = regimes({"text_config": {"sliding_window": 4096}}, setup)
    assert (free.low, free.high, free.batch) == (0, 4096, None)
    assert by_batch.fixed and by_batch.batch is None and point == Regime(2, 1024, 1024)
    assert all(free.holds(each) for each in (*free.grid().points, free.check()))
    assert not free.holds((1, 1024)) and not free.holds((2, 4096)) and not free.holds((2, 1000))
    at_the_window = regimes({"sliding_window": 4096}, setup.replaced(sequence_length=4096))
    assert all(each.fixed for each in at_the_window)
    odd, *_ = regimes({"sliding_window": 4096}, setup.replaced(sequence_length=1000))
    assert odd.holds((2, 1000)) and not odd.holds((2, 1024)), "kernels pad what is no multiple of 64"
    assert all(odd.holds(each) for each in (*odd.grid().points, odd.check()))
    learned, *_ = regimes({"max_position_embeddings": 512}, setup.replaced(sequence_length=512))
    lengths = [s for _, s in (*learned.grid().points, learned.check())]
    sparse, *_ = regimes({"index_topk": 2048}, setup)
    assert sparse.holds((2, 2048)) and not sparse.holds((2, 2112)), "beyond it keys are chosen"
    assert learned.holds((2, 512)) and max(lengths) == 512, "no trace beyond the last position"


@pytest.mark.parametrize("limit", [{}, {"max_position_embeddings": 512}, {"sliding_window": 640}])
def test_every_length_is_solved_from_others_of_its_regime(limit: dict[str, int]) -> None:
    for sequence in range(1, 1400):
        for batch in (1, 4):
            setup = resolve({"method": "lora", "micro_batch": batch, "sequence_length": sequence})
            for regime in regimes(limit, setup):
                points, check = regime.grid().points, regime.check()
                assert len(set(points)) == len(points) and check not in points
                assert all(regime.holds(point) for point in ((batch, sequence), *points))
                assert check is None or regime.holds(check)


# ---- programs ----------------------------------------------------------------------------------------------


def test_sizes_that_were_not_traced_are_a_direct_traces() -> None:
    compiled, notes = solved(GLM, method="lora")
    for point in ((1, 1280), (1, 6400), (4, 1280), (9, 640)):
        traces = len(notes)
        ours = compiled.at(point, "model", solve=True)
        theirs = trace(GLM, compiled.setup.replaced(micro_batch=point[0], sequence_length=point[1]))
        assert (ours.moments, ours.peak, ours.smallest_capacity_bytes) == (
            theirs.moments,
            theirs.peak,
            theirs.smallest_capacity_bytes,
        )
    assert len(notes) == traces, "the last sizes needed no trace"
    assert not [note for note in notes if "no program" in note]


@pytest.mark.slow
def test_where_a_kernel_splits_its_keys_its_own_rule_is_asked() -> None:
    """Flash attention's splits are no polynomial: with few heads their number changes with both sizes, and
    where blocks fill the GPU there is no workspace at all.
    """
    compiled, notes = solved(GLM_FEW_HEADS, method="lora")
    splits = set()
    for point in ((1, 1280), (1, 333), (2, 5120), (9, 1280)):
        ours = compiled.log(point, solve=True)[0]
        theirs, _ = recorded(
            GLM_FEW_HEADS, compiled.setup.replaced(micro_batch=point[0], sequence_length=point[1])
        )
        assert ours.events == theirs.events
        assert [(s.op, s.shape, s.module, s.component, s.name) for s in ours.storages] == [
            (s.op, s.shape, s.module, s.component, s.name) for s in theirs.storages
        ]
        splits.add(sum(s.nbytes for s in ours.storages if s.op == "split outputs"))
    assert not [note for note in notes if "no program" in note]
    assert 0 in splits and len(splits) > 2
    first, facts = compiled._logs[(1, 512)]
    assert facts.traced_layers == 3 and any(storage.call == BY_DEPTH for storage in first.storages)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "flash_attention_2", "padded": True},
        {"attention": "sdpa", "padded": True, "gpu": "t4"},  # memory-efficient attention
        {"checkpointing": "non_reentrant", "checkpoint_offload": True},  # bytes on the host move too
        {"method": "full", "parallel": "ddp", "gpus": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_other_regimes_are_a_direct_traces_too(fields: dict[str, Any]) -> None:
    config = {**GLM_FEW_HEADS, "num_hidden_layers": 1}
    compiled, notes = solved(config, **{"method": "lora", **fields})
    ours, facts = compiled.log((4, 768), solve=True)
    theirs, counts = recorded(config, compiled.setup.replaced(micro_batch=4, sequence_length=768))
    assert ours.events == theirs.events and facts == counts
    assert (facts.host_bytes > 0) == bool(fields.get("checkpoint_offload"))
    assert not [note for note in notes if "no program" in note]


def test_a_size_that_is_another_is_refused() -> None:
    compiled, _ = solved(GLM, method="lora")
    compiled.log((1, 512), solve=True)
    (free, program), *_ = compiled._programs.items()
    log, _ = recorded(GLM, compiled.setup.replaced(sequence_length=1280))
    kernels = Kernels(compiled.target)
    confirm(program, (1, 1280), log, kernels)
    log.storages[-1].nbytes += 512
    with pytest.raises(NotPolynomialError):
        confirm(program, (1, 1280), log, kernels)
    log.storages[-1].op = "another"
    with pytest.raises(DifferentStructureError):
        same_structure(program.at((1, 1280), kernels), log)
    assert free.holds((1, 1280))


def test_a_program_is_kept_and_read_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, notes = solved(GLM, method="lora")
    asked = first.at((1, 1280), solve=True)
    again, silent = solved(GLM, method="lora")
    assert again.at((1, 1280)) == asked and notes and not silent
    assert solved(GLM, method="lora", allocator="expandable")[0].at((1, 1280)).peak != asked.peak
    other, traced = solved({**GLM, "num_hidden_layers": 1}, method="lora")
    other.at((1, 1280))
    assert len(traced) == 1, "another model is another program"
    monkeypatch.setattr(store, "_versions", lambda: {"torch": "another"})
    assert solved(GLM, method="lora")[0].program(regimes(GLM, first.setup)[0], solve=False) is None


def test_another_stream_s_tensors_are_known_the_second_time(cache: Path) -> None:
    fields = {"method": "lora", "activation_offload": "trl"}
    first, again = (solved(GLM, **fields)[0].log((1, 640))[0] for _ in range(2))
    assert first.streams and first.streams == again.streams


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x1f\x8b torn"])
def test_a_damaged_file_is_solved_again(cache: Path, damage: bytes) -> None:
    asked = solved(GLM, method="lora")[0].at((1, 640))
    (file,) = cache.glob("*.json.gz")
    file.write_bytes(damage)
    assert solved(GLM, method="lora")[0].at((1, 640)) == asked


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert solved(GLM, method="lora")[0].at((1, 640)).peak.allocated_bytes > 0


# ---- the front door ----------------------------------------------------------------------------------------


def test_plan_traces_a_family_that_the_formula_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    found = memplan.plan(GLM, method="lora", sequence_length=512)
    assert found.engine == "trace" and found.assumptions[0].startswith(
        "traced: the formula has no rule for Glm4"
    )
    assert found.moments == trace(GLM, resolve({"method": "lora", "sequence_length": 512})).moments


def test_what_transformers_does_not_know_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GLM, "model_type": "no_such_model"}))
    assert run([str(tmp_path)]) == 2
    assert "no rule for model_type 'no_such_model'" in capsys.readouterr().err


def test_the_formulas_families_stay_with_the_formula() -> None:
    assert memplan.plan("gpt2").engine == "formula"
    assert replace(find("gpt2")).config["model_type"] == "gpt2"


def test_compare_traces_its_methods_and_counts_no_operations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GLM))
    assert run(["compare", str(tmp_path), "--methods", "lora,full", "--seq", "512", "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    for column in json.loads(found.out)["methods"]:
        direct = trace(GLM, resolve({"method": column["method"], "sequence_length": 512}))
        assert column["peak"]["reserved_bytes"] == direct.peak.reserved_bytes
        assert column["flops"] is column["relative_flops"] is None and column["kept_bytes"] > 0


def test_fit_finds_the_sizes_at_which_the_verdict_turns() -> None:
    gpu = find_gpu("0.9GiB")
    setup = resolve({"method": "lora", "sequence_length": 1024, "gpu": "0.9GiB"})
    found = api.fit_by_trace(find(GLM), setup, gpu, methods=())
    batch, longest = found.asked.largest_batch, found.asked.longest_sequence
    assert found.engine == "trace" and batch is not None and longest is not None and longest % 64 == 0

    def verdict(**fields: Any) -> str | None:
        direct = trace(GLM, setup.replaced(**fields))
        return judge(direct, gpu).verdict

    assert verdict(micro_batch=batch) == "fits" != verdict(micro_batch=batch + 1)
    assert verdict(sequence_length=longest) == "fits" != verdict(sequence_length=longest + 64)


def test_the_screen_of_a_traced_fit_says_nothing_of_a_grid() -> None:
    """Every limit as `--explain` shows it: what a trace does not search is not said to be empty."""
    setup = resolve({"method": "lora", "sequence_length": 512, "gpu": "0.9GiB"})
    found = api.fit_by_trace(find(GLM), setup, find_gpu("0.9GiB"), methods=())
    stream = io.StringIO()
    show(*fit_screen(found, None, [], None, [], explain=True), console=make_console(stream, 80))
    words = " ".join(stream.getvalue().split())
    assert "Choose lora: it needs 0.65 GiB" in words and found.asked.holds
    assert "no method fits" not in words and "longest sequence by micro-batch" not in words
    assert margin_of("trace", setup) < margin_of("formula", setup)
    assert f"{margin_of('formula', setup):.1%}" not in words, "the replay's own error is the trace's"


@pytest.mark.slow
def test_limits_of_a_traced_fit_leave_the_recorded_error() -> None:
    setup = resolve({"method": "lora", "sequence_length": 1024, "gpu": "0.9GiB"})
    gpu = find_gpu("0.9GiB")
    bare, wide = (fit_by_trace("glm", GLM, setup, gpu, methods=(), error=error).asked for error in (0.0, 0.2))
    assert wide.largest_batch is not None and bare.largest_batch is not None
    assert wide.largest_batch < bare.largest_batch

    def needed(batch: int) -> int:
        return trace(GLM, setup.replaced(micro_batch=batch)).peak.reserved_bytes

    room = gpu.usable_bytes - gpu.context_bytes
    assert needed(wide.largest_batch) * 1.2 <= room < needed(wide.largest_batch + 1) * 1.2


@pytest.mark.parametrize("command", ["plan", "fit"])
def test_what_several_gpus_share_is_refused_with_what_answers(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GLM))
    several = ["--gpus", "2", "--parallel", "fsdp", "--gpu", "h100-80gb"]
    assert run([command, str(tmp_path), *several]) == 2
    said = capsys.readouterr().err
    assert "no rule for glm4" in said and "memplan dry-run --gpus 2 --" in said and "formula," not in said


def test_a_page_of_a_family_that_the_formula_lacks_is_refused_with_what_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GLM))
    assert run(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "--explain has every tensor" in capsys.readouterr().err


def test_ddp_of_a_family_that_the_formula_lacks_counts_its_buckets() -> None:
    fields = {"method": "full", "sequence_length": 512}
    alone, one_of_two = (memplan.plan(GLM, **fields, **more) for more in ({}, {"parallel": "ddp", "gpus": 2}))
    buckets = [row for row in one_of_two.moment("optimizer_step").rows if row.name.endswith("bucket")]
    gradients = [row for row in alone.moment("optimizer_step").rows if row.component == "gradients"]
    assert sum(row.bytes for row in buckets) == sum(row.bytes for row in gradients) > 0
    more = [each.moment("optimizer_step").allocated_bytes for each in (one_of_two, alone)]
    assert more[0] - more[1] == sum(row.charged for row in buckets)
