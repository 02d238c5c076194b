"""The dry run itself, on a CUDA build of torch: MEMPLAN_DRYRUN_PYTHON names an interpreter that has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.units import MIB
from memplan.profiler.dryrun.observation import Observation
from memplan.profiler.dryrun.rehearse import ProgramFailed, Rehearsal, Rehearsed, rehearse

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")

LOOP = """
import torch
model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024, bias=False) for _ in range(4)]).cuda()
optimizer = torch.optim.AdamW(model.parameters())
def train():
    for step in range(9):
        {extra}
        loss = model(torch.randn(64, 1024, device="cuda")).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print("step", step, flush=True)
train()
"""


def dry_run(folder: Path, text: str, gpu: str | None = "a100-80gb", **options: object) -> Rehearsed:
    script = folder / "train.py"
    script.write_text(text)
    request = Rehearsal(("python", str(script)), find_gpu(gpu) if gpu else None, python=PYTHON, **options)
    return rehearse(request)


def sizes(found: Observation) -> dict[str, int]:
    return {moment.name: moment.allocated_bytes for moment in found.moments}


def test_a_plain_loop(tmp_path: Path) -> None:
    """16 MiB of weights: gradients as much, two states, and the optimizer's foreach buffer at the peak."""
    done = dry_run(tmp_path, LOOP.format(extra=""))
    found = done.observation
    assert (found.outcome, found.steps, done.fits) == ("stopped", 2, True)
    assert [moment.name for moment in found.moments] == [
        "load_peak",
        "load",
        "forward",
        "backward",
        "optimizer_step",
    ]
    load, step = found.moments[1].components, found.moments[4].components
    assert (load["weights"], load["activations"], load["unattributed"]) == (16 * MIB, MIB // 4, 0)
    assert (step["weights"], step["gradients"], step["optimizer_states"]) == (
        16 * MIB,
        16 * MIB,
        32 * MIB,
    )
    assert found.peak_moment == "optimizer_step" and found.peak_line.endswith("train")
    assert found.reserved_bytes % (2 * MIB) == 0
    document = done.to_document()
    assert document["schema"] == "memplan.dry-run/1" and document["gpu_measurement"] is False


def test_expandable_segments_without_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reserves addresses for 9/8 of the GPU for each pool (CUDACachingAllocator.cpp ExpandableSegment):
    the address space holds several of an unbounded one. The same blocks, granules of 2 and 20 MiB.
    """
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    found = dry_run(tmp_path, LOOP.format(extra=""), None).observation
    assert (found.outcome, found.steps) == ("stopped", 2)
    assert sizes(found)["load"] == 16 * MIB + MIB // 4


def test_one_more_allocation_moves_the_peak_by_its_block(tmp_path: Path) -> None:
    before = dry_run(tmp_path, LOOP.format(extra="")).observation
    kept = dry_run(
        tmp_path,
        LOOP.format(
            extra="kept = kept if step else torch.empty(40 * 2**20 + 1, device='cuda', dtype=torch.uint8)"
        ),
    )
    after = kept.observation
    assert after.allocated_bytes - before.allocated_bytes == 40 * MIB + 512


def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    extra = "held = torch.empty(300 * 2**20, device='cuda', dtype=torch.uint8) if step else None"
    done = dry_run(tmp_path, LOOP.format(extra=extra), gpu="900MiB")
    refused = done.observation.refused
    assert not done.fits and refused is not None and done.unbounded is not None
    assert refused.requested_bytes == 300 * MIB and refused.line.endswith("train")
    assert done.unbounded.steps == 2 and done.unbounded.allocated_bytes > 300 * MIB
    assert done.holding()[0].usable_bytes > done.unbounded.reserved_bytes


def test_integers_and_booleans_are_those_of_a_cpu(tmp_path: Path) -> None:
    script, results = Path(__file__).with_name("dryrun_ops.py"), tmp_path / "results.json"
    rehearse(Rehearsal(("python", str(script), str(results)), None, python=PYTHON, steps=1))
    found = json.loads(results.read_text())
    assert found["cuda"] == found["cpu"]
    assert not [value for value in found["cpu"].values() if isinstance(value, str)], "every case computes"


def test_a_number_to_the_power_of_a_tensor_runs(tmp_path: Path) -> None:
    """Rotary frequencies: the number becomes a wrapped one on the GPU, which no Python kernel takes."""
    extra = "power = 1.0 / 10000.0 ** (torch.arange(0, 64, 2, device='cuda').float() / 64)"
    assert dry_run(tmp_path, LOOP.format(extra=extra)).observation.steps == 2


def test_true_values_change_no_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every moment's peak is the same, whether integers are computed or not."""
    extra = "ids = torch.randint(0, 9, (4, 64)).cuda(); mask = (ids > 3) & (ids != 7); n = mask.sum().float()"
    with_values = dry_run(tmp_path, LOOP.format(extra=extra)).observation
    monkeypatch.setenv("MEMPLAN_DRYRUN_VALUES", "0")
    without = dry_run(tmp_path, LOOP.format(extra=extra)).observation
    assert sizes(with_values) == sizes(without)
    assert with_values.reserved_bytes == without.reserved_bytes


@pytest.mark.parametrize("values", ["1", "0"])
def test_a_large_copy_of_another_dtype_allocates_its_result_alone(
    values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's tensor is converted on the host: 64 MiB in fp32 of 32 in bf16, read or not."""
    monkeypatch.setenv("MEMPLAN_DRYRUN_VALUES", values)
    extra = "moved = torch.empty(2**24, dtype=torch.bfloat16).to('cuda', torch.float32)"
    more, plain = (dry_run(tmp_path, LOOP.format(extra=text)).observation for text in (extra, ""))
    assert sizes(more)["forward"] == sizes(plain)["forward"] + 64 * MIB


def test_branches_are_those_of_the_values(tmp_path: Path) -> None:
    """What transformers asks of a padding mask and of packed positions is answered from the batch."""
    script = """
import sys, torch
mask = torch.tensor({mask}).cuda()
side = torch.empty(64 * 2**20, device="cuda", dtype=torch.uint8) if not mask.bool().all() else None
model = torch.nn.Linear(4, 4).cuda()
optimizer = torch.optim.SGD(model.parameters())
for _ in range(2):
    model(torch.zeros(1, 4, device="cuda")).sum().backward()
    optimizer.step()
"""
    unpadded = dry_run(tmp_path, script.format(mask=[[1, 1, 1, 1]])).observation
    padded = dry_run(tmp_path, script.format(mask=[[1, 1, 1, 0]])).observation
    assert padded.allocated_bytes - unpadded.allocated_bytes == 64 * MIB


@pytest.mark.parametrize(
    ("script", "said", "code"),
    [
        ("import torch\nraise ValueError('its own')", "ended with exit status 1", 2),
        ("import torch\nx = torch.zeros(4, device='cuda')", "it never trained", 2),
        ("import torch\nprint('only the CPU')", "without using CUDA", 2),
        ("import torch\ninput()", "reads standard input", 2),
        ("raise ConnectionError('no route')", "needs the network", 3),
        ("import os\nos.abort()", "was ended by signal 6", 2),
    ],
)
def test_a_program_that_does_not_train(tmp_path: Path, script: str, said: str, code: int) -> None:
    with pytest.raises(ProgramFailed, match=said) as failed:
        dry_run(tmp_path, script)
    assert failed.value.exit_code == code


def test_a_program_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"did not reach 2 optimizer steps in 8 s \(last seen: loading\)"):
        dry_run(
            tmp_path, "import torch, time\nx = torch.zeros(1, device='cuda')\ntime.sleep(60)", timeout=8.0
        )


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LOOP.format(extra=""))
    words = [sys.executable, "-m", "memplan", "dry-run", "--python", str(PYTHON)]
    snapshot = tmp_path / "snapshot.pickle"
    more = ["--gpu", "rtx-4090", "--snapshot", str(snapshot), "--json", "--", "python", "train.py"]
    done = subprocess.run([*words, *more], capture_output=True, text=True, cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["gpu"]["verdict"] == "fits" and snapshot.stat().st_size > 1000
    failed = subprocess.run(
        [*words, "--gpu", "70MiB", "--", "python", "train.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert failed.returncode == 1 and failed.stdout.startswith("does not fit 70MiB (dry run)")
    assert "not a GPU measurement" in failed.stdout
    assert max(map(len, failed.stdout.splitlines())) <= 80
