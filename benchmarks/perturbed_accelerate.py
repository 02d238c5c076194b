"""accelerate's launcher, from its file to the environment of a rank, and the FSDP2 plugin that a rank makes
of it, which is all that `fully_shard` is told: accelerate shards on no CPU. A key that the plugin drops moves
nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from perturbing import Watch, flat

LIBRARY = "accelerate"
FSDP, DEEPSPEED = "fsdp_config", "deepspeed_config"
VALUES: dict[str, Any] = {
    f"{FSDP}.fsdp_min_num_params": 1000,
    f"{FSDP}.fsdp_sync_module_states": False,
    f"{FSDP}.fsdp_use_orig_params": False,
    f"{FSDP}.fsdp_backward_prefetch": "BACKWARD_POST",
    f"{FSDP}.fsdp_forward_prefetch": True,
    f"{FSDP}.fsdp_cpu_offload_pin_memory": False,
    f"{FSDP}.fsdp_limit_all_gathers": False,
    "debug": True,
    "downcast_bf16": True,
    "dynamo_config.dynamo_mode": "max-autotune",
    "dynamo_config.dynamo_use_dynamic": True,
    "dynamo_config.dynamo_use_fullgraph": True,
    "enable_cpu_affinity": True,
    "gpu_ids": "0,1",
    "machine_rank": 0,
    "main_process_ip": "127.0.0.1",
    "main_process_port": 29511,
    "main_training_function": "other",
    "num_machines": 1,
    "rdzv_backend": "c10d",
    "same_network": False,
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "tpu_env": [],
}
BESIDE: dict[str, dict[str, Any]] = {}
READ = {
    **{
        f"{DEEPSPEED}.{name}": "accelerate 1.15 utils/launch.py prepare_deepspeed_cmd_env: " + why
        for name, why in {
            "deepspeed_hostfile": "where ranks run",
            "deepspeed_exclusion_filter": "where ranks run",
            "deepspeed_inclusion_filter": "where ranks run",
            "deepspeed_multinode_launcher": "how ranks start",
        }.items()
    },
    **{
        f"{DEEPSPEED}.{name}": "accelerate 1.15 utils/dataclasses.py DeepSpeedPlugin: " + why
        for name, why in {
            "gradient_clipping": "a number, DeepSpeed's own key of the name",
            "offload_optimizer_nvme_path": "where offloaded states are",
            "offload_param_nvme_path": "where offloaded weights are",
            "zero3_init_flag": "weights are split as they are made",
            "zero3_save_16bit_model": "saving",
            "deepspeed_moe_layer_cls_names": "which modules a parameter waits for",
        }.items()
    },
    f"{FSDP}.fsdp_state_dict_type": "accelerate 1.15 utils/fsdp_utils.py: how it saves",
    "commands": "accelerate 1.15 commands/tpu.py: set-up of a TPU pod",
    "command_file": "accelerate 1.15 commands/tpu.py: set-up of a TPU pod",
    "compute_environment": "accelerate 1.15 commands/config/config_args.py: which questions were asked",
    "mpirun_config": "accelerate 1.15 commands/config/config_args.py: how ranks of CPUs start",
    "tpu_name": "accelerate 1.15 commands/launch.py tpu_pod_launcher",
    "tpu_zone": "accelerate 1.15 commands/launch.py tpu_pod_launcher",
}
"""Keys that no run on a CPU shows, and what was read."""


def prepare(folder: Path) -> None:
    """Imports what every run needs."""
    import accelerate.commands.launch

    assert accelerate.commands.launch


def keys() -> dict[str, Any]:
    """Every key that has a value or a source here."""
    return {name: (object, None) for name in {**VALUES, **READ}}


def environment(folder: Path, changes: dict[str, Any]) -> dict[str, str]:
    """What the launcher tells a rank, of a file with some keys changed. Raises what the launcher raises."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    made: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
        "main_process_port": 29510,
        FSDP: {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
            "fsdp_reshard_after_forward": True,
            "fsdp_cpu_ram_efficient_loading": False,
        },
    }
    for name, value in changes.items():
        section = made
        *path, last = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    file = folder / "accelerate.json"
    file.write_text(json.dumps(made), encoding="utf-8")
    args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    args, _, _ = _validate_launch_command(args)
    told = prepare_multi_gpu_env(args)
    return {key: value for key, value in told.items() if os.environ.get(key) != value}


def check(folder: Path, changes: dict[str, Any]) -> None:
    """The launcher, without ranks. Raises what it raises."""
    environment(folder, changes)


def run(watch: Watch, folder: Path, changes: dict[str, Any]) -> None:
    """From the file to what a rank shards with: a plugin that holds something else has moved something."""
    from accelerate import FullyShardedDataParallelPlugin

    told = environment(folder, changes)
    watch.say("env", told)
    os.environ |= told
    plugin = flat(vars(FullyShardedDataParallelPlugin()), "plugin")
    watch.parameters = Counter(f"{name} {text}" for name, text in plugin.items())
    watch.steps = 2
