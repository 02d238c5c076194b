"""Every document that a person hands over, by every door: the same bounds, one short message that names the
file or the key, at once.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from fuzzing import answered, broken_promises
from fuzzing_doors import Line
from fuzzing_input import SECRET

CLAIM = '[[claim]]\nid = "1"\nreading = "x"\n[[claim.part]]\nwhat = "x"\ncheck = "quantity"\nclaimed = @@\n'
DOORS: dict[str, tuple[list[str], str, str]] = {
    # door: (command line, name of the file, its text with @@ where a number stands)
    "config": (["{}"], "config.json", '{"model_type": "llama", "hidden_size": @@}'),
    "training file": (["{}"], "train.yaml", '{"base_model": "gpt2", "datasets": [], "micro_batch_size": @@}'),
    "setup": (["gpt2", "--setup", "{}"], "setup.yaml", '{"micro_batch": @@}'),
    "adapter": (["gpt2", "--adapter", "{}"], "adapter_config.json", '{"peft_type": "LORA", "r": @@}'),
    "campaign": (
        ["campaign", "{}", "--out", "{}.out", "--list"],
        "c.yaml",
        '{"device": "cpu", "cases": [{"model": "gpt2", "rank": @@}]}',
    ),
    "record": (
        ["validate", "{}"],
        "record.json",
        '{"schema": "memplan.measurement/1", "outcome": "ok", "environment": {}, "steps": @@}',
    ),
    "claims": (["claims", "{}"], "claims.toml", CLAIM),
    "diff": (["diff", "{}", "{}"], "old.json", '{"schema": "memplan.prediction/1", "peak": @@}'),
    "measurement": (
        ["report", "gpt2", "-o", "{}.html", "--measurement", "{}"],
        "m.json",
        '{"schema": "memplan.measurement/1", "moments": [{"name": "forward", "allocated_bytes": @@}]}',
    ),
    "jobs": (["fit", "{}"], "jobs.yaml", '{"jobs": [{"model": "gpt2", "micro_batch": @@}]}'),
    "log": (["oom", "{}"], "run.log", "CUDA out of memory. Tried to allocate @@ GiB."),
    "launch line": (
        ["--", "axolotl", "train", "{}"],
        "a.yaml",
        '{"base_model": "gpt2", "datasets": [], "sequence_len": @@}',
    ),
}
KEYS = {
    "config": "hidden_size",
    "training file": "micro_batch_size",
    "setup": "micro_batch",
    "adapter": "r",
    "campaign": "rank",
    "record": "steps",
    "claims": "claimed",
    "diff": "peak",
    "measurement": "moments[0].allocated_bytes",
    "jobs": "micro_batch",
    "launch line": "sequence_len",
}


def refused(door: str, path: Path) -> str:
    """What the door says of a file, at once and with exit code 2."""
    start = time.process_time()
    code, out, err = answered(Line([word.format(path) for word in DOORS[door][0]]))
    assert time.process_time() - start < 5
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and len(err) < 500, (code, err)
    assert broken_promises(code, out, err, []) == []
    return err


def write(door: str, folder: Path, number: str) -> Path:
    path = folder / DOORS[door][1]
    path.write_text(DOORS[door][2].replace("@@", number))
    return path


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_file_does_not_block(door, tmp_path):
    os.mkfifo(tmp_path / DOORS[door][1])
    assert "is not a file" in refused(door, tmp_path / DOORS[door][1]) or door == "config"


@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("log",)])
def test_a_file_of_a_hundred_megabytes_is_not_read(door, tmp_path):
    path = tmp_path / DOORS[door][1]
    with path.open("wb") as file:
        file.truncate(105 * 10**6)
    assert "105,000,000 bytes" in refused(door, path)


@pytest.mark.parametrize("door", DOORS)
def test_a_device_that_never_ends_is_not_read(door, tmp_path):
    path = tmp_path / DOORS[door][1]
    path.symlink_to("/dev/zero")
    assert "is not a file" in refused(door, path) or door == "config"


@pytest.mark.parametrize("door", KEYS)
@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 4000, "9" * 9000, "-" + "9" * 40])
def test_a_number_that_is_none_is_named_by_its_key(door, number, tmp_path):
    number = {"NaN": "nan", "-Infinity": "-inf"}.get(number, number) if door == "claims" else number
    said = refused(door, write(door, tmp_path, number))
    assert KEYS[door] in said or (door == "claims" and "thousands of digits" in said), said
    assert "9" * 61 not in said


@pytest.mark.parametrize("door", [door for door in KEYS if door != "claims"])
@pytest.mark.parametrize(
    "value", [f'"{SECRET}"', '"\\u001b[31mred\\u0007"', '"\\u202ex"', json.dumps("y" * 900)]
)
def test_a_value_is_echoed_short_plain_and_without_tokens(door, value, tmp_path):
    said = refused(door, write(door, tmp_path, value))
    assert SECRET[3:] not in said and "y" * 61 not in said


@pytest.mark.parametrize("door", [door for door in DOORS if DOORS[door][1].endswith((".yaml", ".json"))])
def test_depth_aliases_and_nodes_are_bounded(door, tmp_path):
    path = tmp_path / DOORS[door][1]
    path.write_text('{"a":' * 90_000 + "1" + "}" * 90_000)
    assert "nested more than 60 levels" in refused(door, path)
    path.write_text("[" + "[],".join([""] * 1_200_000) + "[]]")
    assert "values" in refused(door, path) or "bytes" in refused(door, path)
    if path.suffix == ".yaml":
        path.write_text("device: cpu\nmodels: {t: &t {model_type: llama, x: *t}}\n")
        assert "nested more than 60 levels" in refused(door, path)
        laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        path.write_text("\n".join(laughs))
        assert "anchors may not multiply" in refused(door, path)
        path.write_text("k: 2020-99-99\nwhen: 2020-01-01T00:00:00\n")
        refused(door, path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "name", ["x" * 5000, "a/" * 3000, "caf\u00e9\udcff"], ids=["long", "deep", "not UTF-8"]
)
def test_a_name_that_no_file_system_takes(door, name, tmp_path):
    path = tmp_path / (name + DOORS[door][1])
    code, out, err = answered(Line([word.format(path) for word in DOORS[door][0]]))
    assert code == 2 and out == "" and broken_promises(code, out, err, []) == [], (code, err)


def test_a_deepspeed_file_of_any_name_is_not_beside():
    code, out, err = answered(Line(["--", "torchrun", "python", "--deepspeed", "9" * 300, "--bf16", "true"]))
    assert code == 2 and out == "" and broken_promises(code, out, err, []) == [], err


def test_a_grid_that_never_ends_is_counted_first(tmp_path):
    path = tmp_path / "c.yaml"
    grid = {name: list(range(1, 1001)) for name in ("rank", "micro_batch", "sequence_length", "alpha")}
    path.write_text(json.dumps({"device": "cpu", "cases": [{"model": "gpt2", "grid": grid}]}))
    assert "case 1: the grid has 1000000000000 cases: expected at most 2,000" in refused("campaign", path)
    many = [
        {"model": "gpt2", "grid": {"rank": list(range(1, 1501))}},
        {"model": "gpt2", "grid": {"alpha": list(range(1, 1501))}},
    ]
    path.write_text(json.dumps({"device": "cpu", "cases": many}))
    code, _, err = answered(Line(["campaign", str(path), "--out", str(tmp_path / "o"), "--list"]))
    assert code == 2 and "a campaign has at most 2,000 cases" in err


def test_a_folder_with_a_pipe_in_it_and_no_path_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "x.json")
    assert "is not a file" in refused("record", tmp_path)
    code, _, err = answered(Line(["validate", ""]))
    assert code == 2 and "PATH is empty" in err


@pytest.mark.parametrize("gpus", ["1" + "0" * 100, "1" + "0" * 5000, "-1", "1e9", SECRET, "\x1b[31m"])
def test_an_absurd_count_of_gpus_is_one_short_message(gpus):
    for option in (["--gpus", gpus], ["--set", f"gpus={gpus}"]):
        code, out, err = answered(Line(["gpt2", "--parallel", "ddp", *option]))
        assert code == 2 and out == "" and len(err) < 300 and broken_promises(code, out, err, []) == []


def test_a_config_of_ten_thousand_layers_is_answered():
    """The largest depth that is believed: layers that repeat are walked once."""
    start = time.process_time()
    from memplan import plan

    plan(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 10_000,
            "intermediate_size": 64,
            "vocab_size": 99,
            "num_attention_heads": 4,
        }
    )
    assert time.process_time() - start < 5
