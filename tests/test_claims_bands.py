"""Claims over a range find a narrow band, arithmetic is in its part's unit, a load that decides is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memplan.planner.tables.errors import UsageError
from memplan.profiler.localized_message import said
from memplan.validate.checks import CHECKS
from memplan.validate.claims import check, load
from memplan.validate.claimsfile import Over, Part
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.found import Found
from memplan.validate.sweep import check_part


def curve(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """A check that finds `value(sequence_length)`."""

    def run(given: Part, context: EvaluationContext) -> Found:
        at = given.setup["sequence_length"]
        return Found(value(at), said("{at}", at=at))

    monkeypatch.setitem(CHECKS, "arithmetic", replace(CHECKS["arithmetic"], run=run))


def over(claimed: Any, **fields: Any) -> Part:
    return Part("w", "arithmetic", claimed, over=Over("setup.sequence_length", 1, 4096), **fields)


@pytest.mark.parametrize(
    "value, claimed, fields, inside",
    [
        (lambda at: 1 / at, 1 / 1500, {"tolerance": 0.001}, (1499, 1501)),
        (lambda at: float(at), 3000.0, {"tolerance": 0.0}, (3000, 3000)),
        (lambda at: float(at), (2900.0, 2905.0), {"relation": "between"}, (2900, 2905)),
        (lambda at: 5.0 + abs(at - 1700) / 1000, 5.0, {"tolerance": 0.001}, (1695, 1705)),
        (lambda at: 5.0 - abs(at - 333) / 1000, 5.0, {"tolerance": 0.001}, (328, 338)),
    ],
)
def test_a_narrow_band_between_the_samples_is_found(monkeypatch, value, claimed, fields, inside):
    curve(monkeypatch, value)
    outcome = check_part(over(claimed, **fields), EvaluationContext())
    assert outcome.verdict == "depends"
    up, down = outcome.boundaries
    assert (up.high, down.low) == inside and not up.low_holds and down.low_holds


def test_a_band_that_is_never_met_is_refuted(monkeypatch):
    curve(monkeypatch, lambda at: 6.0 + abs(at - 1700) / 1000)
    assert check_part(over(5.0, tolerance=0.1), EvaluationContext()).verdict == "refuted"


CLAIMS = """
schema = "memplan.claimsfile/1"
[[claim]]
id = "range"
reading = "about a quarter, over a range"
[[claim.part]]
what = "ratio"
check = "quantity"
model = "opt-350m"
setup = { method = "qlora" }
over = { key = "setup.sequence_length", range = [1300, 1700] }
quantity = "step_peak"
per = [{ quantity = "step_peak", setup = { method = "lora" } }]
unit = "x"
claimed = CLAIMED
tolerance = 0.005
"""
UNITS = """
schema = "memplan.claimsfile/1"
[[claim]]
id = "bits"
reading = "a 4-bit weight with constants quantized again"
[[claim.part]]
what = "sum"
check = "arithmetic"
expression = "4 + 8/64 + 32/(64*256)"
unit = "bits/parameter"
claimed = 4.127
tolerance = 0.001
[[claim]]
id = "gb"
reading = "7B in bf16 is 14 GB"
[[claim.part]]
what = "product"
check = "arithmetic"
expression = "7 * 2"
unit = "GB"
claimed = 14
[[claim]]
id = "bytes"
reading = "7B x 16 bytes is 112 GB"
[[claim.part]]
what = "product"
check = "arithmetic"
expression = "7 * 10**9 * 16"
expression_unit = "B"
unit = "GB"
claimed = 112
"""


def results(tmp_path: Any, text: str) -> dict[str, Any]:
    path = tmp_path / "claims.toml"
    path.write_text(text)
    return {result.claim.id: result for result in check(load(path), EvaluationContext())}


def test_a_ratio_that_holds_at_one_length_is_never_refuted_over_a_range_that_holds_it(tmp_path):
    context = EvaluationContext()
    at = {"sequence_length": 1500}
    one, two = (
        context.predict("opt-350m", {"method": method, **at}).step_peak.allocated_bytes
        for method in ("qlora", "lora")
    )
    found = results(tmp_path, CLAIMS.replace("CLAIMED", str(one / two)))
    assert found["range"].verdict in ("depends", "supported")


def test_arithmetic_is_in_the_unit_of_its_part(tmp_path):
    found = results(tmp_path, UNITS)
    for name, shown in (("bits", "= 4.127 bits/parameter"), ("gb", "= 14 GB"), ("bytes", "= 112 GB")):
        assert found[name].verdict == "supported" and shown in found[name].evidence
    with pytest.raises(UsageError, match="bytez"):
        results(tmp_path, UNITS.replace('expression_unit = "B"', 'expression_unit = "bytez"'))


def test_a_load_that_decides_is_said():
    """Each rank loads the whole 4-bit model before FSDP shares it."""
    setup = {
        "method": "qlora",
        "gpus": 2,
        "parallel": "fsdp",
        "quant_storage": "bfloat16",
        "sequence_length": 512,
    }
    part = Part("w", "fits", True, model="llama-2-70b", gpu="rtx-3090", setup=setup)
    outcome = check_part(part, EvaluationContext())
    assert outcome.verdict == "refuted" and "by loading; the step alone needs" in str(outcome.evidence)
