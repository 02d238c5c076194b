"""accelerate's YAML (1.15) and DeepSpeed's JSON (0.19): how many ranks there are and what they share."""

from __future__ import annotations

import re
import sys
from typing import Any

from memplan.planner.importers.fsdp import FSDP, settle_fsdp
from memplan.planner.importers.rules import (
    Facts,
    Rule,
    bad,
    flag,
    ignored,
    integer,
    nested,
    not_modelled,
    one_of_text,
    setup_fields,
    use,
)

DISTRIBUTED = (
    "no",
    "multi_gpu",
    "multi_cpu",
    "fsdp",
    "deepspeed",
    "megatron_lm",
    "tpu",
    "xla",
    "multi_xpu",
    "multi_npu",
    "multi_mlu",
    "multi_hpu",
)


def _stage(key: str, value: Any) -> int:
    if str(value) not in ("0", "1", "2", "3"):
        raise bad(key, value, "a ZeRO stage from 0 to 3")
    return int(value)


ACCELERATE: dict[str, Rule] = {
    "distributed_type": use("_distributed", one_of_text(*DISTRIBUTED)),
    "num_processes": use("_processes", integer),
    "mixed_precision": use("_mixed", one_of_text("no", "fp16", "bf16", "fp8")),
    "use_cpu": use("_cpu", flag),
    "gradient_accumulation_steps": use("gradient_accumulation", integer),
    "fsdp_config": nested(FSDP),
    "deepspeed_config": nested(
        {
            "zero_stage": use("_stage", _stage),
            "offload_optimizer_device": use("_offload_optimizer"),
            "offload_param_device": use("_offload_param"),
            "gradient_accumulation_steps": use("_ds_accumulation", lambda key, value: value),
            "deepspeed_config_file": use("_deepspeed"),
            "zero3_init_flag": Rule("ignored", why="how weights arrive, not what stays"),
            **ignored(
                "saving, launching or clipping",
                """
        zero3_save_16bit_model gradient_clipping *_nvme_path deepspeed_multinode_launcher *hostfile *_filter
        deepspeed_moe_layer_cls_names seq_parallel_communication_data_type
    """,
            ),
        }
    ),
    "parallelism_config": not_modelled(
        "tensor, context and sequence parallelism divide weights and activations", ({},)
    ),
    "megatron_lm_config": not_modelled("Megatron-LM's own parallelism", ({},)),
    "fp8_config": not_modelled("8-bit products keep scaled copies", ({},)),
    "dynamo_config": nested(
        {
            "dynamo_backend": not_modelled(
                "a compiled step frees and fuses tensors differently", ("no", "NO")
            ),
            **ignored("how a compiled step is made", "dynamo_mode dynamo_use_*"),
        }
    ),
    "downcast_bf16": Rule("ignored", why="TPU only"),
    **ignored(
        "where ranks run and how they meet",
        """
        compute_environment debug machine_rank num_machines gpu_ids main_process_* main_training_function rdzv_backend
        same_network enable_cpu_affinity tpu_* mpirun_config command_file commands zero_stage_note
    """,
    ),
}


NOWHERE = (None, False, "none", "None", "")


def _settle_offload(facts: Facts, warnings: list[str]) -> None:
    """DeepSpeed's offloading: optimizer states and masters, or parameters too (stage 3)."""
    optimizer, parameters = (
        facts.get(key) not in NOWHERE for key in ("_offload_optimizer", "_offload_param")
    )
    if parameters and not optimizer:
        warnings.append(
            "parameters on the host with the optimizer on the device are not modeled: the device's numbers "
            "are upper bounds"
        )
    elif optimizer and facts.get("_stage"):
        facts["offload"] = "all" if parameters and facts["_stage"] == 3 else "optimizer"


