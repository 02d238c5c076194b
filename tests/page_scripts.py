"""The page's own JavaScript under node: what its functions say, without a browser."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import memplan
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.answers.report_data import data, script
from memplan.planner.formula.engine import plan
from memplan.planner.tables.gpus import find_gpu

RENDER = Path(memplan.__file__).parent / "render"
FILES = ("formula", "verdict", "allocator", "parts", "pickers", "decide", "changes")
HARNESS = """
const fs = require("fs");
const files = process.argv.slice(2).map((name) => fs.readFileSync(name, "utf8"));
const [scripts, structures, data, points] = files;
const body = "; return points.map((point) => {" + BODY + "});";
const made = new Function("structures", "data", "points", scripts + body);
console.log(JSON.stringify(made(eval(structures), JSON.parse(data), JSON.parse(points))));
"""
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def page_data(made, model="tiny"):
    """The data of a page of these contents, as its script reads them."""
    gpu = find_gpu(made.setup.gpu or "a100-80gb")
    return {
        **data(made, plan(made.spec, made.setup), gpu, Room(gpu), model),
        "words": {word: [word, word] for word in ("fits", "tight", "no", "least")},
    }


def answers(folder, made, points, body):
    """What the JavaScript `body` returns for each `point`, with all of the page's functions at hand."""
    sources = [(RENDER / f"report_{name}.js").read_text() for name in FILES]
    sources[0] = sources[0][sources[0].index("  // ---- the formula") :]  # behind what reads the page
    texts = {
        "scripts.js": "".join(sources),
        "structures.js": script(made),
        "data.json": json.dumps(page_data(made)),
        "points.json": json.dumps(points),
    }
    (folder / "harness.js").write_text(HARNESS.replace("BODY", json.dumps(body)))
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = [folder / "harness.js", *(folder / name for name in texts)]
    output = subprocess.run(["node", *files], capture_output=True, text=True, timeout=300, check=False)
    assert output.returncode == 0, output.stderr[-3000:]
    return json.loads(output.stdout)
