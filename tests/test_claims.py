"""Claims: verdicts are computed, can be flipped, and a claims file's mistakes are named with file, line and
key.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.planner.tables.errors import UsageError
from memplan.validate.chinese import sentences
from memplan.validate.claims import SHIPPED, check_claim, check_conflict, to_document
from memplan.validate.claimsfile import Claim, Part
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.evidence_kinds import kinds_of
from memplan.validate.sweep import PartResult

pytest.importorskip("bitsandbytes")  # facts are read by running the libraries
pytestmark = pytest.mark.trace
SEEDS = Path(__file__).parent.parent.parent / "shared" / "seeds"


@pytest.fixture(scope="module")
def shipped(shipped_claims):
    return shipped_claims.file


@pytest.fixture(scope="module")
def context(shipped_claims):
    return shipped_claims.context


@pytest.fixture(scope="module")
def results(shipped_claims):
    return shipped_claims.results


def test_the_seventy_claims_are_there_in_order_and_others_after_them(shipped):
    assert len(shipped.claims) >= 70
    assert [claim.id for claim in shipped.claims] == [str(n) for n, _ in enumerate(shipped.claims, 1)]
    assert all(claim.sources and claim.zh and claim.parts for claim in shipped.claims)
    assert all(part.zh for claim in shipped.claims for part in claim.parts)


def test_no_verdict_is_stored():
    text = SHIPPED.read_text(encoding="utf-8")
    keys = {
        key for claim in tomllib.loads(text)["claim"] for table in (claim, *claim["part"]) for key in table
    }
    assert "verdict" not in keys and "found" not in keys
    assert not any(
        word in text.replace("not checkable", "") for word in ('"supported"', '"refuted"', '"depends"')
    )


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the five documents are not here")
def test_every_quote_stands_in_its_document(shipped):
    documents = {path.name[:3]: path.read_text(encoding="utf-8") for path in SEEDS.iterdir()}
    quotes = [(s.document, s.quote) for claim in shipped.claims for s in claim.sources]
    quotes += [(s.document, s.quote) for conflict in shipped.conflicts for s in conflict.sides]
    assert not [(d, q) for d, q in quotes if q not in documents[d]]


def found(results, claim: str, what: str) -> PartResult:
    return next(part for part in results[claim].parts if what in part.part.what)


def test_the_opt_350m_example_is_off_in_all_three_numbers(results):
    assert results["41"].verdict == "refuted"
    assert found(results, "41", "trainable parameters").found == 786_432
    assert found(results, "41", "all parameters").found == 331_982_848
    assert found(results, "41", "trainable share").found == pytest.approx(0.2369, abs=5e-5)


def test_double_quantization_saves_three_eighths_of_a_bit(results):
    """32 / 64 bits of constants become 8 / 64 + 32 / (64 x 256)."""
    exact = 32 / 64 - 8 / 64 - 32 / (64 * 256)
    part = found(results, "9", "bits saved per parameter")
    assert results["9"].verdict == "refuted"
    assert part.found == pytest.approx(exact, abs=1e-4)


def test_headline_claims(results):
    """Known by arithmetic: NF4 of 65e9 weights is 33.5e9 bytes, in 16 bits 130e9; an adapter is not 4 bits
    wide; GPT-3 has 350e9 bytes.
    """
    verdicts = {name: result.verdict for name, result in results.items()}
    assert verdicts["49"] == "refuted" and verdicts["24"] == "refuted" and verdicts["14"] == "refuted"
    assert verdicts["10"] == "supported" and verdicts["13"] == "supported"
    only_way = found(results, "15", "fits the GPU").boundaries[0]
    assert only_way.yes == ("a100-80gb", "h100-80gb") and only_way.no == ("h200", "b200")
    longest = found(results, "16", "as its paper defines").boundaries[0]
    assert longest.low_holds and longest.high == longest.low + 1 and longest.low >= 2048
    assert {part.part.case for part in results["1"].parts} >= {
        "times the checkpoint, pure bf16",
        "times the checkpoint, mixed precision",
        "times the checkpoint, fp32",
    }


def test_quality_says_what_is_missing(results):
    for name in ("69", "70", "72"):
        assert results[name].verdict == "not_checkable"
        assert "missing: " in results[name].evidence
    assert "memplan profile" in results["65"].parts[0].evidence.text()


def test_a_condition_that_the_text_leaves_out_decides(results):
    """Each by what its condition changes: defaults, constants, offloading, releases, checkpointing."""
    verdicts = {name: result.verdict for name, result in results.items()}
    for name in ("6", "8", "12", "15", "21", "25", "26", "36", "42", "61", "62", "65", "68"):
        assert verdicts[name] == "depends", name
    assert verdicts["44"] == verdicts["54"] == "supported" and verdicts["67"] == verdicts["71"] == "refuted"
    offloaded = found(results, "12", "under ZeRO-3")
    assert offloaded.verdict == "refuted" and found(results, "12", "nothing offloaded").verdict == "supported"
    assert found(results, "12", "host memory").found == pytest.approx(65.3e9 * 2 / 2**30, rel=0.01)
    limit = found(results, "26", "by rank").boundaries[0]
    assert limit.high * 4096 >= 100_000 > limit.low * 4096  # bitsandbytes pages tensors of 100,000 elements


def test_paging_is_named_where_33b_and_65b_fit(results):
    """19.5 GiB of tensors at 2,048 tokens with the states paged out, 21.3 with them on the GPU."""
    for name in ("13", "16"):
        paged, kept = results[name].parts[:2]
        assert "paged" in paged.part.case and paged.boundaries[0].low > kept.boundaries[0].low >= 2048


def test_times_that_others_published_decide_where_there_are_no_records(results):
    for name in ("63", "64"):
        recorded, published = results[name].parts
        assert [recorded.verdict, published.verdict] == ["not_checkable", results[name].verdict]
        assert kinds_of(results[name].parts) == ["published measurement"]


def test_fifteen_claims_have_a_published_figure_beside_them(results):
    assert sum("published measurement" in kinds_of(result.parts) for result in results.values()) >= 15
    assert found(results, "6", "litgpt").found == pytest.approx(14.14 / 21.30)  # GB, resource-tables.md
    saved = (4.57 - 4.26) * 8 / (32 * (4 * 4096**2 + 3 * 4096 * 11008) / 1e9)
    assert (
        found(results, "9", "Llama-2-7B as litgpt").found
        == pytest.approx(saved)
        == pytest.approx(0.383, abs=5e-4)
    )
    assert found(results, "62", "as PEFT measured").found == pytest.approx(0.9976, abs=1e-4)
    assert found(results, "1", "as PEFT measured").found == pytest.approx(38868615168 / 3212749824)
    assert all(kinds_of(result.parts) or result.verdict == "not_checkable" for result in results.values())


NUMBERS = (lambda n: n * 1000 + 1, lambda n: n / 1000 - 1, lambda n: n * 1.5, lambda n: n / 1.5)


def mutations(part: Part, result: PartResult) -> Iterator[Part]:
    """The part with another number, unit, GPU or model."""
    claimed = part.claimed
    if isinstance(claimed, bool):
        yield replace(part, claimed=not claimed)
    elif isinstance(claimed, str):
        yield replace(part, claimed=result.found if isinstance(result.found, str) else "something else")
        yield replace(part, claimed="something else")
    elif isinstance(claimed, tuple):
        yield replace(part, claimed=(-1e30, 1e30))
        yield replace(part, claimed=(1e29, 1e30))
    else:
        if isinstance(result.found, int | float):
            yield replace(part, claimed=result.found)
        yield from (replace(part, claimed=change(claimed)) for change in NUMBERS)
    if part.unit:
        yield from (replace(part, unit=unit) for unit in ("KB", "TB"))
    if part.gpu:
        yield from (replace(part, gpu=gpu) for gpu in ("300MiB", "9TiB"))
    if part.model:
        yield from (replace(part, model=model) for model in ("smollm2-135m", "llama-3.1-405b"))


def flips(claim: Claim, verdict: str, parts: tuple[PartResult, ...], context: EvaluationContext) -> bool:
    """Whether changing one deciding part, or all of them alike, changes the claim's verdict."""
    deciding = [
        n for n, part in enumerate(claim.parts) if part.decides and parts[n].verdict != "not_checkable"
    ]
    variants = {n: list(mutations(claim.parts[n], parts[n])) for n in deciding}
    tries = [{n: variant} for n in deciding for variant in variants[n]]
    widest = max((len(v) for v in variants.values()), default=0)
    tries += [{n: variants[n][k] for n in deciding if k < len(variants[n])} for k in range(widest)]
    for changed in tries:
        mutated = replace(claim, parts=tuple(changed.get(n, part) for n, part in enumerate(claim.parts)))
        try:
            if check_claim(mutated, context).verdict != verdict:
                return True
        except UsageError:
            continue
    return False


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_every_checkable_verdict_can_be_flipped(shipped, results, context, every):
    """All of them by hand, each ninth one in continuous integration: each asks for many predictions."""
    stuck = [
        c.id
        for c in shipped.claims[::every]
        if results[c.id].verdict != "not_checkable"
        and not flips(c, results[c.id].verdict, results[c.id].parts, context)
    ]
    assert stuck == []


