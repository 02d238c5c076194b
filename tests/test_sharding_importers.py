"""Files of accelerate, DeepSpeed and FSDP become one rank's share: every word that moves memory sets a field,
and the answer follows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.planner.formula.engine import plan
from memplan.planner.importers.files import FORMATS, read_document, read_training_file
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"


def deepspeed(**zero: Any) -> Any:
    return read_document(
        {"zero_optimization": {"stage": 3, **zero}, "bf16": {"enabled": True}},
        FORMATS["deepspeed"],
        "ds.json",
    )


def accelerate(**fsdp: Any) -> Any:
    document = {
        "distributed_type": "FSDP",
        "num_processes": 4,
        "mixed_precision": "bf16",
        "fsdp_config": fsdp,
    }
    return read_document(document, FORMATS["accelerate"], "a.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "accelerate_fsdp2.yaml",
        "accelerate_zero3.yaml",
        "accelerate_ddp.yaml",
        "ds_z3_config.json",
        "deepspeed_zero2.json",
        "deepspeed_zero1.json",
        "hf_fsdp.json",
    ],
)
def test_a_real_file_gets_a_real_answer(name: str):
    imported = read_training_file(DATA / name)
    assert not imported.by_status("unknown")
    setup = resolve(
        {"method": "full", "gpus": 4, "micro_batch": 1, "optimizer": "adamw_torch_fused"},
        imported=imported.fields,
    )
    spec = find("llama-3.2-1b").spec()
    rank, alone = plan(spec, setup), plan(spec, resolve({"method": "full", "optimizer": "adamw_torch_fused"}))
    assert setup.parallel in ("ddp", "fsdp", "zero1", "zero2", "zero3")
    if setup.parallel in ("fsdp", "zero3"):
        assert rank.moment("load").components["weights"] < alone.moment("load").components["weights"]


def test_bucket_sizes_are_read_and_auto_stays_auto():
    imported = deepspeed(
        reduce_bucket_size="auto",
        stage3_prefetch_bucket_size=5e7,
        stage3_param_persistence_threshold=0,
        stage3_max_live_parameters=2e8,
        stage3_max_reuse_distance="auto",
        overlap_comm=True,
    )
    fields = imported.fields
    assert (fields["zero_reduce_bucket"], fields["zero_prefetch_bucket"]) == ("auto", 50_000_000)
    assert fields["zero_persistence_threshold"] == 0
    assert (
        fields["zero_live_parameters"] == 200_000_000
        and "zero_reuse_distance" not in fields
        and fields["zero_overlap_comm"] is True
    )
    assert not imported.warnings and not imported.by_status("not_modelled")
    resolve({"gpus": 4, "method": "full"}, imported=fields)


def test_what_moves_no_memory_says_why_and_what_is_not_followed_warns():
    imported = deepspeed(allgather_bucket_size=1e8, contiguous_gradients=True, zero_quantized_weights=True)
    assert {report.key for report in imported.by_status("not_modelled")} == {
        "zero_optimization.zero_quantized_weights"
    }
    assert all(report.note for report in imported.by_status("ignored"))


@pytest.mark.parametrize(
    ("stage", "zero", "offload"),
    [
        (2, {"offload_optimizer": {"device": "cpu"}}, "optimizer"),
        (3, {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, "all"),
        (3, {"offload_optimizer": {"device": "none"}}, None),
    ],
)
def test_offloading_is_read(stage: int, zero: dict[str, Any], offload: str | None):
    assert deepspeed(**{"stage": stage, **zero}).fields.get("offload") == offload


def test_half_an_offload_is_said_to_be_an_upper_bound():
    assert any("upper bounds" in warning for warning in deepspeed(offload_param={"device": "cpu"}).warnings)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ({"fsdp_reshard_after_forward": False}, {"parallel": "fsdp", "reshard_after_forward": False}),
        ({"fsdp_sharding_strategy": "SHARD_GRAD_OP"}, {"parallel": "fsdp", "reshard_after_forward": False}),
        (
            {"fsdp_sharding_strategy": 1, "fsdp_offload_params": True},
            {"parallel": "fsdp", "reshard_after_forward": True, "offload": "all"},
        ),
        ({"fsdp_sharding_strategy": "NO_SHARD"}, {"parallel": "ddp"}),
        (
            {"fsdp_activation_checkpointing": True, "fsdp_activation_checkpointing_offload": True},
            {"checkpointing": "non_reentrant", "checkpoint_offload": True},
        ),
    ],
)
def test_fsdps_words(words: dict[str, Any], fields: dict[str, Any]):
    found = accelerate(**words).fields
    assert {key: found[key] for key in fields} == fields and found["gpus"] == 4


def test_fsdp1_hybrid_sharding_and_other_units_are_said():
    warnings = accelerate(
        fsdp_version=1, fsdp_sharding_strategy="HYBRID_SHARD", fsdp_auto_wrap_policy="SIZE_BASED_WRAP"
    ).warnings
    assert [word for word in ("node", "units") if not any(word in warning for warning in warnings)] == []
    assert accelerate(fsdp_version=2, fsdp_auto_wrap_policy="TRANSFORMER_BASED_WRAP").warnings == []
    assert [
        accelerate(**said).fields.get("fsdp_version")
        for said in ({"fsdp_version": 1}, {}, {"fsdp_version": 2})
    ] == [1, 1, None]


def test_a_strategy_that_is_none_is_refused():
    with pytest.raises(UsageError, match="shard_grad_op"):
        accelerate(fsdp_sharding_strategy="EVERYTHING")


@pytest.mark.parametrize(
    ("version", "asked", "on_host"), [(2, True, True), (2, False, False), (1, True, False)], ids=str
)
def test_axolotl_cuts_a_4_bit_base_on_the_host_under_fsdp2(tmp_path, version, asked, on_host):
    """loaders/model.py puts rank 0 on "cpu" and the others on "meta" with cpu_ram_efficient_loading, under
    FSDP2 alone: the step decides, not a whole model on every GPU. Two times 24 GB hold QLoRA of 70B.
    """
    path = tmp_path / "a.yaml"
    path.write_text(
        "base_model: meta-llama/Llama-2-70b-hf\nload_in_4bit: true\nadapter: qlora\nlora_r: 32\n"
        "lora_target_linear: true\nsequence_len: 512\nmicro_batch_size: 1\ngradient_checkpointing: true\n"
        f"attn_implementation: flash_attention_2\nfsdp_version: {version}\ndp_shard_size: 2\nfsdp_config:\n"
        f"  offload_params: true\n  cpu_ram_efficient_loading: {asked}\n  activation_checkpointing: true\n"
    )
    imported = read_training_file(path)
    assert imported.fields.get("load_on_host", False) is on_host
    found = memplan.plan(imported.model, resolve({"gpu": "rtx-4090"}, imported=imported.fields))
    layer = sum(64 * n // 127 for n in (2 * 8192 * 8192, 2 * 8192 * 1024, 3 * 8192 * 28672))
    whole = found.moment("load_peak").allocated_bytes
    assert (whole > 80 * layer * 0.9) is not on_host
    assert found.gpus[0].verdict == ("fits" if on_host else "no")
