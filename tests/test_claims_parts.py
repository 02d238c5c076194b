"""The parts of a claim by themselves: relations, cases, boundaries, arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memplan.planner.tables.errors import UsageError
from memplan.profiler.localized_message import said
from memplan.validate.arithmetic import calculate
from memplan.validate.checks import CHECKS
from memplan.validate.chinese import in_language
from memplan.validate.claims import combine
from memplan.validate.claimsfile import Over, Part
from memplan.validate.engines import Missing
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.found import Found
from memplan.validate.sweep import PartResult, check_part, holds


@pytest.mark.parametrize(
    "value, claimed, relation, tolerance, expected",
    [
        (4, 4, "=", 0, True),
        (4.1, 4, "=", 0, False),
        (4.1, 4, "=", 0.05, True),
        (4.1, 4, ">", 0, True),
        (4, 4, "<", 0, False),
        (30, (30.0, 40.0), "between", 0, True),
        (29.9, (30.0, 40.0), "between", 0, False),
        ("nf4", "fp4", "=", 0, False),
        (True, True, "=", 0, True),
        (True, 1, "=", 0, False),
        (1, True, "=", 0, False),
    ],
)
def test_relations(value, claimed, relation, tolerance, expected):
    assert holds(value, claimed, relation, tolerance) is expected


def part(claimed: Any = True, **fields: Any) -> Part:
    return Part(
        **{"what": "w", "check": "arithmetic", "claimed": claimed, "args": {"expression": "1"}, **fields}
    )


def result(verdict: str, **fields: Any) -> PartResult:
    return PartResult(part(**fields), verdict, None, said(""))


@pytest.mark.parametrize(
    "parts, verdict",
    [
        ([result("supported"), result("refuted")], "refuted"),
        ([result("supported"), result("not_checkable")], "not_checkable"),
        ([result("supported", case="a"), result("refuted", case="b")], "depends"),
        ([result("refuted", case="a"), result("refuted", case="b")], "refuted"),
        ([result("supported", case="a"), result("not_checkable", case="b")], "supported"),
        ([result("supported"), result("refuted", decides=False)], "supported"),
        ([result("refuted"), result("supported", case="a"), result("refuted", case="b")], "refuted"),
        ([result("supported", decides=False)], "not_checkable"),
    ],
)
def test_the_verdict_of_a_claim_follows_from_its_parts(parts, verdict):
    assert combine(parts) == verdict


def test_a_boundary_is_exact_and_both_ways(monkeypatch):
    """Against a check whose truth changes twice, at 37 and at 700."""

    def stepped(given: Part, context: EvaluationContext) -> Found:
        at = given.setup["sequence_length"]
        return Found(37 <= at < 700, said("{at}", at=at))

    monkeypatch.setitem(CHECKS, "arithmetic", replace(CHECKS["arithmetic"], run=stepped))
    outcome = check_part(part(True, over=Over("setup.sequence_length", 1, 4096)), EvaluationContext())
    assert outcome.verdict == "depends"
    assert [(b.low, b.high, b.low_holds) for b in outcome.boundaries] == [(36, 37, False), (699, 700, True)]
    assert outcome.condition.startswith("fails up to sequence length 36, holds from 37")
    further = check_part(
        part(True, over=Over("setup.sequence_length", 40, 600, explore=5000)), EvaluationContext()
    )
    assert further.verdict == "supported" and further.boundaries[0].high == 700
    assert further.said("zh") == "序列长度到 699 成立，从 700 起不成立"


def test_what_is_missing_is_said_and_never_guessed(monkeypatch):
    def absent(given: Part, context: EvaluationContext) -> Found:
        if given.model == "b":
            raise Missing("no b")
        return Found(True, said("fine"))

    monkeypatch.setitem(CHECKS, "arithmetic", replace(CHECKS["arithmetic"], run=absent))
    some = check_part(part(True, over=Over("model", values=("a", "b"))), EvaluationContext())
    assert some.verdict == "supported" and "not checkable for b: no b" in str(some.evidence)
    assert "b 无法检验" in some.evidence.text(in_language("zh"))
    none = check_part(part(True, over=Over("model", values=("b",))), EvaluationContext())
    assert none.verdict == "not_checkable" and str(none.evidence) == "missing: no b"


@pytest.mark.parametrize(
    "text, value",
    [("1 + 2 * 3", 7), ("2 ** 3 ** 2 / 2", 256), ("-(4 - 6)", 2), ("8*(4096+4096)/(4096*4096)", 0.00390625)],
)
def test_arithmetic(text, value):
    assert calculate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "(1",
        "1 2",
        "1 / 0",
        "__import__('os')",
        "9 ** 9 ** 9",
        "2 ** 0.5",
        "1" + "+1" * 300,
        "10 ** 64 * 10 ** 64 ** 64",
    ],
)
def test_arithmetic_refuses_anything_else(text):
    with pytest.raises(UsageError):
        calculate(text)


def test_a_release_has_a_feature_from_the_first_one_that_was_read():
    def had(version: str, claimed: bool) -> PartResult:
        args = {"feature": "4-bit-on-cpu", "version": version}
        return check_part(part(claimed, check="release", args=args), EvaluationContext())

    assert had("0.41.1", False).verdict == had("0.46.0", True).verdict == "supported"
    assert had("0.45.6", True).verdict == "not_checkable"  # between the two that were read
    with pytest.raises(UsageError, match="expected numbers"):
        had("newest", True)


@pytest.mark.parametrize(
    "args, unit, value",
    [
        ({"figure": "qwen-7b-lora-emb-s512", "less_figure": "qwen-7b-lora-s512"}, "GB", 34.1 - 20.4),
        ({"figure": "qwen-7b-gptq-lora-s512", "per_figure": "qwen-7b-lora-s512"}, "x", 11.5 / 20.4),
        ({"figure": "litgpt-a100-llama-2-7b-inference"}, "GB", 13.52),
    ],
)
def test_published_figures_are_taken_subtracted_and_divided(args, unit, value):
    outcome = check_part(
        part(value, check="published", args=args, unit=unit, tolerance=1e-9), EvaluationContext()
    )
    assert outcome.verdict == "supported" and outcome.found == pytest.approx(value)


@pytest.mark.parametrize(
    "slow, fast, count", [("qlora", "lora", 19), ("full", "lora", 7), ("gptq_lora", "qlora", 0)]
)
def test_published_times_are_of_the_two_methods_named(slow, fast, count):
    outcome = check_part(
        part(1, check="published_times", args={"slow": slow, "fast": fast}, unit="x", relation=">"),
        EvaluationContext(),
    )
    told = sum(len(boundary.yes) + len(boundary.no) for boundary in outcome.boundaries)
    assert (told, outcome.verdict) == ((count, "depends") if count else (0, "not_checkable"))


def test_a_dry_run_that_is_not_there_is_missing_and_names_the_command():
    args = {"quantity": "fits"}
    outcome = check_part(
        part(True, check="dry_run", model="llama-7b", gpu="t4", args=args), EvaluationContext()
    )
    assert outcome.verdict == "not_checkable" and "claims_dryrun.py" in str(outcome.evidence)
