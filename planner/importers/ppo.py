"""The keys of TRL's PPOConfig (1.12 experimental/ppo/ppo_config.py; trl 1.13 has it no more), and the Setup
fields they make.
"""

from __future__ import annotations

from typing import Any

from memplan.planner.importers.hf import EVAL_BATCH
from memplan.planner.importers.rules import Facts, Rule, ignored, integer, not_modelled, number, text, use
from memplan.planner.importers.sampling import SAMPLERS, prompted, sampled

RESPONSE = 53
"""response_length where nobody says it."""
UNSAID = "EleutherAI/pythia-160m"
"""sft_model_path and reward_model_path where nobody says them."""

PPO: dict[str, Rule] = {
    "response_length": use("completion_length", integer, "sampled tokens of a row"),
    "local_rollout_forward_batch_size": use("rollout_batch", integer, "rows sampled and judged at once"),
    "num_mini_batches": use("num_mini_batches", integer),
    "sft_model_path": use("_policy", text, "the policy"),
    "reward_model_path": use("reward_model", text, "the reward model, and the value model that is trained"),
    "num_sample_generations": use("_samples", number, "samples of the evaluation set"),
    **ignored(
        "PPOTrainer runs a loop of its own, which never switches checkpoints on",
        "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
        "activation_checkpointing_kwargs",
    ),
    **ignored(
        "PPOTrainer's Accelerator asks the environment alone: accelerate launch --mixed_precision",
        "bf16 fp16",
    ),
    **ignored(
        "numbers of the loss and of rewards, a few for each token",
        "num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef cliprange_value gamma lam "
        "missing_eos_penalty temperature stop_token stop_token_id",
    ),
    **ignored(
        "how long it trains, and sizes that follow from others",
        "total_episodes num_total_batches world_size micro_batch_size local_batch_size batch_size "
        "local_mini_batch_size mini_batch_size exp_name ds3_gather_for_generation",
    ),
    **{
        name: not_modelled("a reference that is a second adapter of the policy")
        for name in ("model_adapter_name", "ref_adapter_name")
    },
}
"""What they mean beside those of TrainingArguments and of TRL's ModelConfig."""


def rolled_out(facts: Facts, fields: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """`fields` with what PPOTrainer makes of its keys. The policy is `sft_model_path`; `model_name_or_path`
    names a tokenizer where both are said.
    """
    if facts.get("_launched"):
        warnings += [
            f"{key} is left out, for which TRL's ppo.py has {UNSAID}: {instead}"
            for key, fact, instead in (
                ("sft_model_path", "_policy", "the policy is taken to be model_name_or_path"),
                (
                    "reward_model_path",
                    "reward_model",
                    "one of the policy's size is assumed, --set reward_model=M",
                ),
            )
            if fact not in facts
        ]
    if "_policy" in facts:
        facts["_model"] = facts.pop("_policy")
    if facts.get("_reference"):
        fields = {**fields, "reference": "model"}
    completion = fields.get("completion_length", RESPONSE)
    made = {**fields, "completion_length": completion}
    made["sequence_length"] = prompted(facts, warnings) + completion
    for name in ("autocast", "checkpointing", "loss", "eval_batch"):
        made.pop(name, None)
    if (facts.get("_evaluated") or facts.get("_launched")) and facts.get("_samples", 1):
        made["eval_batch"] = facts.get("_eval_batch", EVAL_BATCH)
    return made


FINISHES = {**dict.fromkeys(SAMPLERS, sampled), "ppo": rolled_out}
"""Task -> what makes its fields of the keys of a trainer that samples its batch."""
