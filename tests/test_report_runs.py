"""The page's rows, allocator and verdict at random positions of its controls: what Python says there."""

import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

import memplan
from memplan.planner.answers.fit.frontier import need
from memplan.planner.answers.report_data import runs_of, script, structures
from memplan.planner.answers.verdict import margin_of
from memplan.planner.formula.engine import rank_of, symbolic
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.gpus import common_gpus
from memplan.planner.tables.torch_versions import TORCH_VERSIONS

RENDER = Path(memplan.__file__).parent / "render"
HARNESS = """
const fs = require("fs");
const texts = process.argv.slice(2).map((name) => fs.readFileSync(name, "utf8"));
const [formula, verdict, allocator, structuresFile, pointsFile] = texts;
const own = formula.slice(formula.indexOf("function guardOf(")) + verdict + allocator;
const { points, data } = JSON.parse(pointsFile);
const made = new Function("structures", "data", own + "; return [at, reserved, bare, tensors];");
const [at, reserved, bare, tensors] = made(eval(structuresFile), data);
console.log(JSON.stringify(points.map(([key, batch, seq, rank, cards]) => {
  const p = at(key, batch, seq, rank);
  const rows = tensors(p).map((r) => [r.name, r.shape, r.dtype, r.count, r.bytes, r.component, r.why]);
  return [p.allocated, reserved(p), cards.map((card) => bare(p, card)), p.moment, rows];
})));
"""

CASES = {
    "llama-3.1-8b qlora": ("llama-3.1-8b", {"method": "qlora", "gpu": "rtx-4090"}),
    "qwen3-4b lora, packed": ("qwen3-4b", {"method": "lora", "gpu": "h100-80gb", "packed_documents": 4}),
    "gpt2 full, accumulated": ("gpt2", {"method": "full", "gpu": "t4", "gradient_accumulation": 4}),
    "gemma-2-2b, windows": ("gemma-2-2b", {"method": "dora", "gpu": "a100-40gb"}),
    "an older torch": ("qwen2.5-0.5b", {"method": "lora", "gpu": "l4", "torch": "2.11"}),
}


FAST = "gpt2 full, accumulated"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    "case", [FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != FAST)]
)
def test_rows_reserved_and_the_verdict_at_forty_positions(tmp_path, case):
    model, fields = CASES[case]
    spec, setup, random = find(model).spec(), resolve(fields), Random(20261129)
    found = structures(spec, setup)
    runs = runs_of(spec, found)
    assert len(runs) >= min(4, len(found))
    cards, longest = common_gpus(), min(8192, spec.max_positions or 8192)
    points, answers = [], []
    for _ in range(40):
        entry = random.choice([each for each in found if each.key in runs])
        batch, length = random.choice((1, 1, 2, 4, 8, 31)), random.randrange(16, longest + 1)
        this = entry.setup.with_(micro_batch=batch, sequence_length=length)
        if entry.method in ("lora", "qlora", "dora"):
            this = this.with_(rank=random.choice((1, 8, 17, 64, 256)))
        own = need(spec, this)
        points.append((entry.key, batch, length, rank_of(this), cards))
        values = (batch, length, rank_of(this))
        moments = symbolic(spec, entry.setup).breakdowns(*values)
        peak = max(moments, key=lambda m: m.allocated_bytes)
        rows = sorted(
            [r.name, list(r.shape), r.dtype, r.count, r.bytes, r.component, r.why] for r in peak.rows
        )
        answers.append([own.allocated, own.reserved, [own.word(card) for card in cards], peak.moment, rows])
    data = {
        "components": COMPONENTS,
        "ties": TORCH_VERSIONS[setup.torch].equal_blocks,
        "errors": {entry.key: margin_of("formula", entry.setup) for entry in found},
        "missing": [],
    }
    shown = [
        (*rest, [{"usable": card.usable_bytes, "context": card.context_bytes} for card in offered])
        for *rest, offered in points
    ]
    (tmp_path / "structures.js").write_text(script(spec, found, runs))
    (tmp_path / "points.json").write_text(json.dumps({"points": shown, "data": data}))
    (tmp_path / "harness.js").write_text(HARNESS)
    scripts = [RENDER / f"report_{name}.js" for name in ("formula", "verdict", "allocator")]
    files = [tmp_path / "harness.js", *scripts, tmp_path / "structures.js", tmp_path / "points.json"]
    output = subprocess.run(["node", *files], capture_output=True, text=True, timeout=300, check=True)
    for point, answer, wanted in zip(shown, json.loads(output.stdout), answers, strict=True):
        assert [row[4] for row in answer[-1]] == sorted((row[4] for row in answer[-1]), reverse=True)
        answer[-1].sort()
        assert answer == wanted, point[:4]
    words = {word for _, _, each, _, _ in answers for word in each}
    assert words == {"fits", "tight", "no"}
