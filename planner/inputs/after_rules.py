"""What an evaluation, and what follows training, exclude: pairs of choices, each with its sentence."""

from __future__ import annotations

from typing import Any

from memplan.planner.inputs.task_rules import PROMPTS
from memplan.planner.tables.losses import WITH_LOGITS
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS

KEEPS_LOGITS = ("sft", "classify", "mlm")
"""Tasks whose evaluation is the Trainer's, of logits alone."""


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
            s.eval_kept is not None and s.eval_kept < (s.eval_batch or 0) * s.gpus,
            f"{kept} is less than one batch of eval_batch {s.eval_batch}"
            + (f" on each of {s.gpus} GPUs" if s.gpus > 1 else "")
            + ": use a multiple of it",
        ),
        (
            s.eval_kept is not None and s.loss not in WITH_LOGITS,
            f"{kept} contradicts loss '{s.loss}', which never has whole logits: use --loss full",
        ),
        (
            s.eval_kept is not None and s.task not in KEEPS_LOGITS,
            f"{kept} has no rule for task '{s.task}': use it with {', '.join(KEEPS_LOGITS)}",
        ),
        (
            s.eval_generate is not None and s.eval_batch is None,
            f"eval_generate {s.eval_generate} needs the batch of the evaluation: --set eval_batch=8",
        ),
        (
            s.eval_generate is not None and not TASKS[s.task].targets,
            f"eval_generate {s.eval_generate} has no rule for task '{s.task}': it is Seq2SeqTrainer's of an "
            "encoder and a decoder, --task seq2seq",
        ),
        (
            s.eval_beams > 1 and s.eval_generate is None,
            f"eval_beams {s.eval_beams} are of an evaluation that generates: --set eval_generate=TOKENS",
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
            s.save_sharded and not (s.save and s.parallel in ("fsdp", "zero3")),
            "save_sharded is of a save of ranks that share the model's weights: use --set save=true with "
            "--parallel fsdp or zero3, or leave it out",
        ),
        (
            s.save and not s.save_sharded and s.parallel == "fsdp" and s.offload == "all",
            "save has no rule for offload 'all' under fsdp: use --set save_sharded=true, or leave it out",
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
