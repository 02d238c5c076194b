"""FSDP's words, as accelerate, transformers and axolotl write them (with `fsdp_` or without): what they share
and when they let go.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.rules import (
    Facts,
    Rule,
    bad,
    flag,
    ignored,
    integer,
    not_modelled,
    use,
)

# torch's ShardingStrategy by number and name, and FSDP2's flag: (parallel, parameters go after the forward,
# shared within a node only)
STRATEGIES: dict[str, tuple[str, bool, bool]] = {
    "1": ("fsdp", True, False),
    "full_shard": ("fsdp", True, False),
    "true": ("fsdp", True, False),
    "2": ("fsdp", False, False),
    "shard_grad_op": ("fsdp", False, False),
    "false": ("fsdp", False, False),
    "3": ("ddp", False, False),
    "no_shard": ("ddp", False, False),
    "4": ("fsdp", True, True),
    "hybrid_shard": ("fsdp", True, True),
    "5": ("fsdp", False, True),
    "hybrid_shard_zero2": ("fsdp", False, True),
}
WRAPPED = tuple(
    form
    for word in ("transformer_based_wrap", "transformer_auto_wrap_policy")
    for form in (word, word.upper())
)


def strategy(key: str, value: Any) -> tuple[str, bool, bool]:
    """The strategy that a key names: (parallel, whether it reshards after forward, whether it shards within
    a node only). Raises UsageError for another name.
    """
    found = STRATEGIES.get(str(value).lower())
    if found is None:
        raise bad(
            key,
            value,
            f"true, false or one of {', '.join(name for name in STRATEGIES if not name.isdigit())}",
        )
    return found


PREFETCHES = {"no_prefetch": "none", "none": "none", "backward_pre": "pre", "backward_post": "post"}
# torch's BackwardPrefetch by name, as accelerate and transformers write it


def prefetch(key: str, value: Any) -> str:
    """When FSDP1 gathers the unit before in the backward. Raises UsageError for another name."""
    found = PREFETCHES.get(str(value).lower())
    if found is None:
        raise bad(key, value, ", ".join(name.upper() for name in PREFETCHES if name != "none"))
    return found


FSDP: dict[str, Rule] = {
    "offload_params": use("_fsdp_offload", flag),
    "fsdp_offload_params": use("_fsdp_offload", flag),
    "cpu_offload": use("_fsdp_offload", flag),
    "activation_checkpointing": use("_fsdp_checkpointing", flag),
    "fsdp_activation_checkpointing": use("_fsdp_checkpointing", flag),
    "fsdp_activation_checkpointing_offload": use("checkpoint_offload", flag),
    "reshard_after_forward": use("_strategy", strategy),
    "fsdp_reshard_after_forward": use("_strategy", strategy),
    "sharding_strategy": use("_strategy", strategy),
    "fsdp_sharding_strategy": use("_strategy", strategy),
    "version": use("_fsdp_version", integer),
    "fsdp_version": use("_fsdp_version", integer),
    **{
        name: not_modelled("units of another size: whole decoder layers are assumed", WRAPPED)
        for name in ("auto_wrap_policy", "fsdp_auto_wrap_policy")
    },
    **{
        name: use("_host_load", flag, "where a quantized base waits until it is cut")
        for name in ("cpu_ram_efficient_loading", "fsdp_cpu_ram_efficient_loading")
    },
    **{
        name: use("_use_orig_params", flag, "what FSDP1's optimizer has")
        for name in ("use_orig_params", "fsdp_use_orig_params")
    },
    **{
        name: use("_backward_prefetch", prefetch, "when FSDP1 gathers the unit before")
        for name in ("backward_prefetch", "fsdp_backward_prefetch", "fsdp_backward_prefetch_policy")
    },
    **{
        name: not_modelled("FSDP1 gathers the next unit ahead in the forward", (False,), errs="low")
        for name in ("forward_prefetch", "fsdp_forward_prefetch")
    },
    **{
        name: not_modelled("FSDP1 gathers units as early as it can", (True,), errs="low")
        for name in ("limit_all_gathers", "fsdp_limit_all_gathers")
    },
    "fsdp_ignored_modules": not_modelled("modules that every rank holds whole", errs="low"),
    "mixed_precision_policy": not_modelled("a policy of its own for gathered and reduced dtypes", ({},)),
    **ignored(
        "which class is a decoder layer, or how the model is loaded or saved",
        """
        *transformer_layer_cls_to_wrap *min_num_params *state_dict_type *sync_module_states *cpu_offload_pin_memory
    """,
    ),
}


def settle_fsdp(facts: Facts, warnings: list[str], version: int = 2, *, trainer: bool = False) -> None:
    """The Setup fields of FSDP's words, where FSDP is on. `version`: the stack's own where its file names
    none; `trainer`: transformers' Trainer hands them on.
    """
    parallel, reshards, within = facts.get("_strategy", ("fsdp", True, False))
    facts["parallel"] = parallel
    first = facts.get("_fsdp_version", version) == 1
    if parallel != "fsdp":
        if first:
            warnings.append(
                "FSDP1 without sharding keeps flat copies of parameters and gradients: not modeled"
            )
        return
    if first and trainer and not reshards:
        # accelerate 1.15 utils/dataclasses.py: FSDP_SHARDING_STRATEGY decides, which is FULL_SHARD
        reshards = True
        warnings.append(
            "FSDP1 under transformers 5 and accelerate 1.15 runs as FULL_SHARD whatever the file says; if yours "
            "does not: --set reshard_after_forward=false"
        )
    facts["reshard_after_forward"] = reshards
    if facts.get("_fsdp_offload"):
        facts["offload"] = "all"
    if facts.get("_fsdp_checkpointing"):
        facts["checkpointing"] = "non_reentrant"
    if first:
        facts["fsdp_version"] = 1
        own = ("use_orig_params", "backward_prefetch")
        facts |= {name: facts[f"_{name}"] for name in own if f"_{name}" in facts}
    if within:
        warnings.append("hybrid sharding shares within a node only: --gpus has to be the GPUs of one node")
