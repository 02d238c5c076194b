"""Scripts as users write them (tests/dryrun_scripts/), dry-run unmodified: trainers, a plain loop under
accelerate, an optimizer in the backward pass, and one rank of several. MEMPLAN_DRYRUN_PYTHON names the
interpreter. DeepSpeed runs where that has it (pip install --no-deps deepspeed hjson py-cpuinfo msgpack ninja
einops, with DS_BUILD_OPS=0).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dryrun_hub import PARAMETERS, SMALL, layout

from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.torch_versions import nearest
from memplan.planner.tables.units import MIB
from memplan.profiler.dryrun.observation import Observation
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
SCRIPTS = Path(__file__).with_name("dryrun_scripts")
STEP = ["load_peak", "load", "forward", "backward", "optimizer_step"]
RANKS = 4


def slow(*values: object) -> Any:
    """A case that continuous integration has no time for."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout(tmp_path_factory.mktemp("hub"))


def dry_run(script: str, *words: str, gpu: str = "rtx-4090") -> Observation:
    command = ("python", str(SCRIPTS / script), *words)
    done = rehearse(Rehearsal(command, find_gpu(gpu), python=PYTHON, random_weights=True))
    assert done.fits
    return done.observation


def component(found: Observation, moment: str, name: str) -> int:
    seen: Mapping[str, int] | None = next(m for m in found.moments if m.name == moment).components
    assert seen is not None
    return seen[name]


def near(found: int, nbytes: int) -> bool:
    """Blocks are at most 512 bytes larger than each of a model's few tensors."""
    return nbytes <= found <= nbytes + 512 * 64


@pytest.mark.parametrize("script", ["sft", slow("dpo"), slow("reward"), "grpo"])
def test_trl(script: str, hub: Path) -> None:
    found = dry_run(f"{script}.py", str(hub))
    assert (found.outcome, found.steps) == ("stopped", 2)
    names = [moment.name for moment in found.moments]
    assert names[:5] == STEP and "gap" not in names
    adapters = script in ("sft", "dpo")
    weights = component(found, "optimizer_step", "weights")
    assert weights >= 2 * PARAMETERS, "bfloat16 weights, adapters beside them"
    states = component(found, "optimizer_step", "optimizer_states")
    assert (0 < states < weights) if adapters else states >= 2 * 2 * (PARAMETERS - 512 * 64)
    if script == "grpo":  # how many tokens are sampled is not known: the end of a text is a sampled value
        assert any(note.startswith("depends on values") for note in found.notes)


def test_a_trainer_with_a_custom_model(tmp_path: Path) -> None:
    found = dry_run("custom_model.py", str(tmp_path))
    layers = 2 * (4 * 128 * 128 + 2 * 128 * 256 + 9 * 128 + 256)
    parameters = 4 * (512 * 128 + layers + 3 * 128 + 3)
    assert found.steps == 2 and [moment.name for moment in found.moments][:5] == STEP
    assert near(component(found, "load", "weights"), parameters)
    assert near(component(found, "optimizer_step", "optimizer_states"), 2 * parameters)


def test_an_accelerate_loop_counts_its_optimizers_steps(hub: Path) -> None:
    """Two micro-batches to a step: the gradients of the first are there in the second's forward pass."""
    found = dry_run("accelerate_loop.py", str(hub))
    assert found.steps == 2 and [moment.name for moment in found.moments] == STEP
    assert near(component(found, "optimizer_step", "optimizer_states"), 2 * 4 * PARAMETERS)
    assert near(component(found, "forward", "gradients"), 4 * PARAMETERS)


def test_an_optimizer_in_the_backward_pass() -> None:
    """Four layers of 4 MiB: every state, but never all gradients at once."""
    found = dry_run("in_backward.py")
    assert found.steps == 2 and [moment.name for moment in found.moments] == STEP[:4]
    assert component(found, "backward", "optimizer_states") == 32 * MIB
    assert component(found, "backward", "gradients") <= 8 * MIB
    assert not any("cuDNN" in note for note in found.notes)


def rank(how: str, hub: Path) -> Observation:
    found = dry_run("ranks.py", how, str(hub / "model"), str(RANKS))
    assert found.steps == 2 and [moment.name for moment in found.moments] == STEP
    return found


