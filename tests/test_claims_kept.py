"""A second reading of the claims finds the same results, quickly; a change of anything finds them anew."""

from __future__ import annotations

import json
import time

import pytest

from memplan.cli.main import run
from memplan.validate import claims, kept
from memplan.validate.evaluation_context import EvaluationContext

FILE = """
schema = "memplan.claimsfile/1"
[[claim]]
id = "limit"
reading = "LoRA on opt-125m fits a 3060"
[[claim.part]]
what = "fits by sequence"
check = "fits"
model = "opt-125m"
gpu = "rtx-3060"
setup = { method = "lora" }
over = { key = "setup.micro_batch", range = [1, 64] }
claimed = true
[[claim]]
id = "fact"
reading = "NF4 stores 4 bits"
[[claim.part]]
what = "by model"
check = "quantity"
setup = { method = "full" }
over = { key = "model", values = ["opt-125m", "opt-350m"] }
quantity = "trainable_parameters"
relation = ">"
claimed = 200000000
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("platformdirs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "claims.toml"
    path.write_text(FILE)
    return path


def test_what_was_kept_is_what_was_found_word_by_word(cache):
    file, context = claims.load(cache), EvaluationContext()
    first = kept.open_kept(context, file.models)
    found = claims.to_document(file, claims.check(file, context, kept=first))
    first.write()
    assert [entry["verdict"] for entry in found["claims"]] == ["depends", "depends"]

    def refuse(model, setup):
        raise AssertionError("asked an engine again")

    again = kept.open_kept(context, file.models)
    results = claims.check(file, EvaluationContext(refuse, trace=refuse), kept=again)
    assert claims.to_document(file, results) == found
    assert not again.changed


def test_another_claimed_number_or_another_state_is_found_anew(cache, monkeypatch):
    file, context = claims.load(cache), EvaluationContext()
    first = kept.open_kept(context, file.models)
    claims.check(file, context, kept=first)
    first.write()
    cache.write_text(FILE.replace("200000000", "2000000000"))
    changed = claims.load(cache)
    verdicts = [
        r.verdict for r in claims.check(changed, context, kept=kept.open_kept(context, changed.models))
    ]
    assert verdicts == ["depends", "refuted"]
    monkeypatch.setattr(kept, "LIBRARIES", ())
    assert kept.open_kept(context, file.models).results == {}


def test_a_cache_that_cannot_be_read_or_written_is_none(cache, tmp_path):
    file, context = claims.load(cache), EvaluationContext()
    empty = kept.open_kept(context, file.models)
    assert empty.path is not None
    empty.path.parent.mkdir(parents=True)
    for text in (
        "",
        "[]",
        '{"schema": 1}',
        "null",
        '{"schema": "memplan.kept/1", "state": "x", "results": 3}',
    ):
        empty.path.write_text(text)
        assert kept.open_kept(context, file.models).results == {}
    (tmp_path / "file").write_text("")
    kept.Kept(tmp_path / "file" / "a.json", "s", {"a": 1}, changed=True).write()


def test_the_command_keeps_and_is_quick_the_second_time(cache, capsys):
    assert run(["claims", str(cache), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    start = time.process_time()
    assert run(["claims", str(cache), "--json"]) == 0
    assert time.process_time() - start < 5
    assert json.loads(capsys.readouterr().out) == first
