"""Lengths of a dataset: files and laws, the batches that a loader makes of them against brute force, and what
plan, fit, compare and ask say.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from dryrun_lengths import LLAMA
from hypothesis import given, settings
from hypothesis import strategies as st

import memplan
from memplan.cli.main import run
from memplan.cli.subject import read_subject
from memplan.planner.answers.verdict import margin, what_it_takes
from memplan.planner.inputs.batches import Batches
from memplan.planner.inputs.lengths import of, read_lengths, through
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def batches(lengths: list[int], rows: int, **more: Any) -> Batches:
    return Batches(of(lengths), rows, rows, rows, **more)


# ---- order statistics --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.none() | st.integers(1, 9), st.integers(1, 4))
def test_shuffled_batches_are_those_of_every_order(
    lengths: list[int], rows: int, limit: int | None, multiple: int
) -> None:
    rows = min(rows, len(lengths))
    found = batches(lengths, rows, limit=limit, multiple=multiple)

    def padded(batch: tuple[int, ...]) -> int:
        cut = max(min(length, limit or length) for length in batch)
        return -(-cut // multiple) * multiple

    orders = list(itertools.permutations(lengths))
    firsts = [padded(order[:rows]) for order in orders]
    assert found.worst == padded(tuple(lengths))
    for length in range(1, 13):
        exact = Fraction(sum(first > length for first in firsts), len(firsts))
        assert found.longer(length) == pytest.approx(float(exact), abs=1e-12)
    assert found.mean == pytest.approx(sum(firsts) / len(firsts))
    steps = [
        next(
            step
            for step, at in enumerate(range(0, len(order), rows), 1)
            if padded(order[at : at + rows]) >= found.worst
        )
        for order in orders
    ]
    assert found.first(found.worst) == pytest.approx(sum(steps) / len(steps))
    for share in (0.2, 0.5, 1.0):
        quantile = found.quantile(share)
        assert sum(first <= quantile for first in firsts) >= share * len(firsts) - 1e-9
        shorter = [first for first in firsts if first < quantile]
        assert not shorter or len(shorter) < share * len(firsts) + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=16, max_size=17), st.integers(1, 2))
def test_sorted_batches_are_those_of_every_choice(lengths: list[int], rows: int) -> None:
    """Of 16 examples as many are sorted together as a quarter of them holds batches."""
    found = batches(lengths, rows, how="by_length")
    together = max(1, min(50, len(lengths) // (4 * rows))) * rows
    chosen = [sorted(choice, reverse=True) for choice in itertools.combinations(lengths, together)]
    longest = [choice[at] for choice in chosen for at in range(0, together, rows)]
    for length in range(1, 10):
        exact = sum(each > length for each in longest) / len(longest)
        assert found.longer(length) == pytest.approx(exact, abs=1e-9)
    assert found.mean == pytest.approx(sum(longest) / len(longest))
    assert found.first(found.worst) == 1


def test_a_law_is_drawn_from_as_its_order_statistics_say() -> None:
    """Seeded steps, with replacement: shares of 4,000 lie within four deviations of the exact ones."""
    found = Batches(through(300, 900, 2048), 4, 4, 4)
    drawn = list(itertools.islice(found.drawn(0, 4), 4000))
    for percentile in (10, 50, 90, 99):
        length = found.quantile(percentile / 100)
        exact = found.longer(length)
        seen = sum(each > length for each, _ in drawn) / len(drawn)
        assert abs(seen - exact) <= 4 * (exact * (1 - exact) / len(drawn)) ** 0.5
    assert found.first(2048) == pytest.approx(1 / found.at_least(2048))
    by_length = Batches(found.lengths, 4, 4, 4, how="by_length")
    assert next(by_length.drawn(0, 4))[0] == 2048 and by_length.padding < 0.1 < found.padding


@pytest.mark.slow
def test_the_longest_example_is_in_the_first_batch_of_transformers() -> None:
    trainer_pt_utils = pytest.importorskip("transformers.trainer_pt_utils")
    lengths = [1 + 37 * at % 101 for at in range(90)]
    found = batches(lengths, 3, how="by_length")
    shares = dict.fromkeys(range(0, 102, 10), 0.0)
    orders = 400
    for _ in range(orders):
        order = [lengths[i] for i in trainer_pt_utils.get_length_grouped_indices(lengths, 3)]
        assert max(order[:3]) == max(lengths)
        longest = [max(order[at : at + 3]) for at in range(0, 84, 3)]  # whole groups of 21
        for length in shares:
            shares[length] += sum(each > length for each in longest) / len(longest) / orders
    for length, share in shares.items():
        assert found.longer(length) == pytest.approx(share, abs=0.02)


# ---- reading -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4096), st.floats(0.2, 1), st.floats(0.05, 1))
def test_a_law_goes_through_its_three_numbers(most: int, p95: float, mean: float) -> None:
    p95 = max(1, round(p95 * most))
    wanted = max(1.0, p95 * mean)
    try:
        found = through(wanted, p95, most)
    except UsageError as error:
        assert "no log-normal law" in str(error)
        return
    assert found.longest == most
    assert found.mean == pytest.approx(wanted, abs=0.75)
    assert found.quantile(0.95) == p95


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("900:300:2048", "the mean is more than the 95th percentile"),
        ("300:4096:2048", "the 95th percentile is more than the maximum"),
        ("0:300:2048", "mean is 0, expected 1 to"),
        ("-5:300:2048", "mean is -5, expected 1 to"),
        ("300:900:2048.5", "max is 2048.5, expected a whole number"),
        ("300:900:99999999", "max is 1e+08, expected 1 to"),
        ("100:2000:16384", "no log-normal law cut off at 16,384"),
        ("nothing.txt", "expected mean:p95:max, such as 512:1800:4096, or a file"),
        ("1:2", "expected mean:p95:max"),
    ],
)
def test_impossible_lengths(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="--lengths") as error:
        read_lengths(text)
    assert said in str(error.value)


FORMS: dict[str, Callable[[list[int]], str]] = {
    "lengths.txt": lambda found: "\n".join(map(str, found)) + "\n\n",
    "lengths": lambda found: "\n".join(map(str, found)),
    "column.jsonl": lambda found: "\n".join(json.dumps({"text": "a", "length": each}) for each in found),
    "tokens.jsonl": lambda found: "\n".join(json.dumps({"input_ids": [1] * each}) for each in found),
    "column.csv": lambda found: "id,length\n" + "\n".join(f"x,{each}" for each in found),
    "tokens.csv": lambda found: "input_ids\n" + "\n".join(f'"{[7] * each}"' for each in found),
    "column.tsv": lambda found: "id\tlength\n" + "\n".join(f"x\t{each}" for each in found),
    "counts.json": lambda found: json.dumps({str(each): found.count(each) for each in found}),
    "list.json": json.dumps,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_says_the_same(name: str, tmp_path: Path) -> None:
    lengths = [5, 3, 3, 8, 1]
    (tmp_path / name).write_text(FORMS[name](lengths))
    found, wanted = read_lengths(str(tmp_path / name)), of(lengths)
    assert (found.values, found.cumulative, found.examples) == (wanted.values, wanted.cumulative, 5)
    assert found.mean == 4 and found.quantile(0.5) == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "5\nsix\n", "line 2 is 'six': expected a length of 1 to"),
        ("a.txt", "5\n0\n", "line 2 is '0'"),
        ("a.txt", "\n", "holds no length"),
        ("a.jsonl", '{"length": 3}\n{"text": "a"}', "line 2 has no column length or input_ids"),
        ("a.jsonl", '{"length": 3}\n{', "line 2 is not JSON"),
        ("a.jsonl", '{"length": true}', "length is True"),
        ("a.csv", "id,text\n1,a", "has no column length or input_ids: found id,text"),
        ("a.csv", "length\nx", "line 2 length is 'x'"),
        ("a.json", '{"5": -1}', "5 is -1: expected how many examples"),
        ("a.json", '{"five": 1}', "key is 'five'"),
        ("a.json", "7", "holds 7: expected an object"),
        ("a.json", '{"5": 1, "5": 2}', "twice in one object"),
    ],
)
def test_what_is_wrong_with_a_file(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        read_lengths(str(tmp_path / name))
    assert said in str(error.value)


# ---- answers -----------------------------------------------------------------------------------------------

MODEL = {**LLAMA, "num_hidden_layers": 2}
SETUP: dict[str, Any] = {"method": "lora", "batch": 4}
FILE = [100] * 60 + [300] * 30 + [700] * 9 + [900]


def planned(**fields: Any) -> tuple[memplan.Prediction, dict[str, Any]]:
    found = memplan.plan(MODEL, **{**SETUP, "lengths": FILE, **fields})
    return found, dict(found.extra["lengths"])


def test_the_prediction_is_that_of_the_longest_batch() -> None:
    found, lengths = planned()
    fixed = memplan.plan(MODEL, **SETUP, seq=900, padded=True)
    assert (found.peak, found.moments) == (fixed.peak, fixed.moments)
    assert found.setup.origins["sequence_length"] == "lengths"
    assert lengths["worst"]["length"] == 900
    assert lengths["worst"]["once_in_steps"] == pytest.approx(25)  # one of 100, four a step
    assert lengths["worst"]["first_step"] == pytest.approx(13)
    for step in lengths["steps"]:
        at = memplan.plan(MODEL, **SETUP, seq=step["length"], padded=True)
        assert step["step_bytes"] == at.step_peak.allocated_bytes
    native, expandable = (lengths["reserved"][mode] for mode in ("native", "expandable"))
    assert native["high_bytes"] >= native["low_bytes"] >= found.peak.allocated_bytes
    assert found.peak.allocated_bytes <= expandable["high_bytes"] < native["high_bytes"]


def test_a_length_that_is_said_cuts_rows_off() -> None:
    found, lengths = planned(seq=500)
    assert found.setup.sequence_length == 500 and lengths["cut_at"] == 500
    assert lengths["cut_share"] == pytest.approx(0.1)
    assert lengths["worst"]["once_in_steps"] < 3
    found, _ = planned(pad_to_multiple_of=64)
    assert found.setup.sequence_length == 960


def test_sorted_and_packed_batches() -> None:
    _, shuffled = planned()
    _, grouped = planned(group_by_length=True)
    assert grouped["batches"] == "by_length" and grouped["worst"]["first_step"] == 1
    assert grouped["padding"] == shuffled["otherwise"]["by_length"]["padding"] < shuffled["padding"]
    found, packed = planned(seq=1024, packed_documents=2)
    assert found.setup.sequence_length == 1024 and packed["batches"] == "packed"
    assert packed["examples_per_row"] == pytest.approx(1024 * 100 / sum(FILE))
    assert "reserved" not in packed


def test_one_row_has_no_padding() -> None:
    assert planned(batch=1)[0].setup.padded is False
    assert planned(batch=1, pad_to_multiple_of=8)[0].setup.padded is True
    found, lengths = planned(lengths=[512] * 5)
    assert found.setup.padded is False and "reserved" not in lengths


def test_a_run_that_fragments_is_tight_where_its_longest_batch_fits_alone() -> None:
    model, asked = {**LLAMA, "num_hidden_layers": 4}, {"method": "lora", "batch": 4}
    unbounded = memplan.plan(model, **asked, seq=2048, padded=True, gpu="h200")

    def gpu(share: float) -> str:
        """A GPU with so much of what the longest batch reserves, beyond the margin of a verdict."""
        peak, sure = unbounded.peak, share * (1 + margin(unbounded))
        return f"{(peak.reserved_bytes * sure + peak.context_bytes) / 2**30:.2f}GiB"

    close, larger = gpu(1.04), gpu(1.08)
    alone = memplan.plan(model, **asked, seq=2048, padded=True, gpu=close)
    found = memplan.plan(model, **asked, lengths="300:900:2048", gpu=close)
    assert alone.peak == found.peak
    assert (alone.gpus[0].verdict, found.gpus[0].verdict) == ("fits", "tight")
    assert found.extra["lengths"]["on_gpu"]["survives"] is False
    assert "not behind others of different lengths" in what_it_takes(found, find_gpu(close))
    expandable = memplan.plan(model, **asked, lengths="300:900:2048", gpu=close, allocator="expandable")
    assert expandable.gpus[0].verdict == "fits"
    enough = memplan.plan(model, **asked, lengths="300:900:2048", gpu=larger)
    assert enough.gpus[0].verdict == "fits"
    assert enough.extra["lengths"]["on_gpu"]["releases"] > 0


def test_where_no_run_is_replayed_nothing_is_said_to_fit() -> None:
    shared = {"gpus": 2, "parallel": "ddp", "gpu": "h200"}
    assert planned(**shared)[0].gpus[0].verdict is None
    assert any("different lengths" in text for text in planned(**shared)[0].not_modelled)
    assert planned(**shared, allocator="expandable")[0].gpus[0].verdict == "fits"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "gpt2"}, "--seq 1024 cuts rows off there"),
        ({"method": "inference"}, "trains on no dataset"),
        ({"task": "grpo"}, "samples its rows"),
    ],
)
def test_where_lengths_make_no_sense(fields: dict[str, Any], said: str) -> None:
    fields = {"model": "qwen2.5-0.5b", **fields}
    with pytest.raises(UsageError, match="--lengths") as error:
        memplan.plan(fields.pop("model"), **fields, lengths="900:2000:4096")
    assert said in str(error.value)


def test_lengths_are_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("jobs:\n- model: gpt2\n")
    open_file = tmp_path / "train.py"
    open_file.write_text(
        "from transformers import TrainingArguments\nargs = TrainingArguments('o', bf16=True)\n"
    )
    for words in (("fit", "--gpu", "t4"), ("fit", str(jobs)), (str(open_file),)):
        assert run([*words, "--lengths", "300:900:2048"]) == 2
        assert "--lengths goes with one MODEL" in capsys.readouterr().err


def lines(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = run(words)
    return code, capsys.readouterr().out.splitlines()


def test_the_first_screen_tells_lengths_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MODEL))
    words = (str(path), "--batch", "4", "--lengths", "512:1800:4096", "--gpu")
    code, found = lines(*words, "rtx-3090", capsys=capsys)
    assert code == 0 and len(found) <= 17
    assert any(line.startswith("Lengths   to 4,096 tokens (1 step in") for line in found)
    assert any(line.startswith("Reserves") for line in found)
    code, found = lines(*words, "8GiB", capsys=capsys)
    assert code == 1 and len(found) <= 17
    said = next(line for line in found if line.startswith("Lengths"))
    limit = int(said.split("fits up to ")[1].split()[0].replace(",", ""))
    assert memplan.plan(MODEL, batch=4, seq=limit, padded=True, gpu="8GiB").gpus[0].verdict == "fits"


def test_fit_and_compare_and_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MODEL))
    words = (str(path), "--batch", "2", "--gpu", "rtx-3090", "--method", "lora")

    def document(*words: str) -> dict[str, Any]:
        code, found = lines(*words, "--json", capsys=capsys)
        assert code in (0, 1)
        return json.loads("\n".join(found))  # type: ignore[no-any-return]

    found = document("fit", *words, "--lengths", "512:1500:2048")
    fixed = document("fit", *words, "--seq", "2048", "--padded")
    assert [m["largest_micro_batch"] for m in found["methods"]] == [
        m["largest_micro_batch"] for m in fixed["methods"]
    ]
    assert found["lengths"]["worst"]["length"] == 2048
    found = document("compare", *words, "--lengths", "512:1500:2048", "--methods", "lora,qlora")
    assert all(method["lengths"]["batches"] == "random" for method in found["methods"])
    question = "does lora of qwen2.5-0.5b with batch 2 fit rtx-4090?"
    found = document("ask", question, "--lengths", "512:1500:2048")
    assert found["setup"]["sequence_length"] == 2048 and found["setup"]["padded"]
    assert found["lengths"]["worst"]["length"] == 2048


AXOLOTL = "base_model: a\nsequence_len: 1000\nmicro_batch_size: 2\nadapter: lora\nlora_r: 8\n"
FACTORY = "model_name_or_path: a\nstage: sft\nfinetuning_type: lora\ncutoff_len: 1000\n"
TRL = "model_name_or_path: a\nuse_peft: true\nmax_length: 1000\nlora_r: 8\n"


@pytest.mark.parametrize(
    ("text", "kind", "worst"),
    [
        (AXOLOTL, "random", 960),
        (AXOLOTL + "pad_to_sequence_len: false\n", "random", 900),
        (AXOLOTL + "pad_to_sequence_len: true\n", "random", 1024),
        (AXOLOTL + "group_by_length: true\npad_to_sequence_len: false\n", "by_length", 900),
        (AXOLOTL + "sample_packing: true\n", "packed", 1000),
        (FACTORY, "random", 904),
        (FACTORY + "packing: true\n", "packed", 1000),
        (FACTORY + "group_by_length: true\n", "by_length", 904),
        (TRL, "random", 900),
        (TRL + "train_sampling_strategy: group_by_length\n", "by_length", 900),
        (TRL + "pad_to_multiple_of: 128\n", "random", 1024),
        (TRL + "padding_free: true\n", "padding_free", 900),
        (TRL + "packing: true\n", "packed", 1000),
        (TRL.replace("1000", "500"), "random", 500),
    ],
)
def test_a_training_files_own_loader(text: str, kind: str, worst: int, tmp_path: Path) -> None:
    path, model, lengths = tmp_path / "train.yaml", tmp_path / "config.json", tmp_path / "lengths.json"
    path.write_text(text)
    model.write_text(json.dumps(MODEL))
    lengths.write_text(json.dumps(FILE))
    subject = read_subject(str(path), {"base_model": str(model), "lengths": str(lengths)})
    assert subject.loader is not None
    assert subject.setup.sequence_length == worst
    batches = subject.loader.batches(subject.setup)
    kinds = {"packed": subject.loader.packs, "padding_free": batches.flat, batches.how: True}
    assert next(name for name, holds in kinds.items() if holds) == kind
