"""Which task a trainer's name or a launch line says, and the keys of TRL's preference trainers (1.16:
DPOConfig, RewardConfig).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.ppo import PPO
from memplan.planner.importers.rules import Facts, KeyReport, Rule, flag, ignored, not_modelled, use
from memplan.planner.importers.sampling import SAMPLERS, SAMPLING

TRAINERS: dict[str, str] = {
    "SFT": "sft",
    "Reward": "reward",
    "DPO": "dpo",
    "KTO": "kto",
    "ORPO": "orpo",
    "CPO": "cpo",
    "PRM": "prm",
    "GRPO": "grpo",
    "RLOO": "rloo",
    "OnlineDPO": "grpo",
    "PPO": "ppo",
    "GKD": "gkd",
    "Distillation": "distill",
}
"""The first word of a TRL class's name (DPOTrainer, DPOConfig) -> the task."""

SCRIPTS: dict[str, str] = {word.lower(): task for word, task in TRAINERS.items()}
"""The first word of a script or a subcommand of TRL's (dpo.py, trl reward) -> the task."""

CLASSES: dict[str, str] = {
    "SequenceClassification": "classify",
    "MaskedLM": "mlm",
    "Seq2SeqLM": "seq2seq",
}
"""What a transformers class is for, in its name -> the task."""

COMPARED = ("dpo", "kto")
"""The tasks whose trainers take a `ref_model`."""

_PAIRS: dict[str, Rule] = {
    "beta": Rule("ignored", why="a number of the loss"),
    **ignored(
        "numbers of the loss, or lengths within max_length",
        """
        label_smoothing f_divergence_* f_alpha_divergence_coef ld_alpha discopop_tau loss_weights rpo_alpha max_prompt_length
        max_completion_length center_rewards_coefficient truncation_mode disable_dropout padding_free pad_token padding_value
        label_pad_token_id precompute_ref_batch_size generate_during_eval force_use_ref_model reference_free num_labels
        desirable_weight undesirable_weight
    """,
    ),
    "precompute_ref_log_probs": use("_precomputed", flag, "no reference model while training"),
    "sync_ref_model": not_modelled("the reference model is updated in place"),
    "use_weighting": not_modelled("one more number for each token"),
    "loss_type": Rule("ignored", why="another number of the same log-probabilities"),
    "cpo_alpha": Rule("ignored", why="a number of the loss; its cross-entropy is counted, 0 leaves it out"),
    "simpo_gamma": Rule("ignored", why="a number of the loss"),
}
KEYS: dict[str, dict[str, Rule]] = {
    **dict.fromkeys(("dpo", "kto", "reward", "orpo", "cpo", "prm"), _PAIRS),
    **dict.fromkeys(SAMPLERS, SAMPLING),
    "ppo": PPO,
    "distill": {
        **SAMPLING,
        # trl 1.16 kernels/chunked_divergence.py: between 0 and 1 the same tiles are made a second time
        "beta": Rule("ignored", why="which divergence: its tiles are made again, none is larger"),
        "lmbda": not_modelled("rows that are read, not sampled", (1, 1.0), errs="high"),
    },
}
"""Task -> the keys of its trainer that mean something else than in supervised training."""


def rules_of(task: str | None, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """A stack's table with the keys of a task's trainer over it."""
    return {**rules, **KEYS.get(task or "", {})}


def trainer_task(called: str) -> str | None:
    """The task of a TRL class by its name; None for a class that is none of TRL's trainers."""
    word = called.removesuffix("Trainer").removesuffix("Config")
    return TRAINERS.get(word) if word != called else None


def script_task(name: str) -> str | None:
    """The task that a script's or a subcommand's name begins with; None where it says none."""
    return next((task for word, task in SCRIPTS.items() if name.lower().startswith(word)), None)


def settle_task(facts: Facts) -> None:
    """Turn what was read of a task into Setup fields; `task` is the fact that a trainer's name set."""
    task = facts.get("task")
    if task in (None, "sft"):
        facts.pop("task", None)
    if task in COMPARED and facts.get("_precomputed"):
        facts["reference"] = "none"
    elif task in COMPARED and facts.get("_reference"):
        facts["reference"] = "model"
    if task in KEYS:
        facts.pop("loss", None)


def settle_head(facts: Facts) -> None:
    """The task of a piece of Python, and a classifier's num_labels, unless a trainer says what its head is."""
    settle_task(facts)
    labels = facts.pop("_labels", None)
    if facts.get("task") in CLASSES.values():
        facts.pop("loss", None)
        if labels is not None and facts["task"] == "classify":
            facts["num_labels"] = labels


def lacking(keys: list[KeyReport], lacks: Mapping[str, str]) -> list[KeyReport]:
    """The reports with those of `lacks` (key -> what is not counted) as not modeled."""
    changed: list[Any] = [
        KeyReport(report.key, "not_modelled", lacks[report.key]) if report.key in lacks else report
        for report in keys
    ]
    return changed
