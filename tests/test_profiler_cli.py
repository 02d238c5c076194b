"""memplan profile and memplan campaign at the command line: exit codes, documents, one message for bad input,
screens from records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli.main import run
from memplan.planner.inputs.setup import resolve
from memplan.profiler import record
from memplan.profiler.campaign import Progress, Summary
from memplan.profiler.record import Failure, MeasuredMoment, MeasuredPeak, Measurement
from memplan.render.campaign import counts_line, duration, progress_view, summary_lines
from memplan.render.console import make_console
from memplan.render.profile import audit_lines, profile_screen

ROOT = Path(__file__).parents[1]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
}
GIB = 2**30


def screen(parts: list[Any], width: int = 100) -> str:
    console = make_console(width=width)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


def measurement(**changes: Any) -> Measurement:
    moments = (
        MeasuredMoment("load", 5 * GIB, 6 * GIB, {"weights": 5 * GIB}),
        MeasuredMoment(
            "backward", 9 * GIB, 10 * GIB, {"weights": 5 * GIB, "activations": 3 * GIB, "unattributed": GIB}
        ),
    )
    prediction = {
        "moments": [
            {"name": "load", "allocated_bytes": 5 * GIB},
            {"name": "backward", "allocated_bytes": 9 * GIB + GIB // 10},
        ]
    }
    unmatched = [
        {
            "only": "measured",
            "moment": "backward",
            "kind": "alloc",
            "bytes": 2**20,
            "count": 32,
            "where": "mlp.up_proj: mm",
        }
    ]
    alignment = {
        "events": {"predicted": 90, "measured": 100, "matched": 90},
        "matched_events_share": 0.947,
        "unmatched": unmatched,
    }
    base = Measurement(
        case="llama-7b qlora",
        model={"name": "llama-7b", "config": CONFIG},
        setup=resolve({"method": "qlora"}),
        environment={"gpu": "NVIDIA H200", "device": "cuda", "versions": {"torch": "2.13.0", "peft": None}},
        outcome="ok",
        steps=2,
        peak=MeasuredPeak("backward", 9 * GIB, 10 * GIB, GIB // 2),
        moments=moments,
        prediction=prediction,
        alignment=alignment,
        step_seconds=(0.5, 0.7),
        tokens_per_second=3413.0,
        flops_per_second=4e14,
        retries=2,
        warnings=("something odd",),
    )
    return base.with_(**changes)


def test_the_screen_of_a_measurement() -> None:
    text = screen(profile_screen(measurement(), Path("measurements/h200/x.json")))
    for part in (
        "measured 9.00 GiB allocated, 10.00 GiB reserved, 10.50 GiB on the device; peak: backward",
        "llama-7b qlora, batch 1 x 2048, NVIDIA H200, torch 2.13.0",
        "+1.11%",
        "exact",
        "at that peak: weights 5.00 GiB, activations 3.00 GiB, unattributed 1.00 GiB",
        "0.600 s a step (mean of 2), 3,413 tokens/s, 400.00 TFLOP/s achieved, 2 allocation retries",
        "90 of 90 predicted allocations and frees of one step happened; the allocator saw 100",
        "only measured, backward: 32 x 1.00 MiB  mlp.up_proj: mm",
        "note: something odd",
        "recorded in measurements/h200/x.json",
    ):
        assert part in text


def test_the_screen_of_a_run_out_of_memory_and_of_one_without_a_prediction() -> None:
    failure = Failure("oom", "CUDA out of memory", "backward", 2 * GIB, GIB, 20 * GIB, 22 * GIB)
    text = screen(
        profile_screen(
            measurement(
                outcome="oom", failure=failure, peak=None, moments=(), alignment=None, step_seconds=()
            )
        )
    )
    assert "out of memory in backward: asked for 2.00 GiB, 1.00 GiB free, 20.00 GiB allocated" in text
    bare = screen(
        profile_screen(
            measurement(prediction=None, alignment=None, environment={"gpu": None, "versions": {}})
        )
    )
    assert "??" in bare
    assert "CPU" in bare


def test_the_screen_of_a_campaign() -> None:
    progress = Progress(
        12, 3, 4, 1, 2, 5, "case five", ("case six", "case seven"), 250.0, 3700.0, "case four: oom"
    )
    assert counts_line(progress) == "7 of 12 recorded (3 before this run), 2 out of memory, 1 failed"
    text = screen([progress_view(progress)])
    for part in (
        "measuring   case five",
        "case six, case seven",
        "4 min 10 s, 1 h 01 min of the budget left",
        "case four: oom",
    ):
        assert part in text
    assert (duration(None), duration(9.4), duration(-1)) == ("??", "9 s", "0 s")
    left = screen(
        summary_lines(
            Summary(progress, Path("out"), (), ("x.json is half-written",), "the time budget is used up")
        )
    )
    assert "stopped: the time budget is used up; 5 cases left; run the same command to continue" in left
    assert "skipped: x.json is half-written" in left


def test_the_screen_of_an_op_audit() -> None:
    row = {
        "op": "aten.mm.default",
        "shapes": "bfloat16[2, 3]",
        "calls": 4,
        "output_bytes": 8,
        "hidden_bytes": 2**20,
        "known_bytes": 0,
    }
    text = screen(
        audit_lines(
            {"ops": [row, {**row, "hidden_bytes": 0}], "skipped": [{**row, "reason": "no such kernel"}]}
        )
    )
    assert "2 distinct ops replayed, 1 with workspaces that the trace missed, 1 not replayed" in text
    assert "1.00 MiB" in text
    assert "not replayed: aten.mm.default bfloat16[2, 3]: no such kernel" in text


@pytest.mark.trace
def test_profile_on_the_cpu_saves_a_record_and_prints_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            [
                "profile",
                "./config.json",
                "--device",
                "cpu",
                "--method",
                "lora",
                "--seq",
                "32",
                "--steps",
                "1",
                "--save",
                "--json",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema"], document["outcome"]) == ("memplan.measurement/1", "ok")
    assert document["prediction"]["schema"] == "memplan.prediction/1"
    (path, saved), *rest = record.scan(tmp_path / "measurements" / "cpu")[0]
    assert rest == []
    assert saved.to_document()["identity"] == document["identity"]
    assert saved.setup.load == "random"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["profile", "llama-7b", "--device", "cpu", "--snapshot", "x.pickle"],
            "--snapshot writes the CUDA allocator's snapshot",
        ),
        (
            ["profile", "llama-7b", "--snapshot", "nowhere/x.pickle"],
            "its folder does not exist or is not writable",
        ),
        (["profile", "llama-7b", "--cap", "much"], "'much' is not a size"),
        (["profile", "no-such-model"], "unknown model 'no-such-model'"),
        (["campaign", "none.yaml", "--out", "x"], "none.yaml does not exist"),
        (
            ["campaign", str(ROOT / "campaigns" / "cpu.yaml"), "--out", "x", "--budget", "3"],
            "'3' is not a duration",
        ),
        (["campaign", str(ROOT / "campaigns" / "cpu.yaml"), "--out", "x", "--only", "zzz"], "no case of"),
        (["campaign", "none.jsonl", "--out", "x", "--unpack"], "it does not exist"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_a_campaign_lists_its_cases_and_an_archive_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["campaign", str(ROOT / "campaigns" / "cpu.yaml"), "--out", str(tmp_path), "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    archive = tmp_path / "all.jsonl"
    archive.write_text(
        "".join(json.dumps(m.to_document()) + "\n" for m in (measurement(), measurement(steps=5))) + "{torn"
    )
    assert run(["campaign", str(archive), "--out", str(tmp_path / "out"), "--unpack", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["records"]) == 2
    assert "line 3: not a complete JSON object" in err
    assert len(record.scan(tmp_path / "out")[0]) == 2
