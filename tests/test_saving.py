"""The model saved after training: nothing on one GPU, one whole parameter where FSDP2 gathers, and what is on
the host. Where a CUDA build is there, an unmodified Trainer script of two ranks agrees.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import SAVE
from memplan.planner.tables.errors import UsageError

PYTHON = os.environ.get("MEMPLAN_DRYRUN_PYTHON")
WIDTH, VOCABULARY = 256, 4096
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
RANKS = {"parallel": "fsdp", "gpus": 2}


def saved(method: str, **fields: Any) -> Prediction:
    sizes = {"micro_batch": 2, "sequence_length": 128, "gpu": "a100-80gb", "save": True}
    return memplan.plan(CONFIG, method=method, recipe="hf", **{**sizes, **fields})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_gpu_makes_nothing_and_fsdp_gathers_one_parameter(method: str) -> None:
    """In the dtype that FSDP2 keeps it in: fp32 where it is trained under mixed precision."""
    alone, ranks = saved(method), saved(method, **RANKS)
    held = sum(alone.moment(SAVE).components[name] for name in ("weights", "optimizer_states"))
    stays = alone.moment("load").components["activations"] + 2 * 8_519_680  # the batch, cuBLAS workspaces
    assert alone.moment(SAVE).allocated_bytes == held + stays
    gathered = [row for row in ranks.moment(SAVE).rows if row.name.endswith("gathered")]
    width = 4 if method == "full" else 2
    assert [row.bytes for row in gathered] == [width * WIDTH * VOCABULARY]
    assert alone.extra["save_host_bytes"] == alone.checkpoint_bytes
    whole = ranks.total_parameters * width if method == "full" else ranks.extra["save_host_bytes"]
    assert ranks.extra["save_host_bytes"] == whole > alone.extra["save_host_bytes"]
    assert alone.step_peak == saved(method, save=False).step_peak


@pytest.mark.parametrize("method", ["full", "lora"])
def test_zero_3_gathers_a_module_at_once_and_the_others_none(method: str) -> None:
    """In the dtype that computes, padded to a multiple of the ranks; with an adapter it alone is kept."""
    three = saved(method, parallel="zero3", gpus=3)
    [whole] = [row for row in three.moment(SAVE).rows if row.name.endswith("gathered")]
    assert whole.bytes == 2 * 3 * -(-WIDTH * VOCABULARY // 3)
    wanted = three.total_parameters if method == "full" else three.trainable_parameters
    assert three.extra["save_host_bytes"] == 2 * wanted
    two = saved(method, parallel="zero2", gpus=3)
    assert two.extra["save_host_bytes"] == 2 * two.total_parameters
    for parallel in ("zero2", "fsdp", "zero3"):
        sharded = {} if parallel == "zero2" else {"save_sharded": True}
        found = saved(method, parallel=parallel, gpus=3, **sharded)
        assert not any(row.name.endswith("gathered") for row in found.moment(SAVE).rows)


@pytest.mark.trace
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_both_engines_save_the_same(method: str) -> None:
    formula, trace = (saved(method, engine=engine) for engine in ("formula", "trace"))
    sizes = [found.moment(SAVE).allocated_bytes for found in (formula, trace)]
    assert sizes[0] == pytest.approx(sizes[1], rel=5e-3)
    assert formula.extra["save_host_bytes"] == trace.extra["save_host_bytes"]
    assert formula.peak.moment == trace.peak.moment != SAVE


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "inference"}, "trains nothing that would be saved"),
        ({"method": "full", "save_sharded": True}, "of ranks that share the model's weights"),
        ({"method": "full", "parallel": "zero2", "gpus": 2, "save_sharded": True}, "with --parallel fsdp or"),
        ({"method": "full", "parallel": "fsdp", "gpus": 2, "offload": "all"}, "no rule for offload 'all'"),
    ],
)
def test_what_is_not_saved(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve({"save": True, **fields})


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="MEMPLAN_DRYRUN_PYTHON names no CUDA build of torch")
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("how", ["one", "fsdp"])
def test_an_unmodified_trainer_saves_so(how: str, method: str, tmp_path: Path) -> None:
    """Of rank 0: what is allocated before, the most while saving less that, and the host's state dict."""
    from memplan.planner.tables.gpus import find_gpu
    from memplan.planner.tables.torch_versions import nearest
    from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    script = str(Path(__file__).with_name("dryrun_scripts") / "saves.py")
    run = ("python", script) if how == "one" else ("torchrun", "--nproc_per_node", "2", script)
    gpus, more = (1, {}) if how == "one" else (2, RANKS)
    command = (*run, str(tmp_path), how, method)
    found = rehearse(Rehearsal(command, find_gpu("a100-80gb"), gpus=gpus, python=PYTHON, steps=0)).observation
    held, most, host = map(int, (tmp_path / "saved.0").read_text().split())
    ours = saved(method, torch=nearest(found.torch), **more)
    gathered = sum(row.bytes for row in ours.moment(SAVE).rows if row.name.endswith("gathered"))
    assert (most, host) == (gathered, ours.extra["save_host_bytes"] if how == "fsdp" else host)
    assert ours.moment(SAVE).allocated_bytes == pytest.approx(held + most, rel=1e-3)
