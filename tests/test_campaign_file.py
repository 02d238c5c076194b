"""Campaign files: grids and what they multiply to, durations, and one message for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import TINY

from memplan.planner.tables.errors import UsageError
from memplan.profiler import case_matrix, record
from memplan.profiler.case_matrix import expand, parse_duration

ROOT = Path(__file__).parents[1]


def test_grids_multiply_merge_mappings_and_skip() -> None:
    document = {
        "device": "cpu",
        "models": {"a": TINY, "b": {**TINY, "hidden_size": 128}},
        "defaults": {"recipe": "raw"},
        "cases": [
            {
                "grid": {
                    "model": ["a", "b"],
                    "method": ["full", "lora"],
                    "shape": [{"micro_batch": 1}, {"micro_batch": 4, "sequence_length": 32}],
                },
                "skip": [{"model": "b", "method": "full"}],
            },
            {"model": "a", "method": "full"},  # the same as the grid's first: once
            {"model": "a", "method": "full", "cap": "1GiB", "name": "capped"},
        ],
    }
    cases = expand(document, "file").cases
    assert [
        (c.model, c.setup.method, c.setup.micro_batch, c.setup.sequence_length, c.cap_bytes) for c in cases
    ] == [
        ("a", "full", 1, 2048, None),
        ("a", "full", 4, 32, None),
        ("a", "lora", 1, 2048, None),
        ("a", "lora", 4, 32, None),
        ("b", "lora", 1, 2048, None),
        ("b", "lora", 4, 32, None),
        ("a", "full", 1, 2048, 2**30),
    ]
    assert {c.setup.recipe for c in cases} == {"raw"}
    assert {c.setup.load for c in cases} == {"random"}
    assert cases[-1].name == "capped"
    assert len({c.name for c in cases}) == len(cases)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": []}, "cases is missing or empty"),
        ({"case": []}, "unknown key 'case': did you mean cases"),
        ({"cases": [{"model": "tiny", "metod": "lora"}]}, "case 1: unknown key 'metod': did you mean method"),
        ({"cases": [{"method": "lora"}]}, "case 1: model is None, expected a name"),
        ({"cases": ["tiny"]}, "case 1: 'tiny' is not a mapping"),
        ({"cases": [{"model": "tiny", "rank": "many"}]}, "case 1: rank "),
        ({"cases": [{"model": "tiny", "cap": "much"}]}, "case 1: 'much' is not a size"),
        ({"cases": [{"model": "tiny", "steps": 0}]}, "case 1: steps is 0, expected a whole number"),
        ({"cases": [{"model": "tiny", "deadline": "soon"}]}, "case 1: 'soon' is not a duration"),
        ({"cases": [{"model": "tiny", "grid": {"rank": 8}}]}, "case 1: grid.rank is 8, expected a list"),
        (
            {"cases": [{"model": "tiny", "grid": {"ranks": [8]}}]},
            "case 1: unknown grid axis 'ranks': did you mean rank",
        ),
        ({"cases": [{"model": "tiny", "grid": {"x": [{"ranks": 8}]}}]}, "case 1: unknown key 'ranks'"),
        ({"cases": [{"model": "tiny", "skip": {"rank": 8}}]}, "case 1: skip is"),
        ({"defaults": {"cap": "1GiB"}}, "unknown setting in defaults 'cap'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": {"x": None}}, "unknown device '{'x': None}': expected one of cpu, cuda, dry"),
        ({"models": {"tiny": 3}}, "models.tiny is 3"),
        (
            {"cases": [{"model": "tiny", "boundary": True}]},
            "case 1: boundary looks for a cap of the CUDA allocator",
        ),
        (
            {"device": "cuda", "cases": [{"model": "tiny", "boundary": True, "cap": "1GiB"}]},
            "case 1: boundary looks for a cap",
        ),
        (
            {"cases": [{"model": "tiny", "boundary": "yes"}]},
            "case 1: boundary is 'yes', expected true or false",
        ),
        ({"schema": "memplan.campaign/2"}, "expected memplan.campaign/1"),
    ],
)
def test_a_wrong_file_is_one_message(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand({"device": "cpu", "models": {"tiny": TINY}, "cases": [{"model": "tiny"}], **change}, "test")
    assert says in str(caught.value)


def test_a_file_that_is_missing_or_no_yaml_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        case_matrix.read(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("cases: [\n  {model: a")
    with pytest.raises(UsageError, match="is not valid YAML, line 3"):
        case_matrix.read(broken)
    broken.write_text("- 1")
    with pytest.raises(UsageError, match="a campaign is a mapping"):
        case_matrix.read(broken)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "campaigns").glob("*.yaml")))
def test_the_shipped_campaigns_resolve(name: str) -> None:
    cases = case_matrix.read(ROOT / "campaigns" / name).cases
    assert len(cases) >= 12
    assert len({record.slug(case.name) for case in cases}) == len(cases)


def test_durations() -> None:
    assert [parse_duration(text) for text in ("25m", "570s", "1.5h")] == [1500, 570, 5400]
    for wrong in ("25", "", "m", "-3s", "0s", "1e9h"):
        with pytest.raises(UsageError, match="is not a duration"):
            parse_duration(wrong)
