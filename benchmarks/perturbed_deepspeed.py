"""DeepSpeed's engine on a small Llama, one rank on a CPU: ZeRO-2, and ZeRO-3 for the keys that it reads."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

from perturbing import BATCH, TOKENS, Watch, small_model

LIBRARY = "deepspeed"
ZERO = "zero_optimization"
VALUES: dict[str, Any] = {
    f"{ZERO}.allgather_bucket_size": 1000,
    f"{ZERO}.allgather_partitions": False,
    f"{ZERO}.round_robin_gradients": True,
    f"{ZERO}.stage3_gather_16bit_weights_on_model_save": True,
    f"{ZERO}.stage3_gather_fp16_weights_on_model_save": True,
    f"{ZERO}.gather_16bit_weights_on_model_save": True,
    f"{ZERO}.elastic_checkpoint": True,
    f"{ZERO}.load_from_fp32_weights": False,
    f"{ZERO}.ignore_unused_parameters": False,
    f"{ZERO}.cpu_offload_use_pin_memory": True,
    f"{ZERO}.stage3_allgather_sequential": True,
    f"{ZERO}.stage3_partition_stream_chunk_size": 1000,
    f"{ZERO}.stage3_module_granularity_threshold": 10000,
    f"{ZERO}.memory_efficient_linear": False,
    f"{ZERO}.legacy_stage1": True,
    f"{ZERO}.stage3_model_persistence_threshold": 1000,
    f"{ZERO}.mics_shard_size": 1,
    f"{ZERO}.mics_hierarchical_params_gather": True,
    f"{ZERO}.zeropp_loco_param": {"err_beta": 0.8, "reset_T": 1024},
    "train_batch_size": BATCH,
    "steps_per_print": 1,
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}},
    "wall_clock_breakdown": True,
    "gradient_clipping": 0.5,
    "prescale_gradients": True,
    "gradient_predivide_factor": 2.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "flops_profiler": {"enabled": True, "profile_step": 1},
    "tensorboard": {"enabled": False, "job_name": "x"},
    "wandb": {"enabled": False, "project": "x"},
    "csv_monitor": {"enabled": True, "output_path": "FOLDER", "job_name": "x"},
    "monitor_config": {"csv_monitor": {"enabled": True, "output_path": "FOLDER"}},
    "comms_logger": {"enabled": True, "verbose": False},
    "comms_config": {"comms_logger": {"enabled": True}},
    "communication_data_type": "fp32",
    "seq_parallel_communication_data_type": "fp16",
    "sparse_gradients": True,
    "dump_state": True,
    "autotuning": {"enabled": False, "metric": "latency"},
    "checkpoint": {"tag_validation": "Ignore"},
    "data_efficiency": {"enabled": False, "seed": 7},
    "memory_breakdown": True,
    "aio": {"block_size": 4096, "queue_depth": 4},
    "elasticity": {"enabled": False, "max_train_batch_size": 64},
    "disable_allgather": True,
    "amp": {"enabled": False},
    "torch_autocast": {"enabled": False},
    "data_types": {"grad_accum_dtype": "fp32"},
    "curriculum_learning": {"enabled": False},
    "hybrid_engine": {"enabled": False, "max_out_tokens": 64},
    "compile": {"deepcompile": False},
    "_comment": "x",
    "cuda_visible_devices": "0",
    "optimizer.params": {"lr": 0.5, "betas": [0.8, 0.9], "torch_adam": True},
    "optimizer.legacy_fusion": True,
}
"""DeepSpeed reads a mapping: what its fields may be is said here."""
_SCALE = {
    "loss_scale": 8,
    "initial_scale_power": 4,
    "loss_scale_window": 10,
    "hysteresis": 3,
    "consecutive_hysteresis": True,
    "min_loss_scale": 2,
    "auto_cast": True,
    "check_grad_overflow": True,
}
VALUES |= {f"{kind}.{key}": value for kind in ("bf16", "bfloat16", "fp16") for key, value in _SCALE.items()}
_OFFLOAD = {
    "pin_memory": True,
    "nvme_path": "FOLDER",
    "buffer_count": 6,
    "buffer_size": 10**6,
    "max_in_cpu": 10**6,
    "fast_init": True,
    "ratio": 0.5,
    "pipeline_read": True,
    "pipeline_write": True,
    "pipeline": True,
}
VALUES |= {
    f"{ZERO}.offload_{part}.{key}": value
    for part in ("param", "optimizer")
    for key, value in _OFFLOAD.items()
}
_OF_STAGE_3 = ("stage3_", "gather_16", "mics_", "offload_param", "memory_eff", "zeropp", "cpu_offload_use")


def _beside(name: str) -> dict[str, Any]:
    """What a key needs to be read at all."""
    section, _, rest = name.partition(".")
    if section in ("bf16", "bfloat16", "fp16"):
        return {f"{section}.enabled": True}
    if section == "optimizer":
        return {"optimizer.type": "Adam", "optimizer.params": {"lr": 1e-3, "torch_adam": True}}
    part = rest.split(".")[0]
    if name in ("prescale_gradients", "gradient_predivide_factor"):
        return {f"{ZERO}.reduce_scatter": False}
    stage = {f"{ZERO}.stage": 3} if rest.startswith(_OF_STAGE_3) else {}
    host = {f"{ZERO}.{part}.device": "cpu", "zero_force_ds_cpu_optimizer": False}
    return {**stage, **host} if part in ("offload_param", "offload_optimizer") else stage


BESIDE = {name: _beside(name) for name in VALUES}


_HOST = "deepspeed 0.19 runtime/zero/offload_config.py: buffers and files on the host"
READ = {
    f"{ZERO}.offload_{part}.{key}": _HOST
    for part, names in (
        ("param", "pin_memory nvme_path buffer_count buffer_size max_in_cpu"),
        ("optimizer", "pin_memory nvme_path buffer_count fast_init pipeline_read pipeline_write"),
    )
    for key in names.split()
} | {
    f"fp16.{key}": "deepspeed 0.19 runtime/precision_config.py: numbers of the loss scale; no CPU has it"
    for key in _SCALE
    if key != "check_grad_overflow"
}
"""Keys that a run here does not show: offloaded states take DeepSpeed's own Adam, which is compiled."""


def prepare(folder: Path) -> None:
    """Imports what every run needs, and writes the model."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    import deepspeed  # noqa: F401

    small_model(folder)


def keys() -> dict[str, Any]:
    """Every key that has a value here."""
    return {name: (object, None) for name in VALUES}


def config(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed file with some keys changed."""
    made: dict[str, Any] = {"train_micro_batch_size_per_gpu": BATCH, ZERO: {"stage": 2}}
    for name, value in changes.items():
        section = made
        *path, last = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = copy.deepcopy(value)
    return made


def check(folder: Path, changes: dict[str, Any]) -> None:
    """Its own configuration class, without a run. Raises what that raises."""
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig(config(folder, changes))


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """Three steps with some keys changed."""
    import deepspeed
    import torch
    import transformers

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    deepspeed.init_distributed("gloo", verbose=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    own = {} if "optimizer.type" in changes else {"optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}
    with watch.watching():
        engine, *_ = deepspeed.initialize(model=model, config=config(folder, changes), **own)
        watch.say("config", {k: v for k, v in vars(engine._config).items() if not k.startswith("_")})
        ids = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
        for _ in range(3):
            watch.begin(engine.module)
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
            watch.end()