@pytest.mark.parametrize(
    ("how", "weights", "states"),
    [
        ("fsdp1", 1 / RANKS, 2 / RANKS),
        slow("fsdp2", 1 / RANKS, 2 / RANKS),
        slow("zero1", 1, 2 / RANKS),
    ],
)
def test_one_rank_of_four(how: str, weights: float, states: float, hub: Path) -> None:
    """What a rank holds after its step, in shares of the model: its weights (bfloat16) and its states."""
    found = rank(how, hub)
    whole = 2 * PARAMETERS
    assert 0.9 * states < component(found, "optimizer_step", "optimizer_states") / whole < 1.2 * states + 0.05
    assert 0.95 * weights < component(found, "load", "weights") / whole < 1.2 * weights + 0.05


@pytest.mark.slow
def test_every_rank_of_ddp_runs_and_the_first_is_shown(hub: Path) -> None:
    """Under torchrun, over NCCL's stub (torch's fake process group gives DDP's reducer no result)."""
    words = ("torchrun", "--nproc_per_node", "2", str(SCRIPTS / "ddp.py"), str(hub / "model"))
    found = rehearse(Rehearsal(words, find_gpu("rtx-4090"), gpus=2, python=PYTHON)).observation
    assert (found.steps, found.device, found.devices) == (2, 0, 2)
    assert near(component(found, "load", "weights"), 2 * PARAMETERS)
    assert near(component(found, "optimizer_step", "optimizer_states"), 2 * 2 * PARAMETERS)


def test_ranks_read_each_others_integers_and_the_largest_is_shown(hub: Path) -> None:
    """The script holds what each rank reads against the true values; rank 1 keeps 300 MiB more."""
    found = of_two_ranks("unequal_ranks.py", "300")
    assert [rank.rank for rank in found.ranks] == [0, 1] and found.steps == 2
    first, second = (rank.allocated_bytes for rank in found.ranks)
    assert second - first == 300 * MIB - 512 and found.allocated_bytes == second


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_is_the_answer() -> None:
    found = of_two_ranks("unequal_ranks.py", "30000")
    assert found.outcome == "oom" and found.refused is not None
    assert found.refused.requested_bytes == 30000 * MIB


def of_two_ranks(script: str, *words: str) -> Observation:
    launcher = ("python", "-m", "torch.distributed.run", "--nproc_per_node", "2")
    command = (*launcher, str(SCRIPTS / script), *words)
    return rehearse(Rehearsal(command, find_gpu("rtx-4090"), gpus=2, python=PYTHON)).observation


def test_tensor_parallel_shards_what_its_plan_names(hub: Path) -> None:
    """The MLP's matrices are a quarter each, the rest is whole."""
    found = rank("tp", hub)
    mlp = 2 * 3 * 64 * 128
    held = 2 * (PARAMETERS - mlp + mlp // RANKS)
    assert near(component(found, "load", "weights"), held)


def has(package: str) -> bool:
    """Whether that interpreter has it; torch need not be imported to know."""
    ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{package}') is None)"
    return bool(PYTHON) and subprocess.run([str(PYTHON), "-c", ask]).returncode == 0


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not has(package), reason=f"{package} is not here: it is no part of the dev extra"
    )


@pytest.mark.parametrize(
    ("optim", "arguments"),
    [
        pytest.param("galore_adamw", "update_proj_gap=1", marks=[needs("galore_torch"), pytest.mark.slow]),
        pytest.param("lomo", "", marks=needs("lomo_optim")),
    ],
)
def test_optimizers_of_low_rank_and_behind_the_backward(optim: str, arguments: str, hub: Path) -> None:
    """LOMO never steps: its backward counts. GaLore's projections and moments are states."""
    found = dry_run("low_rank.py", str(hub), optim, arguments)
    assert (found.outcome, found.steps) == ("stopped", 2)
    states = component(found, "forward", "optimizer_states")
    assert (states == 0) if optim == "lomo" else states > 2 * 2 * 512 * 64