def finish_accelerate(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of an accelerate file: precision and sharding only."""
    mixed = facts.get("_mixed")
    if mixed == "fp8":
        warnings.append("mixed_precision fp8 is not modeled: bfloat16 autocast is assumed")
    if mixed is not None and mixed != "no":
        facts["autocast"] = {"fp16": "float16"}.get(mixed, "bfloat16")
    kind = facts.get("_distributed", "no")
    if facts.get("_cpu") or kind == "multi_cpu":
        facts["device"] = "cpu"
    ranks = facts.get("_processes", 1)
    if kind == "fsdp":
        settle_fsdp(
            facts, warnings, version=1
        )  # accelerate 1.15 commands/launch.py --fsdp_version, utils/dataclasses.py
    elif kind == "deepspeed":
        facts["parallel"] = f"zero{facts['_stage']}" if facts.get("_stage") else "ddp"
    elif ranks > 1:
        facts["parallel"] = "ddp"
        if kind not in ("no", "multi_gpu"):
            warnings.append(f"distributed_type {kind} is not modeled: data parallel is assumed")
    if "_processes" in facts:
        facts["gpus"] = ranks
    _settle_offload(facts, warnings)
    return setup_fields(facts)


def _auto(reader: Any) -> Any:
    """DeepSpeed's 'auto' leaves a value to the Trainer."""
    return lambda key, value: None if value == "auto" else reader(key, value)


_OFFLOAD = ignored(
    "the host's side",
    """
    pin_memory nvme_path buffer_count buffer_size max_in_cpu fast_init ratio pipeline_read pipeline_write pipeline
""",
)
_ENABLED = ignored(
    "numbers of the loss scale",
    """
    loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis min_loss_scale auto_cast check_grad_overflow
""",
)
_AUTO_BUCKETS = {
    "reduce_bucket_size": "zero_reduce_bucket",
    "stage3_prefetch_bucket_size": "zero_prefetch_bucket",
    "stage3_param_persistence_threshold": "zero_persistence_threshold",
}
_BUCKETS = {
    "stage3_max_live_parameters": "zero_live_parameters",
    "stage3_max_reuse_distance": "zero_reuse_distance",
    "max_live_parameters": "zero_live_parameters",
    "max_reuse_distance": "zero_reuse_distance",
    "sub_group_size": "zero_sub_group",
}


def _elements(key: str, value: Any) -> int | str:
    """A count of elements, 0 allowed, 5e8 too; 'auto' stays."""
    if value == "auto":
        return "auto"
    return 0 if value in (0, "0") and not isinstance(value, bool) else integer(key, value)


_PLUS = (
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "zero_quantized_nontrainable_weights",
)
DEEPSPEED: dict[str, Rule] = {
    "zero_optimization": nested(
        {
            "stage": use("_stage", _stage),
            "offload_optimizer": nested(
                {
                    **_OFFLOAD,
                    "device": use("_offload_optimizer"),
                    "ratio": not_modelled("a part of the states on the host", (1, 1.0), errs="low"),
                }
            ),
            "offload_param": nested({**_OFFLOAD, "device": use("_offload_param")}),
            **{name: use(fact, _elements) for name, fact in _AUTO_BUCKETS.items()},
            **{name: use(fact, _auto(_elements)) for name, fact in _BUCKETS.items()},
            "overlap_comm": use("zero_overlap_comm", _auto(flag)),
            "contiguous_gradients": not_modelled(
                "gradients that are reduced one by one, without a bucket", (True,)
            ),
            "reduce_scatter": not_modelled(
                "gradients that are reduced whole, without a copy in the order of ranks", (True,)
            ),
            **{name: not_modelled("ZeRO++ compresses or duplicates what is sent", (1,)) for name in _PLUS},
            **{
                old: use(fact, lambda key, value: "cpu" if flag(key, value) else None, "an older word")
                for old, fact in (
                    ("cpu_offload", "_offload_optimizer"),
                    ("cpu_offload_param", "_offload_param"),
                )
            },
            "stage3_module_granularity_threshold": not_modelled("modules gathered as a whole", errs="low"),
            "stage3_model_persistence_threshold": not_modelled(
                "a bound on the parameters that stay whole", (sys.maxsize, "auto"), errs="high"
            ),
            "stage3_allgather_sequential": not_modelled(
                "parameters gathered one by one, into no common buffer"
            ),
            "zenflow": not_modelled("optimizer states split between GPU and host", errs="high"),
            **ignored(
                "how buckets are sent: parameters are gathered in place",
                """
        allgather_bucket_size allgather_partitions round_robin_gradients
    """,
            ),
            **ignored(
                "saving, or how weights arrive",
                """
        stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save elastic_checkpoint
        load_from_fp32_weights ignore_unused_parameters cpu_offload_use_pin_memory
        stage3_partition_stream_chunk_size memory_efficient_linear legacy_stage1
        mics_* zeropp_loco_param gather_16bit_weights_on_model_save
    """,
            ),
        }
    ),
    "train_micro_batch_size_per_gpu": use("micro_batch", _auto(integer)),
    "gradient_accumulation_steps": use("gradient_accumulation", _auto(integer)),
    "bf16": nested(
        {
            "enabled": use("_bf16", _auto(flag)),
            **_ENABLED,
            **{
                name: not_modelled("16-bit master weights, gradients or states", errs="high")
                for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states")
            },
        }
    ),
    "bfloat16": nested({"enabled": use("_bf16", _auto(flag)), **_ENABLED}),
    "fp16": nested({"enabled": use("_fp16", _auto(flag)), **_ENABLED}),
    "optimizer": nested({"type": use("_type"), **ignored("the optimizer's numbers", "params legacy_fusion")}),
    "activation_checkpointing": not_modelled("DeepSpeed's own checkpointing", ({},)),
    "tensor_parallel": not_modelled("weights split across GPUs"),
    "compression_training": not_modelled("compressed weights"),
    "quantize_training": not_modelled("quantized training"),
    "progressive_layer_drop": not_modelled("layers left out at random", errs="high"),
    "sparse_attention": not_modelled("sparse attention", errs="high"),
    "sequence_parallel_size": not_modelled("sequences split across GPUs", (1,), errs="high"),
    **ignored(
        "the global batch, schedules, clipping, logging and profiling",
        """
        train_batch_size steps_per_print scheduler wall_clock_breakdown gradient_clipping prescale_gradients
        gradient_predivide_factor zero_allow_untested_optimizer zero_force_ds_cpu_optimizer flops_profiler tensorboard wandb
        csv_monitor comms_logger communication_data_type sparse_gradients dump_state autotuning checkpoint data_efficiency
        memory_breakdown aio elasticity disable_allgather seq_parallel_communication_data_type amp torch_autocast data_types
        curriculum_learning hybrid_engine compile _comment comms_config monitor_config cuda_visible_devices
    """,
    ),
}


def finish_deepspeed(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """Setup fields of a DeepSpeed file: stage, batch, precision."""
    stage = facts.get("_stage", 0)
    facts["parallel"] = f"zero{stage}" if stage else "ddp"
    if facts.get("_bf16"):
        facts["autocast"] = "bfloat16"
    elif facts.get("_fp16"):
        facts["autocast"] = "float16"
    _settle_offload(facts, warnings)
    if facts.get("_type") and str(facts["_type"]).lower() not in (
        "adam",
        "adamw",
        "fusedadam",
        "cpuadam",
        "deepspeedcpuadam",
    ):
        warnings.append("the DeepSpeed optimizer is not modeled: assuming AdamW's states")
    return setup_fields(facts)


def stage_in_name(name: str) -> int | None:
    """The ZeRO stage that a file's name tells, as in 'zero3_bf16.json' or 'ds_z2_config.json'; None where it
    tells none.
    """
    lowered = name.lower()
    found = re.search(r"(?:zero|z|stage)[_-]?([123])", lowered)
    return int(found.group(1)) if found else None
