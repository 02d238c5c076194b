"""What stands beside a verdict: conditions, our own thresholds, evidence, sentences in two languages."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from memplan.planner.answers.verdict import judge
from memplan.render.claims import table
from memplan.validate.claims import to_document, turning
from memplan.validate.evidence_kinds import KINDS, kinds_of
from memplan.validate.numbers import displayed
from memplan.validate.others import DRY_RUNS
from memplan.validate.verdict_sentence import MOST_SIGNS, MOST_WORDS, verdict_sentence

pytest.importorskip("bitsandbytes")  # facts are read by running the libraries
pytestmark = pytest.mark.trace
ROWS = [json.loads(line) for line in DRY_RUNS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def context(shipped_claims):
    return shipped_claims.context


@pytest.fixture(scope="module")
def results(shipped_claims):
    return shipped_claims.results


def test_the_verdict_is_one_sentence_and_short(results):
    for result in results.values():
        english, chinese = verdict_sentence(result), verdict_sentence(result, "zh")
        assert len(english.split()) <= MOST_WORDS and "..." not in english
        assert len(chinese) <= MOST_SIGNS and re.match(r"(成立|不成立|视条件|无法检验)：", chinese)


NAMES = re.compile(
    r"(?i)(q|ada)?lora(-fa|\+)?|(bf|fp)(16|32)|[nf]f?p?4|int[48]|gi?b|mib|(paged_)?adam\w*|adafactor|sgd|zero-?\d?|fsdp\d?|deepspeed|gpt-?\d?"
    r"|opt-350m|(tiny)?llama[\w.-]*|qwen[\w.-]*|peft|trainer|trl|axolotl|llamafactory|hf|raw|paper|bitsandbytes|transformers|accelerate|torch"
    r"|(prompt|prefix)-tuning|ia3|autocast|tokens?|flops|dropout|alpha|cpu|cuda|gpu|ffn|k-bit|absmax|rtx|optim|gaussian|[a-z]+_\w+|[abhlrt]\d+[\w-]*|d\+k"
    r"|\w*attention|torch\.nn\.\w+|2\.\w+|litgpt"
)
"""What stays in Latin letters: names of methods, models, formats, libraries and their identifiers."""


def test_chinese_sentences_hold_no_english_words(results):
    for result in results.values():
        for told in (verdict_sentence(result, "zh"), result.conditions[1]):
            words = re.findall(r"[A-Za-z][A-Za-z0-9_.+-]{2,}", told)
            assert [w for w in words if not NAMES.fullmatch(w.rstrip(".-"))] == [], (result.claim.id, told)
        assert not re.search(r"\dx\b|rtx-|a100-80gb", verdict_sentence(result, "zh")), result.claim.id


def test_a_case_that_the_text_denies_is_not_told_as_its_opposite(results):
    """Of “fits”, claimed false, “holds” would be read as that it fits."""
    assert "“一张卡，不卸载”成立" in verdict_sentence(results["12"], "zh")
    assert "“one GPU, nothing offloaded”" in verdict_sentence(results["12"])
    for result in results.values():
        for part in result.parts:
            if part.part.decides and part.part.claimed is False and part.part.case:
                assert part.part.case_zh, (result.claim.id, part.part.what)


@pytest.mark.parametrize(
    "name, words",
    [
        ("12", ("1 GPU (zero3)", "nothing offloaded or parameters and states offloaded", "sequence 128")),
        ("13", ("1 GPU", "nf4 weights", "checkpointing", "sequence 128, 2,048", "paged_adamw_32bit")),
        ("21", ("8 GPUs (fsdp)", "4 GPUs (fsdp)", "fp32 or bf16 weights")),
        ("52", ("bitsandbytes ",)),
        ("6", ("with and without checkpointing", "torch 2.")),
    ],
)
def test_conditions_stand_beside_a_verdict(results, name, words):
    assert [word for word in words if word not in results[name].conditions[0]] == []
    assert results[name].to_document()["conditions_zh"]


def test_every_verdict_about_memory_has_its_conditions(results):
    bare = [
        name
        for name, result in results.items()
        if any(p.part.decides and p.part.check == "fits" for p in result.parts) and not result.conditions[0]
    ]
    assert bare == []


def test_a_threshold_of_ours_says_where_the_verdict_would_turn(results):
    part = next(p for p in results["66"].parts if p.part.chosen)
    assert part.spread == (part.found, part.found)
    assert turning(part) == f" (our threshold: turns at {part.found:.4g}x)"
    assert part.to_document()["turns_at"] == [part.found, part.found]
    wide = next(p for p in results["73"].parts if p.part.chosen)
    low, high = wide.spread or (0, 0)
    assert wide.part.claimed < low < high and turning(wide, "zh").endswith("之间结论改变）")
    told = {name for name, result in results.items() if any(p.part.chosen for p in result.parts)}
    assert {"2", "3", "4", "11", "17", "26", "34", "62", "66", "67", "73"} <= told


def test_dry_runs_and_published_figures_are_counted_apart(shipped_claims, results):
    kinds = [set(kinds_of(result.parts)) for result in results.values()]
    assert sum("dry run" in kind for kind in kinds) >= 15
    assert sum("published measurement" in kind for kind in kinds) >= 20
    evidence = to_document(shipped_claims.file, list(results.values()))["evidence"]
    assert set(evidence["kinds"]) == set(KINDS.values()) - {""}
    assert evidence["kinds"]["dry run"] == sum("dry run" in kind for kind in kinds)
    outside = {"dry run", "published measurement", "own measurement"}
    assert evidence["measured_or_dry_run"] == sum(bool(kind & outside) for kind in kinds) >= 35
    console = Console(width=200, file=io.StringIO())
    for lang in ("en", "zh"):
        console.print(*table(list(results.values()), lang))
    told = re.sub(r"\s+", " ", console.file.getvalue())
    n, every = evidence["measured_or_dry_run"], len(results)
    assert f"With a published figure, a dry run or a measurement: {n} of {every}." in told
    assert f"{every} 条中 {n} 条" in told and f"{evidence['kinds']['dry run']} dry run" in told


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']} {row['gpu']}")
def test_a_dry_run_and_the_formula_agree(context, row):
    """Within what the formula may be off; what ran out of memory is predicted not to fit."""
    gpu = context.gpu(row["gpu"])
    prediction = context.predict(row["model"], {**row["setup"], "gpu": gpu.name})
    if row["outcome"] == "oom":
        assert judge(prediction, gpu).verdict in ("no", "tight")
    else:
        assert prediction.step_peak.allocated_bytes == pytest.approx(row["allocated"], rel=0.03)
        assert judge(prediction, gpu).verdict != "no"


def test_every_dry_run_that_a_claim_names_is_there(results):
    parts = [part for result in results.values() for part in result.parts if part.part.check == "dry_run"]
    assert len(parts) >= 20 and not [p.part.what for p in parts if p.verdict == "not_checkable"]


def test_a_gpu_is_shown_as_people_write_it():
    assert displayed("rtx-4090") == "RTX 4090" and displayed("a100-80gb") == "A100 80GB"
    assert displayed("8GiB") == "8GiB" and displayed("llama-7b", "model") == "llama-7b"
