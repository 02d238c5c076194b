"""What a task fixes and excludes in a setup, and what an optimizer in the backward excludes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.heads import NEW_HEADS
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import OWN_ADAPTERS, TASKS, WHOLE_LOGITS

PROMPTS = ("prefix-tuning", "prompt-tuning", "p-tuning")


def derived(fields: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Fields that follow from a task of the table: (value, what it follows from)."""
    task = TASKS[fields["task"]]
    found: dict[str, tuple[Any, str]] = {}
    if task.labels is not None:
        found["num_labels"] = (task.labels, f"task {task.name}")
    if task.folds and fields["trl"] in WHOLE_LOGITS:
        found["loss"] = (task.loss(fields["trl"]), f"task {task.name} with trl {fields['trl']}")
    if task.reference:
        # trl 1.16 trainer/dpo_trainer.py __init__: with PEFT the adapter is switched off, else a second model
        adapts = METHODS[fields["method"]].trains == "adapter"
        found["reference"] = ("base" if adapts else "model", f"task {task.name} with {fields['method']}")
    if "value_model" in task.judges and fields["reward_model"] is not None:
        # both are loaded from reward_model_path (trl examples/scripts/ppo/ppo.py)
        found["value_model"] = (fields["reward_model"], f"task {task.name} with its reward_model")
    return found


def contradictions(s: Any) -> list[tuple[bool, str]]:
    """Choices that a setup's task excludes, each with the sentence that says so and what to do instead."""
    task, method = TASKS[s.task], METHODS[s.method]
    new_head, said = task.head in NEW_HEADS, f"task '{s.task}'"
    return [
        (
            s.task != "sft" and method.trains == "nothing",
            f"{said} trains, method '{s.method}' does not: leave --task out, or name another --method",
        ),
        (
            bool(task.stacks) and s.recipe not in task.stacks,
            f"{said} has no rule for recipe '{s.recipe}': use --recipe {' or '.join(task.stacks)}",
        ),
        (
            new_head and s.method in ("freeze", "bitfit", "adapter", *PROMPTS),
            f"{said} trains a new head, method '{s.method}' does not: use --method lora or full",
        ),
        (
            # transformers 5.24 quantizers/base.py get_keys_to_not_convert spares the last parameter's module,
            # which is then named score.bias: the head becomes 4-bit, and PEFT cannot train a copy of it
            new_head and NEW_HEADS[task.head].bias and s.quant_type != "none",
            f"{said}: transformers quantizes its head with the base, which PEFT then cannot train: use "
            "--method lora",
        ),
        (
            # peft 0.21 tuners/tuners_utils.py _maybe_include_all_linear_layers leaves out a classifier's
            # head alone
            task.head == "tokens" and method.trains == "adapter" and s.targets == ("all-linear",),
            f"{said}: PEFT takes its head for one of 'all-linear', and refuses to train a copy too: use "
            "--targets attention, or name the layers",
        ),
        (
            (task.reference or task.joined) and s.method in ("adapter", *PROMPTS),
            f"{said} has no rule for method '{s.method}': use --method lora or full",
        ),
        (
            s.reference != "none" and not (task.reference or task.compares),
            f"reference '{s.reference}' contradicts task '{s.task}', which compares with no reference model: "
            "leave it out, or use --task dpo",
        ),
        (
            s.reference == "base" and method.trains != "adapter",
            f"reference 'base' needs an adapter to switch off: method '{s.method}' trains the model itself "
            "(use --set reference=model)",
        ),
        (
            task.labels is not None and s.num_labels != task.labels,
            f"num_labels {s.num_labels} contradicts task '{s.task}', whose trainer takes {task.labels}: "
            "leave it out, or use --task classify",
        ),
        (
            task.loss(s.trl) not in (None, s.loss),
            f"loss '{s.loss}' contradicts task '{s.task}', whose loss is computed as "
            f"'{task.loss(s.trl)}'{f' by trl {s.trl}' if task.folds else ''}: leave --loss out",
        ),
        (
            s.target_length is not None and not task.targets,
            f"target_length {s.target_length} contradicts task '{s.task}', whose rows have one length: use "
            "--task seq2seq, or --seq",
        ),
        (
            task.divergence and task.folds and s.micro_batch < 2,  # TRL's; others exchange within the data
            f"micro_batch {s.micro_batch} is too small for task '{s.task}', which exchanges completions "
            "between rows: use --batch 2 or more",
        ),
        (
            bool(task.sequences) and s.packed_documents > 1,
            f"packed_documents {s.packed_documents} contradicts task '{s.task}', whose rows are examples: "
            "leave packing out",
        ),
        (
            # trl 1.16 experimental/utils.py peft_module_casting_to_bf16: norms in fp32, the head in 16 bit
            (task.joined and s.recipe not in OWN_ADAPTERS or not task.checkpoints) and s.quant_type != "none",
            f"{said} has no rule for {s.quant_type} weights, whose norms and head its trainer casts: "
            "use --method lora",
        ),
    ]


