"""`measurements/compiled.jsonl` has what benchmarks/compiled_traces.py recorded, docs/compiled.md what came
of it: compiled traces of architectures without a formula family, held against direct ones.
"""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from memplan.planner.inputs.families.table import FAMILIES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("compiled_traces")


def test_forty_architectures_without_a_family_are_met_at_five_sizes_each(script: ModuleType) -> None:
    ran = [each for each in script.recorded(script.RECORDS) if each["sizes"]]
    assert len(ran) >= 40 and not {each["model_type"] for each in ran} & set(FAMILIES)
    assert all(len({tuple(size["point"]) for size in each["sizes"]}) == 5 for each in ran)
    peaks = [size["peak"] for each in ran for size in each["sizes"]]
    assert statistics.median(peaks) == 0 and max(peaks) <= script.TARGET
    for name in ("method", "attention", "checkpointing", "padded", "optimizer"):
        assert len({each["fields"][name] for each in ran}) > 1, f"other regimes too: {name}"
    assert {each["fields"]["method"] for each in ran} == {"lora", "qlora", "full", "dora"}


def test_sizes_compared_are_not_those_that_were_traced(script: ModuleType) -> None:
    from memplan.planner.compiled.regime import regimes
    from memplan.planner.inputs.setup import resolve

    for each in script.recorded(script.RECORDS):
        for size in each["sizes"]:
            batch, length = size["point"]
            config = script.config_of(each["model_type"])
            setup = resolve({**each["fields"], "micro_batch": batch, "sequence_length": length})
            found = regimes(config, setup)
            answers = found[0] if size["from"] == "regime" else found[-2]
            assert answers.holds((batch, length)) and answers.fixed == (size["from"] == "length")
            assert (batch, length) not in (*answers.grid().points, answers.check())


def test_the_page_is_the_record_s(script: ModuleType) -> None:
    text = (ROOT / "docs" / "compiled.md").read_text(encoding="utf-8")
    expected = script.table(script.recorded(script.RECORDS), script.digest_of(script.RECORDS))
    assert text == expected, "run: python benchmarks/compiled_traces.py --table > docs/compiled.md"


def test_layers_are_cut_with_the_lists_that_have_a_value_for_each(script: ModuleType) -> None:
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["linear", "linear", "full", "linear"],
        "other": [1, 2, 3],
        "num_experts": 8,
    }
    assert script.cut(config) == {
        "num_hidden_layers": 3,
        "layer_types": ["linear", "linear", "full"],
        "other": [1, 2, 3],
        "num_experts": 8,
    }
    assert script.cut({"n_layer": 12}) == {"n_layer": 1}


@pytest.mark.slow
@pytest.mark.trace
def test_an_architecture_is_met_again(script: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = script.case("arcee")
    assert len(found["sizes"]) == 5 and all(size["equal"] for size in found["sizes"])
