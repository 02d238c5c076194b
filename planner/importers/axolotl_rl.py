"""axolotl's preference and reinforcement training (0.19 core/builders/rl.py, core/trainers/trl.py,
core/trainers/grpo/__init__.py, utils/schemas/trl.py): which of TRL 1.9's trainers `rl` names, and its sections
`trl` and `vllm`.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.rules import Facts, Rule, ignored, names, nested, not_modelled, number, use
from memplan.planner.importers.sampling import COMPLETION, SAMPLING, sampled
from memplan.planner.importers.tasks import settle_task
from memplan.planner.tables.methods import METHODS

TASK_OF = {
    "dpo": "dpo",
    "ipo": "dpo",
    "kto": "kto",
    "orpo": "orpo",
    "simpo": "cpo",
    "grpo": "grpo",
    "gdpo": "grpo",
}
"""`rl` -> the task of the trainer that it names; EBFT's is axolotl's own."""
CAST = ("dpo", "kto", "grpo")
"""Tasks whose trainers put the adapters of a quantized model in bfloat16 (trl 1.9 dpo_trainer.py, kto_trainer.py
and grpo_trainer.py __init__); ORPO's and CPO's are handed a model that has its adapters already."""
FURTHER_MODELS = "reinforcement and preference training hold further models"
ITS_ADAPTER = "beta: TRL keeps a frozen copy of an adapter that it did not make"
SHARE = 0.9
"""utils/schemas/vllm.py gpu_memory_utilization, which is handed on where trl.vllm_mode says colocate."""

TRL: dict[str, Rule] = {
    **SAMPLING,
    "reward_funcs": use("_rewards", names, "functions on the host, or a reward model's name"),
    "use_liger_loss": not_modelled("a loss in chunks of rows", errs="high"),
    "rollout_func": not_modelled("a function that samples"),
    **{
        name: not_modelled("axolotl's own trainer, which samples beside the step", errs="low")
        for name in ("use_data_producer", "async_prefetch")
    },
    "replay_buffer_size": not_modelled("rows kept from steps before"),
    **ignored(
        "details of something that is reported where it is on, or numbers of rewards",
        """
        prefetch_depth vllm_sync_interval streaming_* replay_recompute_logps reroll_* skip_zero_advantage_batches
        vllm_lora_sync reward_num_workers reward_processing_classes vllm_* ref_model_* entropy_* generation_kwargs
        """,
    ),
}
VLLM: dict[str, Rule] = {
    "gpu_memory_utilization": use("_vllm_whole_share", number),
    "tensor_parallel_size": not_modelled("vLLM over several GPUs", (1,)),
    **ignored("how vLLM serves, within its share", "*"),
}
RULES: dict[str, Rule] = {"trl": nested(TRL), "vllm": nested(VLLM)}


def settle(facts: Facts, warnings: list[str]) -> None:
    """Turn `rl` into a task; rows are those of the collator, padded to no multiple."""
    task = TASK_OF.get(facts["_rl"])
    if task is None:
        facts["_lacks"] = {**facts.get("_lacks", {}), "rl": f"{facts['_rl']}: {FURTHER_MODELS}"}
        return
    facts["task"] = task
    settle_task(facts)
    facts.pop("_packing", None)
    quantized = facts.get("quant_type", "none") != "none" or facts["method"] == "qlora"
    if quantized and task in CAST:
        facts["adapter_dtype"] = "bfloat16"
    if task == "grpo":
        _settle_samples(facts, warnings)


def _settle_samples(facts: Facts, warnings: list[str]) -> None:
    """What GRPO's section says of rewards, vLLM and the reference."""
    facts.pop("loss", None)
    said = "trl.beta" if "_beta" in facts else "rl_beta"
    facts.setdefault("_beta", facts.get("_rl_beta"))
    models = [name for name in facts.get("_rewards", ()) if "/" in name]
    if len(models) == 1:
        facts["reward_model"] = models[0]
    elif models:
        facts["_lacks"] = {**facts.get("_lacks", {}), "trl.reward_funcs": f"{len(models)} reward models"}
    if facts.get("_vllm_mode") == "colocate":
        facts["_vllm_share"] = facts.get("_vllm_whole_share", SHARE)
    if facts.get("_beta") and METHODS[facts["method"]].trains == "adapter":
        facts["_lacks"] = {**facts.get("_lacks", {}), said: ITS_ADAPTER}
    completion = facts.setdefault("_completion", COMPLETION)
    if facts["sequence_length"] > completion:
        facts["_prompt"] = facts["sequence_length"] - completion
        warnings.append(
            f"the length of prompts is in the data: prompt and completion are taken to be sequence_len "
            f"{facts['sequence_length']} together, --seq says another length"
        )


def finished(facts: Facts, fields: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """`fields` with what a trainer that samples makes of its keys."""
    return sampled(facts, fields, warnings) if facts.get("task") == "grpo" else fields
