"""The keys of TRL's trainers that sample their batch (1.16: GRPOConfig), and the Setup fields they make."""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.rules import (
    Facts,
    Rule,
    flag,
    ignored,
    integer,
    not_modelled,
    number,
    text,
    use,
)
from memplan.planner.tables.methods import METHODS

PROMPT, COMPLETION, VLLM_SHARE = 512, 512, 0.3
"""trl 1.16 trainer/grpo_config.py max_completion_length, vllm_gpu_memory_utilization; prompts as long as TRL
cut them to while it had max_prompt_length (0.x: 512)."""

SAMPLERS = ("grpo", "rloo", "distill")
"""The tasks whose trainers sample."""

SAMPLING: dict[str, Rule] = {
    "max_completion_length": use("_completion", integer),
    "max_prompt_length": use("_prompt", integer),
    "num_generations": use("_generations", integer),
    "steps_per_generation": use("_steps", integer),
    "generation_batch_size": use("_generation_batch", integer),
    "beta": use("_beta", number, "above 0: a reference model"),
    "use_vllm": use("_vllm", flag),
    "vllm_mode": use("_vllm_mode", text),
    "vllm_gpu_memory_utilization": use("_vllm_share", number),
    "vllm_enable_sleep_mode": use("_vllm_sleeps", flag),
    "top_p": use("_top_p", number, "below 1: the logits of the last token are sorted"),
    "top_k": use("_top_k", integer, "above 0: the largest logits of the last token are picked"),
    "min_p": not_modelled("one more softmax of the last token's logits", errs="low"),
    "repetition_penalty": not_modelled("logits are gathered and scattered", (1, 1.0), errs="low"),
    "cache_implementation": not_modelled("another KV cache than one that grows", ("dynamic",)),
    "use_transformers_continuous_batching": not_modelled("a paged KV cache of half the free memory"),
    "use_transformers_paged": not_modelled("a paged KV cache of half the free memory"),
    "sync_ref_model": not_modelled("the reference model is updated in place"),
    "cast_lm_head_to_fp32": not_modelled("a head in fp32", errs="low"),
    "top_entropy_quantile": not_modelled("a sort of the entropies", (1, 1.0)),
    "disable_dropout": not_modelled("dropout off", errs="high"),
    **ignored(
        "numbers of the loss and of rewards, a few for each token",
        """
        loss_type epsilon epsilon_high delta num_iterations importance_sampling_level scale_rewards reward_weights
        mask_truncated_completions entropy_coef use_adaptive_entropy entropy_coef_* entropy_target
        off_policy_mask_threshold use_bias_correction_kl sapo_* vespo_* multi_objective_aggregation temperature
        ref_model_mixup_alpha ref_model_sync_steps vllm_importance_sampling_*
        """,
    ),
    **ignored(
        "what is generated with, not how much",
        """
        num_generations_eval generation_kwargs chat_template_kwargs vllm_model_impl vllm_server_* vllm_group_port
        vllm_max_model_length vllm_structured_outputs_regex vllm_guided_decoding_regex ds3_gather_for_generation
        max_tool_calling_iterations log_completions log_multimodal num_completions_to_print log_unique_prompts
        reward_funcs
        """,
    ),
    "reward_model_name_or_path": use("reward_model", text, "a reward model beside the trained one"),
    "teacher_model_name_or_path": use("teacher", text, "the model whose distributions are learned"),
    "vllm_tensor_parallel_size": not_modelled("vLLM over several GPUs", (1,)),
}


def prompted(facts: Facts, warnings: list[str]) -> int:
    """Tokens of a prompt: where a file does not say how long prompts are (TRL 1.16 has no key for it), PROMPT,
    and a warning says so.
    """
    facts.pop("_length", None)  # a row is a prompt and a completion
    if "_prompt" not in facts:
        warnings.append(
            f"the length of prompts is in the data: {PROMPT} tokens are assumed, --seq says prompt and completion"
        )
    return int(facts.get("_prompt", PROMPT))


def sampled(facts: Facts, fields: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """`fields` with what a trainer of SAMPLERS makes of its keys."""
    task = facts["task"]
    completion, prompt = facts.get("_completion", COMPLETION), prompted(facts, warnings)
    made = {**fields, "completion_length": completion, "sequence_length": prompt + completion}
    if 0 < (facts.get("_top_p") or 0) < 1:
        made["top_p"] = facts["_top_p"]
    if (facts.get("_top_k") or 0) > 0:
        made["top_k"] = facts["_top_k"]
    if "_generations" in facts:
        made["generations"] = facts["_generations"]
    rows = fields.get("micro_batch", 8) * fields.get("gpus", 1)
    steps = facts.get("_steps") or (facts.get("_generation_batch") or 0) // rows
    if steps:
        made["steps_per_generation"] = steps
    if task == "grpo" and facts.get("_beta"):
        adapts = METHODS[fields["method"]].trains == "adapter"
        made["reference"] = "base" if adapts else "model"
    if task == "rloo" and facts.get("_beta") == 0:
        made["reference"] = "none"
    if facts.get("_vllm") and facts.get("_vllm_mode", "colocate") == "colocate":
        made["vllm_share"] = facts.get("_vllm_share", VLLM_SHARE)
        made["vllm_sleeps"] = facts.get("_vllm_sleeps", False)
    made.pop("loss", None)
    return made
