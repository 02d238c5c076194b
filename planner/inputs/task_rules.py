"""What a task fixes and excludes in a setup, and what an optimizer in the backward excludes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import NEW_HEADS, TASKS

KEEPS_LOGITS = ("sft", "classify", "mlm")
"""Tasks whose evaluation is the Trainer's, of logits alone."""
PROMPTS = ("prefix-tuning", "prompt-tuning", "p-tuning")


def derived(fields: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Fields that follow from a task of the table: (value, what it follows from)."""
    task = TASKS[fields["task"]]
    found: dict[str, tuple[Any, str]] = {}
    if task.labels is not None:
        found["num_labels"] = (task.labels, f"task {task.name}")
    if task.reference:
        # trl 1.16 trainer/dpo_trainer.py __init__: with PEFT the adapter is switched off, else a second model
        adapts = METHODS[fields["method"]].trains == "adapter"
        found["reference"] = ("base" if adapts else "model", f"task {task.name} with {fields['method']}")
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
            "loss" in task.defaults and s.loss != task.defaults["loss"],
            f"loss '{s.loss}' contradicts task '{s.task}', whose loss is computed as "
            f"'{task.defaults.get('loss')}': leave --loss out",
        ),
        (
            s.target_length is not None and not task.targets,
            f"target_length {s.target_length} contradicts task '{s.task}', whose rows have one length: use "
            "--task seq2seq, or --seq",
        ),
        (
            task.divergence and s.micro_batch < 2,
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
            task.joined and s.quant_type != "none",
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
            s.reward_model is not None and (not task.generates or task.old_scores == "never"),
            f"reward_model '{s.reward_model}' contradicts {said}, which scores no samples: leave "
            "it out, or use --task grpo",
        ),
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
            s.eval_batch is not None,
            f"eval_batch {s.eval_batch} has no rule for {said}, whose evaluation samples too: leave it out",
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


def evaluation(s: Any) -> list[tuple[bool, str]]:
    """What an evaluation needs; its logits are kept by transformers' own prediction_step, of a decoder or an
    encoder (T5's outputs have more than logits, TRL's trainers of pairs keep other numbers).
    """
    trains = METHODS[s.method].trains != "nothing"
    kept = f"eval_kept {s.eval_kept}"
    return [
        (
            s.eval_batch is not None and not trains,
            f"eval_batch {s.eval_batch}: method '{s.method}' trains nothing that an evaluation would follow",
        ),
        (
            s.eval_kept is not None and s.eval_batch is None,
            f"{kept} needs the batch of the evaluation: --set eval_batch=8",
        ),
        (
            s.eval_kept is not None and s.eval_batch is not None and s.eval_kept < s.eval_batch,
            f"{kept} is less than one batch of eval_batch {s.eval_batch}: use a multiple of it",
        ),
        (
            s.eval_kept is not None and s.loss != "full",
            f"{kept} contradicts loss '{s.loss}', which never has whole logits: use --loss full",
        ),
        (
            s.eval_kept is not None and s.task not in KEEPS_LOGITS,
            f"{kept} has no rule for task '{s.task}': use it with {', '.join(KEEPS_LOGITS)}",
        ),
    ]


def merging(s: Any) -> list[tuple[bool, str]]:
    """What an adapter that is merged into its base needs."""
    trains, linear = METHODS[s.method].trains, s.method not in ("adapter", *PROMPTS)
    return [
        (
            s.merge and (trains != "adapter" or not linear),
            f"merge: method '{s.method}' has no adapter that PEFT merges into a base: use --method lora",
        ),
        (
            s.merge and s.quant_type == "int8",
            "merge has no rule for int8 weights: use --method lora or qlora",
        ),
        (
            s.merge and s.parallel != "none",
            f"merge has no rule for parallel '{s.parallel}': leave it out for one GPU",
        ),
    ]


def saving(s: Any) -> list[tuple[bool, str]]:
    """What a model that is saved needs."""
    return [
        (
            s.save and METHODS[s.method].trains == "nothing",
            f"save: method '{s.method}' trains nothing that would be saved: leave it out",
        ),
        (
            s.save and s.parallel == "zero3",
            "save has no rule for parallel 'zero3', whose ranks gather module by module: leave it out",
        ),
        (
            s.save and s.parallel == "fsdp" and s.offload == "all",
            "save has no rule for offload 'all': leave it out",
        ),
    ]


def serving(s: Any) -> list[tuple[bool, str]]:
    """What adapters beside an inference need, and those of some layers alone."""
    row = METHODS[s.method]
    return [
        (
            s.adapters is not None and row.trains != "nothing",
            f"adapters {s.adapters} are those of an inference, method '{s.method}' trains one: use --method "
            "inference",
        ),
        (
            bool(s.layers_to_transform) and "layers_to_transform" not in row.reads,
            f"layers_to_transform: method '{s.method}' has no adapters on layers: use --method lora",
        ),
    ]


def in_backward(s: Any) -> list[tuple[bool, str]]:
    """What an optimizer that steps in the backward excludes: no gradient lives until another place asks."""
    broken = (
        (
            s.gradient_accumulation > 1,
            f"gradient_accumulation {s.gradient_accumulation} has nothing to add to",
        ),
        (s.importance_buffers, "AdaLoRA's importance_buffers are made of gradients after the step"),
        (s.parallel != "none", f"under {s.parallel} it has no rule, use one GPU"),
    )
    said = "optimizer_in_backward frees each gradient as it comes"
    return [(s.optimizer_in_backward and holds, f"{said}: {why}") for holds, why in broken]
