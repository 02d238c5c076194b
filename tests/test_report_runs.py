"""The page's rows, allocator, verdict and changes at random positions of its controls: what Python says
there.
"""

from random import Random

import pytest
from page_scripts import answers, needs_node

from memplan.planner.answers.fit.changes import single_changes
from memplan.planner.answers.fit.frontier import Room, need
from memplan.planner.answers.report_changes import contents
from memplan.planner.formula.engine import has_free_rank, rank_of, symbolic
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import common_gpus, find_gpu

pytestmark = needs_node
BODY = """
  const { key, batch, seq, rank, cards } = point, p = at(key, batch, seq, rank);
  const rows = tensors(p).map((r) => [r.name, r.shape, r.dtype, r.count, r.bytes, r.component, r.why]);
  return [p.allocated, reserved(p), cards.map((card) => bare(p, cardOf(card))), p.moment, rows,
    changesAt(p, cardOf(cards[0])).map((c) => [c.text, c.cost, c.saved, c.after, c.fits]),
    structures.changes[key].every((change) => change.to)];
"""
CASES = {
    "llama-3.1-8b qlora": ("llama-3.1-8b", {"method": "qlora", "gpu": "rtx-4090"}),
    "qwen3-4b lora, packed": ("qwen3-4b", {"method": "lora", "gpu": "h100-80gb", "packed_documents": 4}),
    "gpt2 full, accumulated": ("gpt2", {"method": "full", "gpu": "t4", "gradient_accumulation": 4}),
    "gemma-2-2b, windows": ("gemma-2-2b", {"method": "dora", "gpu": "a100-40gb"}),
    "an older torch": ("qwen2.5-0.5b", {"method": "lora", "gpu": "l4", "torch": "2.11"}),
    "8-bit states": ("gpt2", {"method": "lora", "gpu": "a10g", "optimizer": "adamw_bnb_8bit", "rank": 12}),
}
FAST = ("gpt2 full, accumulated", "8-bit states")


@pytest.mark.parametrize(
    "case", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in CASES]
)
def test_rows_reserved_verdict_and_changes_at_random_positions(tmp_path, case, monkeypatch):
    monkeypatch.undo()
    model, fields = CASES[case]
    spec, setup, random = find(model).spec(), resolve(fields), Random(20261129)
    made = contents(spec, setup, wide=case not in FAST)
    assert len(made.replayed) >= 8
    cards, longest = (setup.gpu, *(gpu.name for gpu in common_gpus())), min(8192, spec.max_positions or 8192)
    own = [each for each in made.found if each.setup.gpu == setup.gpu and each.key in made.replayed]
    points, wanted, whole = [], [], 0
    for _ in range(24 if case in FAST else 60):
        entry = random.choice(own)
        batch, length = random.choice((1, 1, 2, 4, 8, 31)), random.randrange(16, longest + 1)
        this = entry.setup.replaced(micro_batch=batch, sequence_length=length)
        if entry.method in ("lora", "qlora", "dora") and has_free_rank(this):
            this = this.replaced(rank=random.choice((1, 8, 17, 64, 256)))
        sizes = {"batch": batch, "seq": length, "rank": rank_of(this)}
        points.append({"key": entry.key, **sizes, "cards": cards})
        wanted.append(_said(spec, this, cards))
    for point, answer, (numbers, rows, changes) in zip(
        points, answers(tmp_path, made, points, BODY), wanted, strict=True
    ):
        *found, shown, effects, complete = answer
        assert found == numbers, point
        assert [row[4] for row in shown] == sorted((row[4] for row in shown), reverse=True)
        assert sorted(shown) == rows, point
        offered = {(text, saved, after): (cost, fits) for text, cost, saved, after, fits in effects}
        known = {(e.text, e.saved, e.after): (e.cost, e.fits) for e in changes}
        assert offered.items() <= known.items(), point
        # what another rank than the asked one would need is not in the page
        lacks = {key for key in known if key not in offered}
        assert not complete or point["rank"] != rank_of(setup) or not lacks, (point, lacks)
        whole += bool(complete and offered and not lacks)
    assert {word for (_, _, each, _), _, _ in wanted for word in each} == {"fits", "tight", "no"}
    assert whole


def _said(spec, setup, cards):
    """What Python says of a setup: its numbers, its rows, and its single changes."""
    own, gpu = need(spec, setup), find_gpu(setup.gpu)
    sizes = (setup.micro_batch, setup.sequence_length, rank_of(setup))
    peak = max(symbolic(spec, setup).breakdowns(*sizes), key=lambda m: m.allocated_bytes)
    rows = sorted([r.name, list(r.shape), r.dtype, r.count, r.bytes, r.component, r.why] for r in peak.rows)
    words = [own.word(find_gpu(card)) for card in cards]
    changes = single_changes(spec, setup, Room(gpu).around(spec, setup))
    return [own.allocated, own.reserved, words, peak.moment], rows, changes
