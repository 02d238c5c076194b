"""The page's treemap: areas in proportion to bytes, no overlap, and every byte of the peak in it."""

import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

import memplan

SOURCE = Path(memplan.__file__).parent / "render" / "report_treemap.js"
HARNESS = """
const fs = require("fs");
const source = fs.readFileSync(process.argv[2], "utf8");
const own = source.slice(source.indexOf("function squarify("), source.indexOf("function drawTreemap("));
const [squarify, grouped] = new Function(own + "; return [squarify, grouped];")();
const asked = JSON.parse(fs.readFileSync(process.argv[3], "utf8"));
const boxes = asked.layouts.map((one) => squarify(...one));
const groups = asked.tables.map((one) => grouped(...one));
console.log(JSON.stringify({ boxes, groups }));
"""
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def answers(folder, layouts=(), tables=()):
    """What the page's own functions say of these arguments."""
    (folder / "harness.js").write_text(HARNESS)
    (folder / "asked.json").write_text(json.dumps({"layouts": layouts, "tables": tables}))
    files = [folder / "harness.js", SOURCE, folder / "asked.json"]
    output = subprocess.run(["node", *files], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(output.stdout)


def test_areas_are_the_bytes_and_nothing_overlaps(tmp_path):
    random, layouts = Random(20261129), []
    for count in (1, 2, 3, 7, 40, 120):
        sizes = sorted((int(10 ** random.uniform(3, 10)) for _ in range(count)), reverse=True)
        layouts.append((sizes, 10, 20, random.choice((280, 1080)), 380))
    for (sizes, x, y, width, height), boxes in zip(layouts, answers(tmp_path, layouts)["boxes"], strict=True):
        scale = width * height / sum(sizes)
        assert len(boxes) == len(sizes)
        for size, (left, top, wide, tall) in zip(sizes, boxes, strict=True):
            assert wide * tall == pytest.approx(size * scale, rel=1e-6)
            assert left >= x - 1e-6 and left + wide <= x + width + 1e-6
            assert top >= y - 1e-6 and top + tall <= y + height + 1e-6
        for i, (a, b, c, d) in enumerate(boxes):
            for e, f, g, h in boxes[:i]:
                common = (min(a + c, e + g) - max(a, e), min(b + d, f + h) - max(b, f))
                assert min(common) <= 1e-6


def test_what_the_table_leaves_out_is_a_part_of_its_own(tmp_path):
    rows = [{"name": n, "component": "weights", "bytes": b} for n, b in (("a", 5), ("b", 0), ("c", 9))]
    (groups,) = answers(tmp_path, tables=[(rows, {"weights": 20, "gradients": 0, "temporaries": 30})])[
        "groups"
    ]
    assert groups == [
        {"name": "temporaries", "bytes": 30, "tensors": [["smaller tensors", 30]]},
        {"name": "weights", "bytes": 20, "tensors": [["c", 9], ["smaller tensors", 6], ["a", 5]]},
    ]
