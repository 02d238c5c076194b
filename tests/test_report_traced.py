"""`report --engine trace`: the trace's numbers until a control moves, then the formula's."""

from __future__ import annotations

import pytest
from browsing import HERE, headless

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import find_gpu
from memplan.render.html import page

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.trace,
    pytest.mark.skipif(
        not HERE,
        reason="chromium and chromium-driver are not installed: the page is not tested in a browser",
    ),
]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}


def test_the_traces_numbers_stand_until_a_control_moves(tmp_path):
    from memplan import api

    found, gpu = find(CONFIG), find_gpu("rtx-3070")
    setup = resolve({"method": "lora", "gpu": gpu.name, "sequence_length": 1000})
    traced = api.predict(found, setup, "trace")
    spec, path = found.spec(), tmp_path / "page.html"
    path.write_text(page(spec, setup, traced, gpu), encoding="utf-8")

    def read(browser):
        return browser.run(
            "return [document.body.dataset.device, document.getElementById('subject').textContent,"
            " [...document.querySelectorAll('#rows tr')].map((row) => Number(row.dataset.bytes))]"
        )

    with headless() as browser:
        browser.open(path.as_uri())
        device, said, rows = read(browser)
        assert int(device) == traced.peak.device_bytes and "; traced" in said
        assert sum(rows) == traced.peak.allocated_bytes
        assert rows != [row.charged for row in plan(spec, setup).peak_rows]
        browser.move("batch", 3)
        device, said, _ = read(browser)
        assert int(device) == plan(spec, setup.with_(micro_batch=3)).peak.device_bytes
        assert "the formula's" in said
        browser.move("batch", 1)
        assert int(read(browser)[0]) == traced.peak.device_bytes
        assert not browser.log()
