"""Records survive what happens to files: kills, full disks, other schemas, edits; and are found again by
content.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError
from memplan.profiler import archive as archives
from memplan.profiler import files, record
from memplan.profiler.record import Failure, MeasuredMoment, MeasuredPeak, Measurement

ENVIRONMENT = {"device": "cpu", "gpu": None, "versions": {"torch": "2.13.0", "peft": None}}
CONFIG = {"model_type": "llama", "hidden_size": 64}


def measurement(**changes: Any) -> Measurement:
    moments = (
        MeasuredMoment("load", 100, None, {"weights": 100}),
        MeasuredMoment("forward", 150, None, {"weights": 100, "activations": 40, "unattributed": 10}),
    )
    base = Measurement(
        case="tiny lora",
        model={"name": "tiny", "architecture": "LlamaForCausalLM", "parameters": 10, "config": CONFIG},
        setup=resolve({"method": "lora", "device": "cpu"}),
        environment=ENVIRONMENT,
        outcome="ok",
        steps=3,
        peak=MeasuredPeak("forward", 150),
        step_peak=MeasuredPeak("forward", 150),
        moments=moments,
        step_seconds=(0.1, 0.2),
    )
    return base.with_(**changes)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    before = measurement(
        failure=Failure("oom", "out of memory", requested_bytes=5, free_bytes=3), outcome="oom"
    )
    after = record.load(record.save_in(before, tmp_path))
    assert after.to_document() == before.to_document()
    assert after.moment("forward").components == {"weights": 100, "activations": 40, "unattributed": 10}
    assert after.setup.to_document() == before.setup.to_document()


def test_the_document_follows_the_contract() -> None:
    document = measurement().to_document()
    assert document["schema"] == "memplan.measurement/1"
    assert {
        "memplan_version",
        "setup",
        "model",
        "environment",
        "outcome",
        "peak",
        "moments",
        "retries",
        "device_bytes",
        "step_seconds",
        "tokens_per_second",
    } <= set(document)
    unknown = dict.fromkeys(("reserved_bytes", "context_bytes", "device_bytes"))
    assert document["peak"] == {"moment": "forward", "allocated_bytes": 150, **unknown}
    assert MeasuredPeak("forward", 1, 2, 3).to_document()["device_bytes"] == 5


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "tiny", "config": {**CONFIG, "hidden_size": 65}}},
        {"setup": resolve({"method": "lora", "device": "cpu", "rank": 8})},
        {"cap_bytes": 2**30},
        {"steps": 4},
        {"environment": {**ENVIRONMENT, "gpu": "NVIDIA H200"}},
        {"environment": {**ENVIRONMENT, "versions": {"torch": "2.14.0", "peft": None}}},
    ],
)
def test_identity_changes_with_what_decides_the_numbers(change: dict[str, Any]) -> None:
    assert measurement(**change).identity != measurement().identity


def test_identity_ignores_what_was_measured() -> None:
    assert (
        measurement(step_seconds=(9.0,), wall_seconds=3.0, case="renamed").identity == measurement().identity
    )


def test_unknown_keys_of_a_newer_version_are_dropped_and_missing_setup_fields_filled() -> None:
    document = measurement().to_document()
    document.update(novelty=1, setup={**document["setup"], "novelty": True}, memplan_version="9.0")
    document["moments"][0]["novelty"] = 1
    del document["setup"]["outputs_fp32"]
    read = record.from_document(document)
    assert read.setup.outputs_fp32 is False
    assert read.moments == measurement().moments


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "memplan.measurement/2"}, "install a newer memplan"),
        ({"schema": "memplan.prediction/1"}, "expected a document of schema memplan.measurement/1"),
        ({"schema": None}, "expected a document of schema"),
        ({"outcome": "great"}, "outcome is 'great', expected ok, oom, error"),
        ({"model": None}, "model is None, expected dict"),
        ({"steps": "3"}, "steps is '3', expected int"),
        ({"steps": True}, "steps is True, expected int"),
        (
            {"peak": {"moment": "forward", "allocated_bytes": 1.5}},
            "peak.allocated_bytes is 1.5, expected a whole number",
        ),
        ({"peak": {"allocated_bytes": 1}}, "peak: "),
        ({"peak": None}, "peak or moments are missing"),
        ({"moments": ["x"]}, "moments[0] is 'x', expected an object"),
        ({"step_seconds": ["fast"]}, "step_seconds[0] is 'fast'"),
        ({"cap_bytes": 7}, "the record was edited or cut"),
        ({"setup": {"method": "lora"}}, "setup."),
        (
            {"setup": {**measurement().to_document()["setup"], "method": "x"}},
            "setup: unknown method 'x': expected one of ",
        ),
    ],
)
def test_a_bad_record_is_one_message(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**measurement().to_document(), **change}))
    with pytest.raises(UsageError) as caught:
        record.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_written_and_foreign_files_are_reported_and_skipped(tmp_path: Path) -> None:
    good = record.save_in(measurement(), tmp_path)
    (tmp_path / "half.json").write_text(good.read_text()[:200])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "prediction.json").write_text("{}")
    found, problems = record.scan(tmp_path)
    assert [path for path, _ in found] == [good]
    assert len(problems) == 4


def test_nothing_is_overwritten_silently(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record.save(measurement(), path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        record.save(measurement(steps=9), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    first, second = record.save_in(measurement(), tmp_path), record.save_in(measurement(), tmp_path)
    assert first != second


@pytest.mark.parametrize(("code", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only")])
def test_a_full_disk_is_one_message_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UsageError, match=says):
        files.write_document(path, {"a": 1}, replace=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_an_unwritable_folder_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="expected a folder|part of the path is a file"):
        files.make_folder(file)
    with pytest.raises(UsageError, match="cannot write into"):
        files.make_folder(file / "below")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageError, match="no permission"):
        files.make_folder(tmp_path)


def test_an_archive_holds_many_records_and_gives_them_back(tmp_path: Path) -> None:
    archive = tmp_path / "all.jsonl"
    several = [measurement(steps=n) for n in (1, 2, 3)]
    assert archives.pack(several[:2], archive) == 2
    with open(archive, "a") as handle:
        handle.write('{"schema": "memplan.meas')  # torn by a kill
    assert archives.pack(several, archive) == 1
    folder = tmp_path / "out"
    folder.mkdir()
    written, problems = archives.unpack(archive, folder)
    assert len(written) == 3
    assert len(problems) == 1
    assert "line 3: not a complete JSON object" in problems[0]
    assert {m.steps for _, m in record.scan(folder)[0]} == {1, 2, 3}
    assert archives.unpack(archive, folder)[0] == []


@pytest.mark.parametrize(
    ("gpu", "folder"),
    [
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        (None, "cpu"),
    ],
)
def test_records_lie_under_their_gpus_name(gpu: str | None, folder: str) -> None:
    assert record.folder_of({"gpu": gpu}) == folder


def test_names_of_cases_become_safe_file_names() -> None:
    name = record.file_name("../../Llama 7B: full/eager " + "x" * 300, "0123456789abcdef")
    assert "/" not in name
    assert name.startswith("llama-7b-full-eager-x")
    assert len(name) < 120