def test_what_is_told_in_chinese_is_chinese(shipped, results, context):
    """Every sentence that the shipped claims say has a translation, with the same numbers; what stays in
    Latin letters are names.
    """
    spoken = [part.evidence for result in results.values() for part in result.parts]
    spoken += [check_conflict(conflict, context).evidence for conflict in shipped.conflicts]
    templates = {template for evidence in spoken for template in evidence.templates()}
    worded = {t for t in templates if re.search(r"[a-z]{3}", re.sub(r"{[^}]*}", "", t))}
    names = {t for t in worded if re.fullmatch(r"[a-z_]+", t)}  # a field or a dtype may stay as it is
    assert sorted(worded - set(sentences()) - names) == []


def test_a_translation_keeps_every_number():
    def fields(template: str) -> list[str]:
        return sorted(re.findall(r"{(\w+)", template))

    assert [english for english, chinese in sentences().items() if fields(english) != fields(chinese)] == []


def test_conflicts_name_who_is_right(shipped, context):
    clashes = {conflict.id: check_conflict(conflict, context) for conflict in shipped.conflicts}
    quantized = clashes["what-is-quantized"]
    assert quantized.contradict and [side.verdict for side in quantized.sides] == ["refuted", "supported"]
    assert clashes["65b-load"].contradict and [s.verdict for s in clashes["65b-load"].sides] == [
        "refuted",
        "supported",
    ]
    assert not clashes["quarter"].contradict  # "at most 1/4" and "about 1/4" meet at 1/4
    assert clashes["qlora-speed"].sides[0].verdict == "not_checkable"


def test_the_document_keeps_to_the_contract(shipped, results):
    document = json.loads(json.dumps(to_document(shipped, list(results.values()))))
    assert document["schema"] == "memplan.claims/1" and sum(document["summary"].values()) == len(
        shipped.claims
    )
    for claim in document["claims"]:
        assert set(claim) >= {"id", "reading", "sources", "verdict", "parts", "evidence"}
        assert all(
            set(part) >= {"what", "claimed", "found", "unit", "verdict", "evidence", "condition"}
            for part in claim["parts"]
        )
