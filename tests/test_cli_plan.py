"""`memplan MODEL` on the real formula: the contract's document, the same figures on the screen, exit codes
that say whether it fits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.answers.fit import suggest as suggesting
from memplan.planner.answers.fit.suggest import CHANGES, changed, suggest
from memplan.planner.formula.engine import whole_segments
from memplan.planner.inputs.setup import FIELDS
from memplan.planner.prediction import PREDICTION_SCHEMA
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.units import GIB


def document(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert run([*args, "--json"]) in (0, 1)
    return json.loads(capsys.readouterr().out)


def test_the_document_is_the_contracts(capsys: pytest.CaptureFixture[str]):
    found = document(capsys, "llama-7b", "--method", "qlora", "--explain")
    assert found["schema"] == PREDICTION_SCHEMA and found["memplan_version"] and found["engine"] == "formula"
    assert found["model"]["name"] == "llama-7b" and found["model"]["parameters"] == 6_738_415_616
    assert set(found["setup"]) == set(FIELDS)
    assert [m["name"] for m in found["moments"]] == [
        "load_peak",
        "load",
        "forward",
        "backward",
        "optimizer_step",
    ]
    for moment in found["moments"]:
        assert tuple(moment["components"]) == COMPONENTS
        assert (
            sum(moment["components"].values())
            == moment["allocated_bytes"]
            == sum(row["bytes"] for row in moment["rows"])
        )
    peak = found["peak"]
    assert peak["allocated_bytes"] == max(m["allocated_bytes"] for m in found["moments"])
    assert peak["device_bytes"] == peak["reserved_bytes"] + peak["context_bytes"]
    assert sum(row["bytes"] for row in found["rows"]) == peak["allocated_bytes"]
    assert all(row["bytes"] >= 0 and row["why"] and row["block_bytes"] is None for row in found["rows"])
    assert {
        "gpus",
        "accuracy",
        "assumptions",
        "warnings",
        "host_bytes",
        "smallest_capacity_bytes",
        "step_peak",
        "checkpoint_bytes",
    } <= set(found)


def test_rows_are_there_only_with_explain(capsys: pytest.CaptureFixture[str]):
    found = document(capsys, "gpt2")
    assert "rows" not in found and "rows" not in found["moments"][0]


def test_trainable_parameters_of_the_classic_lora_example(capsys: pytest.CaptureFixture[str]):
    assert (
        document(capsys, "opt-350m", "--method", "lora", "--rank", "8", "--targets", "q_proj,v_proj")[
            "trainable_parameters"
        ]
        == 786_432
    )


def test_options_may_stand_before_or_after_the_model(capsys: pytest.CaptureFixture[str]):
    expected = document(capsys, "plan", "gpt2", "--method", "full", "--batch", "2")
    assert document(capsys, "gpt2", "--method", "full", "--batch", "2") == expected
    assert document(capsys, "--method", "full", "--batch", "2", "gpt2") == expected
    assert document(capsys, "--batch", "2", "gpt2", "--set", "method=full") == expected


def test_the_words_that_end_the_first_screen_work_as_they_stand(capsys: pytest.CaptureFixture[str]):
    expected = document(capsys, "gpt2", "--explain")
    assert expected["rows"]
    assert document(capsys, "gpt2", "--explain", "tensors") == expected
    assert document(capsys, "--explain", "tensors", "gpt2") == expected


def test_the_command_line_and_python_agree(capsys: pytest.CaptureFixture[str]):
    ours = memplan.plan("llama-3.1-8b", method="lora", rank=8, gpu="4090")
    theirs = document(capsys, "llama-3.1-8b", "--rank", "8", "--gpu", "4090")
    assert theirs == json.loads(json.dumps(ours.to_document()))
    assert ours.setup.gpu == "rtx-4090" and ours.gpus[0].name == "rtx-4090"


def test_a_setup_given_whole_is_used_whole():
    setup = memplan.plan("gpt2", method="full", recipe="raw").setup
    assert memplan.plan("gpt2", setup).setup == setup
    assert memplan.plan("gpt2", setup, micro_batch=4).setup.micro_batch == 4


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [(["--method", "qlora", "--gpu", "rtx-4090"], 0, "fits"), (["--method", "full", "--gpu", "t4"], 1, "no")],
)
def test_exit_code_says_whether_it_fits(
    args: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["llama-7b", *args]) == code
    out, err = capsys.readouterr()
    assert out.startswith("✓ FITS rtx-4090" if code == 0 else "✗ DOES NOT FIT t4") and err == ""
    assert run(["llama-7b", *args, "--json"]) == code
    verdict = json.loads(capsys.readouterr().out)["gpus"][0]
    assert verdict["verdict"] == word and (verdict["headroom_bytes"] >= 0) == (code == 0)


def test_tight_is_exit_zero_with_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "memplan.api.recorded_accuracy",
        lambda engine, prediction=None: memplan.Accuracy(0.01, 0.1, 9, "test"),
    )
    exact = memplan.plan("gpt2", gpu="24GiB").peak.device_bytes
    assert run(["gpt2", "--gpu", f"{exact}B"]) == 0
    out, err = capsys.readouterr()
    assert (
        out.startswith(f"~ TIGHT {exact}B") and err.startswith("memplan: tight on ") and err.count("\n") == 1
    )


def test_the_screen_shows_the_documents_figures(capsys: pytest.CaptureFixture[str]):
    found = document(capsys, "llama-7b", "--method", "qlora", "--gpu", "rtx-4090", "--explain")
    run(["llama-7b", "--method", "qlora", "--gpu", "rtx-4090", "--explain", "--assumptions"])
    out = capsys.readouterr().out
    gpu = found["gpus"][0]
    assert f"{gpu['low_bytes'] / GIB:.1f}–{gpu['high_bytes'] / GIB:.1f} GiB" in out.splitlines()[0]
    for name, size in found["moments"][3]["components"].items():
        assert not size or any(f"{size / GIB:.2f}" in line for line in out.splitlines()), name
    assert f"{len(found['rows'])} rows add up to {found['peak']['allocated_bytes']:,} bytes" in out
    for row in found["rows"]:
        assert f"{row['bytes']:,} " in out
    assert max(map(len, out.splitlines())) <= 80
    assert "recipe hf" in out and "Accuracy" in out


def test_three_changes_each_saves_what_it_says():
    prediction = memplan.plan("llama-7b", method="full", micro_batch=2)
    spec = memplan.find("llama-7b").spec()
    found = suggest(spec, prediction.setup, prediction)
    assert len(found) == 3 and [s.saved_bytes for s in found] == sorted(
        (s.saved_bytes for s in found), reverse=True
    )
    for suggestion in found:  # of what is allocated: what lies between tensors is not replayed for each
        again = memplan.plan("llama-7b", changed(prediction.setup, suggestion.fields))
        saved = whole_segments(prediction.peak.allocated_bytes) - whole_segments(again.peak.allocated_bytes)
        assert suggestion.saved_bytes == saved > 0
        assert suggestion.device_bytes == prediction.peak.device_bytes - saved


@pytest.mark.parametrize(
    "model, fields",
    [
        ("llama-7b", {"method": "qlora"}),
        ("gpt2", {"method": "full", "micro_batch": 4}),
        ("llama-3.1-8b", {"method": "lora", "checkpointing": "non_reentrant"}),
        ("llama-7b", {"method": "full", "optimizer_in_backward": True, "optimizer": "adamw_torch"}),
    ],
)
def test_a_change_that_is_passed_over_is_none_of_the_largest(model, fields, monkeypatch):
    prediction, spec = memplan.plan(model, **fields), memplan.find(model).spec()
    for most in (1, 2, 3):
        found = suggest(spec, prediction.setup, prediction, most)
        with monkeypatch.context() as every:  # a trace's peak bounds nothing: each change is evaluated
            every.setattr(suggesting, "_bound", lambda *given: float("inf"))
            assert suggest(spec, prediction.setup, prediction, most) == found


def test_what_makes_it_fit_comes_first():
    card = memplan.find_gpu("rtx-4090")
    prediction = memplan.plan("llama-7b", method="full", gpu="rtx-4090")
    found = suggest(memplan.find("llama-7b").spec(), prediction.setup, prediction)
    fits = [s.device_bytes <= card.usable_bytes for s in found]
    assert any(fits) and fits == sorted(fits, reverse=True)


def test_every_change_names_the_option_that_makes_it():
    for change in CHANGES:
        assert re.search(
            r"--(checkpointing|attention|optimizer|set|loss|method|rank|batch|seq|dtype) ?", change.text
        )


def test_a_training_file_says_model_and_setup(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "train.yaml"
    said = (
        "base_model: meta-llama/Llama-2-7b-hf",
        "adapter: qlora",
        "load_in_4bit: true",
        "lora_r: 32",
        "micro_batch_size: 2",
    )
    file.write_text("\n".join((*said, "sequence_len: 1024", "shoe_size: 43")))
    found = document(capsys, str(file), "--set", "rank=8")
    assert (found["model"]["name"], found["setup"]["recipe"], found["setup"]["sequence_length"]) == (
        "llama-2-7b",
        "axolotl",
        1024,
    )
    assert found["setup"]["rank"] == 8, "an option overrides the file"
    assert (
        any("shoe_size" in warning for warning in found["warnings"])
        and found["import"]["format"] == "axolotl"
    )
    assert run(["--", "accelerate", "launch", "-m", "axolotl.cli.train", str(file)]) == 0
    assert "shoe_size" in capsys.readouterr().out


def test_a_setup_file_and_a_document_of_ours_are_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = document(capsys, "gpt2", "--method", "full", "--batch", "3", "--set", "retain_outputs=true")
    saved = tmp_path / "prediction.json"
    saved.write_text(json.dumps(first))
    assert document(capsys, "gpt2", "--setup", str(saved))["peak"] == first["peak"]
    (tmp_path / "setup.yaml").write_text("method: full\nmicro_batch: 3\nretain_outputs: true\n")
    assert document(capsys, "gpt2", "--setup", str(tmp_path / "setup.yaml"))["peak"] == first["peak"]
    (tmp_path / "wrong.yaml").write_text("method: full\nmicrobatch: 3\n")
    assert run(["gpt2", "--setup", str(tmp_path / "wrong.yaml")]) == 2
    assert "micro_batch" in capsys.readouterr().err


def test_a_cpu_has_no_card_and_no_context(capsys: pytest.CaptureFixture[str]):
    found = document(capsys, "gpt2", "--device", "cpu")
    assert found["gpus"] == [] and found["peak"]["context_bytes"] == 0


def test_one_rank_of_several_is_said_to_be_one_and_its_error_to_be_unknown(
    capsys: pytest.CaptureFixture[str],
):
    assert (
        run(["llama-7b", "--method", "full", "--gpus", "8", "--parallel", "fsdp", "--gpu", "a100-80gb"]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "one rank of 8 (fsdp)" in out and "no multi-GPU run has been recorded" in out
    found = document(capsys, "llama-7b", "--method", "full", "--gpus", "8", "--parallel", "fsdp")
    assert (
        found["accuracy"]["median_error"] is None and found["moments"][1]["components"]["weights"] < 4 * 10**9
    )


def test_the_trace_refuses_a_rank_that_shares(capsys: pytest.CaptureFixture[str]):
    assert run(["gpt2", "--gpus", "2", "--parallel", "fsdp", "--engine", "trace"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--engine formula" in err


def test_ddp_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]):
    assert any(
        "NCCL" in warning
        for warning in document(capsys, "gpt2", "--gpus", "2", "--parallel", "ddp")["warnings"]
    )


def test_a_file_that_shares_without_a_count_of_ranks_is_a_warning_with_the_move(
    capsys: pytest.CaptureFixture[str],
):
    file = str(Path(__file__).parent / "data" / "importers" / "llamafactory_full_ds.yaml")
    assert any(
        "one rank" in warning and "--gpus N" in warning for warning in document(capsys, file)["warnings"]
    )
    assert not any("one rank" in warning for warning in document(capsys, file, "--gpus", "8")["warnings"])


def test_an_adapter_file_without_a_rule_is_for_the_trace():
    with pytest.raises(memplan.UsageError, match="--engine trace"):
        memplan.plan("gpt2", engine="formula", adapter={"peft_type": "LOHA"})


def test_a_choice_that_the_method_does_not_read_is_named():
    assert any(
        "rank has no effect" in warning for warning in memplan.plan("gpt2", method="full", rank=8).warnings
    )
    assert memplan.plan("gpt2", method="lora", rank=8).warnings == ()
