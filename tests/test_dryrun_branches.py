"""A dry run takes the branches that a CPU takes: masks, attention, loss denominators and packed documents of
the same script, over padded, unpadded and packed batches. MEMPLAN_DRYRUN_PYTHON names the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dryrun_hub import layout

from memplan.planner.tables.gpus import find_gpu
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
SCRIPT = Path(__file__).with_name("dryrun_branches.py")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("kind", [pytest.param("loop", marks=pytest.mark.slow), "trainer", "trl"])
def test_the_branches_are_those_of_the_cpu(kind: str, hub: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "cpu.json", tmp_path / "dry.json"
    command = [sys.executable, str(SCRIPT), kind, str(hub / "model"), str(here)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    words = ("python", str(SCRIPT), kind, str(hub / "model"), str(there))
    rehearse(Rehearsal(words, find_gpu("a100-80gb"), python=PYTHON, steps=0))
    cpu, dry = (json.loads(path.read_text()) for path in (here, there))
    assert (cpu["device"], dry["device"]) == ("cpu", "cuda")
    assert dry["seen"] == cpu["seen"]
    check(cpu["seen"], kind)


def check(seen: dict[str, list[list[Any]]], kind: str) -> None:
    """What the recording must hold for the comparison to say something: each batch has its own branch."""
    masks = {
        mode: {json.dumps(what[1]) for what in found if what[0] == "sdpa_mask"}
        for mode, found in seen.items()
    }
    assert masks["unpadded"] == {"null"} and masks["padded"] != {"null"} != masks["packed"]
    assert any(what[0] == "find_packed_sequence_indices" for what in seen["packed"])
    divided = "tokens" if kind == "loop" else "get_batch_samples"
    counts = [what[1] for mode in seen for what in seen[mode] if what[0] == divided]
    assert len(counts) >= 3 and all(count == int(count) > 0 for count in counts)