def beside(s: Any) -> list[tuple[bool, str]]:
    """The models and texts that a task needs, and what only such a task has."""
    task, said, texts = TASKS[s.task], f"task '{s.task}'", s.texts is not None
    return [
        (
            bool(task.companion) and getattr(s, task.companion or "task") is None,
            f"{said} needs a {task.companion}, a model's name: --set {task.companion}=MODEL",
        ),
        (
            s.teacher is not None and task.companion != "teacher",
            f"teacher '{s.teacher}' contradicts {said}, which has none: leave it out, or use --task distill",
        ),
        (
            s.reward_model is not None
            and not (task.generates and (task.judges or task.old_scores != "never")),
            f"reward_model '{s.reward_model}' contradicts {said}, which scores no samples: leave "
            "it out, or use --task grpo",
        ),
        *_judged(s),
        (
            texts != (task.head == "none"),
            f"texts {s.texts} contradicts {said}: an example's texts are --task embed's",
        ),
        (texts and (s.texts or 0) < 2, f"texts {s.texts} leaves nothing to compare with: use 2 or more"),
        (
            s.mini_batch is not None and not texts,
            f"mini_batch {s.mini_batch} contradicts {said}: it is the cached loss's of --task embed",
        ),
        (
            texts and s.method in ("adapter", "adalora", *PROMPTS),
            f"{said} has no rule for method '{s.method}': use --method lora or full",
        ),
        (
            texts and (s.parallel != "none" or s.eval_batch is not None or bool(s.images)),
            f"{said} has no rule for several GPUs, an evaluation or pictures: leave parallel, eval_batch and "
            "images out",
        ),
    ]


def _judged(s: Any) -> list[tuple[bool, str]]:
    """What only a task has that trains a value model beside the policy, and what its trainer excludes."""
    task, said = TASKS[s.task], f"task '{s.task}'"
    own = ("value_model", "num_mini_batches", "rollout_batch")
    strange = next((name for name in own if getattr(s, name) is not None), None)
    if not task.judges:
        return [
            (
                strange is not None,
                f"{strange} {getattr(s, strange or 'task')} contradicts {said}, which trains no value model: "
                "leave it out, or use --task ppo",
            )
        ]
    rows, parts = s.micro_batch * s.gradient_accumulation, s.num_mini_batches or 1
    others = ("generations", "steps_per_generation", "vllm_share", "top_p", "top_k")
    strange = next((name for name in others if getattr(s, name) is not None), None)
    return [
        (
            rows % parts != 0,
            f"num_mini_batches {parts} does not divide the {rows} rows of a rollout (--batch x gradient "
            "accumulation): TRL refuses that too",
        ),
        (
            strange is not None,
            f"{strange} {getattr(s, strange or 'task')} contradicts {said}, whose trainer has no such "
            "setting: leave it out, or use --task grpo",
        ),
        (
            s.checkpointing != "none",
            f"checkpointing '{s.checkpointing}' contradicts {said}: TRL's PPOTrainer never switches it on; "
            "leave it out",
        ),
        (
            s.reference == "none",
            f"reference 'none' contradicts {said}, whose trainer always has a reference: leave it out",
        ),
        (s.save or s.merge, f"{said} has no rule for what follows training: leave save and merge out"),
    ]


def generation(s: Any) -> list[tuple[bool, str]]:
    """What a task that samples its batch needs, and what only such a task has."""
    task, said = TASKS[s.task], f"task '{s.task}'"
    own = ("completion_length", "generations", "steps_per_generation", "vllm_share", "top_p", "top_k")
    strange = next((name for name in own if getattr(s, name) is not None), None)
    if not task.generates:
        return [
            (
                strange is not None,
                f"{strange} {getattr(s, strange or 'task')} contradicts {said}, which samples nothing: "
                "leave it out, or use --task grpo",
            )
        ]
    rows = s.micro_batch * s.gpus * (s.steps_per_generation or s.gradient_accumulation)
    return [
        (
            (s.completion_length or 0) >= s.sequence_length,
            f"completion_length {s.completion_length} leaves no prompt in {s.sequence_length} tokens of a "
            "row: use --seq for prompt and completion together, or --set completion_length=N",
        ),
        (
            s.generations is not None and rows % s.generations != 0,
            f"a generation of {rows} rows is no multiple of generations {s.generations}: use --batch or "
            "--set generations=N",
        ),
        (
            s.vllm_share is not None and s.gpu is None,
            f"vllm_share {s.vllm_share} is of a GPU's memory: name it with --gpu",
        ),
        (
            s.vllm_sleeps and s.vllm_share is None,
            "vllm_sleeps needs vLLM's share of the GPU: --set vllm_share=0.3",
        ),
        (
            s.eval_batch is not None and task.old_scores == "never" and not task.judges,
            f"eval_batch {s.eval_batch} has no rule for {said}: leave it out",
        ),
        (
            s.method in ("adapter", *PROMPTS),
            f"{said} has no rule for method '{s.method}': use --method lora or full",
        ),
        (
            s.parallel != "none",
            f"{said} has no rule for parallel '{s.parallel}': leave it out for one GPU, or leave --task out "
            "for the supervised step, which is less",
        ),
    ]