@needs("deepspeed")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_counts_its_engines_steps(stage: int, hub: Path) -> None:
    """Two of five steps are taken, though the engine steps its optimizer once for each group."""
    found = dry_run("deepspeed_zero.py", str(stage), str(hub / "model"))
    assert found.steps == 2 and [moment.name for moment in found.moments] == STEP
    assert near(component(found, "optimizer_step", "optimizer_states"), 2 * 4 * PARAMETERS)


@needs("deepspeed")
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_over_two_ranks_halves_the_states(stage: int, hub: Path) -> None:
    """Masters and both moments in fp32; ZeRO pads what it divides."""
    found = of_two_ranks("deepspeed_zero.py", str(stage), str(hub / "model"))
    assert found.steps == 2 and len({rank.allocated_bytes for rank in found.ranks}) == 1
    states = component(found, "optimizer_step", "optimizer_states")
    assert PARAMETERS * 4 <= states <= PARAMETERS * 4 * 1.1


@pytest.mark.slow
def test_a_cuda_graph_keeps_its_gradients(hub: Path) -> None:
    found = dry_run("compiled.py", "graph", str(hub / "model"))
    assert found.steps == 2 and near(component(found, "forward", "gradients"), 2 * PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [pytest.param("compile", marks=needs("triton")), pytest.param("liger", marks=needs("liger_kernel"))],
)
def test_kernels_of_triton_are_launched(how: str, hub: Path) -> None:
    """What torch.compile and Liger fuse holds no logits in fp32 for the backward pass."""
    plain, found = (dry_run("compiled.py", kind, str(hub / "model")) for kind in ("plain", how))
    assert found.steps == 2 and near(component(found, "load", "weights"), 2 * PARAMETERS)
    logits = 4 * 2 * 64 * SMALL["vocab_size"]
    held = component(found, "forward", "activations")
    assert 0 < held <= component(plain, "forward", "activations") - logits


def test_cudnn_attention_is_said_to_be_off_where_torch_would_choose_it() -> None:
    """From compute capability 9.0 on; before it, there is nothing to say."""
    notes = dry_run("in_backward.py", gpu="h100-80gb").notes
    assert any("cuDNN attention is switched off (compute capability 9.0)" in note for note in notes)


def test_a_convolution_runs_and_its_workspaces_are_said_to_be_unseen() -> None:
    """64 filters of 14 x 14 pixels: weights and their two states; the output is saved for the square."""
    found = dry_run("convolves.py")
    weights, output = 4 * (64 * 3 * 14 * 14 + 64), 4 * 8 * 64 * 32 * 32
    assert found.steps == 2
    assert near(component(found, "optimizer_step", "optimizer_states"), 2 * weights)
    forward = next(m for m in found.moments if m.name == "forward").allocated_bytes
    loaded = next(m for m in found.moments if m.name == "load").allocated_bytes
    assert 2 * output <= forward - loaded - 2 * weights <= 2 * output + 512 * 64
    assert any("workspaces of cuDNN" in note for note in found.notes)


@pytest.mark.parametrize(
    ("script", "rows"),
    [("evaluates.py", {"eval_batch": 32}), ("metrics.py", {"eval_batch": 8, "eval_kept": 64})],
)
def test_the_trainers_evaluation_is_the_traces(script: str, rows: dict[str, int], hub: Path) -> None:
    """Full fine-tuning with an evaluation of 32 rows, and one of 64 whose logits compute_metrics keeps: but
    for some scalars of the Trainer's (blocks of 512 bytes), the trace's bytes.
    """
    import memplan

    command = ("python", str(SCRIPTS / script), str(hub))
    found = rehearse(Rehearsal(command, find_gpu("a100-80gb"), python=PYTHON, steps=0)).observation
    sizes = {"micro_batch": 2, "sequence_length": 128, **rows}
    release = nearest(found.torch)
    traced = memplan.plan(
        SMALL,
        engine="trace",
        method="full",
        recipe="hf",
        load="random",
        gpu="a100-80gb",
        torch=release,
        **sizes,
    )
    seen = next(m for m in found.moments if m.name == "evaluate")
    assert 0 <= seen.allocated_bytes - traced.moment("evaluate").allocated_bytes <= 16 * 512
    assert seen.reserved_bytes == traced.peak.reserved_bytes
