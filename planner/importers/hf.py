"""transformers' TrainingArguments (5.23), as JSON or as somebody's options: also the base of TRL's and
LLaMA-Factory's tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.planner.importers.choices import optimizer, settle_attention, settle_optimizer
from memplan.planner.importers.fsdp import STRATEGIES, settle_fsdp
from memplan.planner.importers.liger import settle_liger
from memplan.planner.importers.low_rank import arguments, target_modules
from memplan.planner.importers.rules import (
    Facts,
    Rule,
    bad,
    flag,
    ignored,
    integer,
    names,
    not_modelled,
    number,
    setup_fields,
    text,
    use,
)
from memplan.planner.inputs.jsonfile import parse_json


def keyword_arguments(key: str, value: Any) -> Mapping[str, Any]:
    """A mapping of keyword arguments; launch lines give it as a JSON text."""
    if isinstance(value, str):
        try:
            value = parse_json(value, key)
        except ValueError:
            raise bad(key, value, "a JSON object") from None
    if not isinstance(value, Mapping):
        raise bad(key, value, "a mapping of keyword arguments")
    return value


def sharded(key: str, value: Any) -> str | None:
    """TrainingArguments.fsdp: true, or (before transformers 5) words such as 'full_shard auto_wrap'."""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    words = str(value).lower().split()
    if value in (None, False) or not words or words[0] in ("false", "no_shard", "off"):
        return None
    return " ".join(words)


EVAL_BATCH = 8
"""transformers 5.24 training_args.py per_device_eval_batch_size."""
GENERATES = not_modelled("generation while it is evaluated: a KV cache, and the logits of each token")
"""transformers 5.24 trainer_seq2seq.py prediction_step."""
NOISE = not_modelled("noise of the embeddings' size and a second copy of them", (0.0,), errs="low")
"""transformers 5.23 integrations/neftune.py neftune_post_forward_hook."""
DETERMINISTIC = not_modelled("other workspaces of cuBLAS, and kernels that keep partial sums")
"""transformers 5.23 trainer_utils.py enable_full_determinism: CUBLAS_WORKSPACE_CONFIG; torch 2.13
native/transformers/cuda/flash_attn/flash_api.cpp mha_bwd: a dq accumulator for each split.
"""
DEBUGS = not_modelled(
    "a copy of each tensor that a module takes or gives, to look for infinities",
    ("tpu_metrics_debug", [], ["tpu_metrics_debug"]),
    errs="low",
)
"""transformers 5.24 debug_utils.py get_abs_min_max."""
TRAINING: dict[str, Rule] = {
    "per_device_train_batch_size": use("_batch", integer),
    "train_micro_batch_size_per_gpu": use("_batch", integer),
    "gradient_accumulation_steps": use("gradient_accumulation", integer),
    "optim": use("optimizer", optimizer),
    "bf16": use("_bf16", flag),
    "fp16": use("_fp16", flag),
    "activation_checkpointing": use("_checkpointing", flag),
    "gradient_checkpointing": use("_checkpointing", flag),
    "activation_checkpointing_kwargs": use("_checkpointing_kwargs", keyword_arguments),
    "gradient_checkpointing_kwargs": use("_checkpointing_kwargs", keyword_arguments),
    "use_liger_kernel": use("_liger", flag, "Liger's loss and kernels"),
    "fsdp": use("_fsdp", sharded),
    "fsdp_config": Rule("used", "_fsdp_config", why="sharding details"),
    "deepspeed": use("_deepspeed", why="a file or a mapping"),
    "parallelism_config": not_modelled(
        "tensor, context and sequence parallelism divide weights and activations", errs="high"
    ),
    **{name: use("_cpu", flag) for name in ("use_cpu", "no_cuda")},
    "optim_args": use("_optim_args", arguments),
    "optim_target_modules": use("optim_targets", target_modules),
    **{
        name: not_modelled("a compiled step frees and fuses tensors differently", errs="high")
        for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")
    },
    "auto_find_batch_size": not_modelled(
        "halves the batch after an out-of-memory error: the batch given is the one predicted"
    ),
    "liger_kernel_config": use("_liger_config", keyword_arguments, "which of Liger's kernels are on"),
    "per_device_eval_batch_size": use("_eval_batch", integer, "rows of an evaluation step"),
    **{name: use("_evaluates", text) for name in ("eval_strategy", "evaluation_strategy")},
    "label_smoothing_factor": not_modelled("a loss over all entries, of whole logits", (0.0,), errs="low"),
    "neftune_noise_alpha": NOISE,
    "full_determinism": DETERMINISTIC,
    "use_cache": not_modelled("a key-value cache kept while training"),
    "debug": DEBUGS,
    "predict_with_generate": GENERATES,
    **ignored(
        "when gradients are synchronised across ranks, not how many bytes a step holds",
        """
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank
        average_tokens_across_devices accelerator_config
    """,
    ),
    **ignored(
        "the optimizer's numbers, not its states",
        """
        learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio weight_decay adam_beta1 adam_beta2
        adam_epsilon max_grad_norm num_train_epochs max_steps
    """,
    ),
    **ignored(
        "when it is evaluated, and saving and logging, are outside these steps",
        """
        eval_* do_eval do_predict do_train prediction_loss_only include_for_metrics batch_eval_metrics
        bf16_full_eval fp16_full_eval eval_on_start save_* load_best_model_at_end metric_for_best_model greater_is_better
        logging_* log_* report_to run_name project trackio_* disable_tqdm output_dir overwrite_output_dir push_to_hub hub_*
        enable_jit_checkpoint resume_from_checkpoint restore_callback_states_from_checkpoint ignore_data_skip
        skip_memory_metrics include_num_input_tokens_seen include_tokens_per_second label_names past_index
        jit_mode_eval include_inputs_for_metrics
    """,
    ),
    "group_by_length": use("group_by_length", flag, "read with --lengths"),
    "train_sampling_strategy": use(
        "group_by_length", lambda key, value: text(key, value) == "group_by_length", "read with --lengths"
    ),
    **ignored(
        "how data reaches the host",
        """
        dataloader_* remove_unused_columns length_column_name seed data_seed
    """,
    ),
    **ignored("the allocator's cache between steps, not a step's peak", "torch_empty_cache_steps"),
    **ignored("precision of products, not of tensors", "tf32 half_precision_backend"),
    **ignored(
        "transformers' own bookkeeping",
        """
        transformers_version _n_gpu n_gpu mp_parameters tpu_* push_to_hub_* accelerator_config deepspeed_plugin
        distributed_state
    """,
    ),
}
"""Every field of TrainingArguments (transformers 5.23 training_args.py)."""


def settle(
    facts: Facts,
    warnings: list[str],
    *,
    batch: int = 8,
    checkpointing: bool | None = None,
    bf16: bool | None = False,
    reentrant: bool = False,
) -> None:
    """Turn the intermediate facts of TrainingArguments into Setup fields, with the stack's defaults where the
    file is silent.
    """
    facts["micro_batch"] = facts.get("_batch", batch)
    fp16 = facts.get("_fp16", False)
    if facts.get("_bf16", bool(bf16) and not fp16):
        facts["autocast"] = "bfloat16"
    elif fp16:
        facts["autocast"] = "float16"
    elif "_bf16" in facts or bf16 is not None:
        facts["autocast"] = "none"
    settle_checkpointing(facts, warnings, checkpointing, reentrant)
    settle_liger(facts, warnings)
    if facts.get("_fsdp"):
        words = facts["_fsdp"].split()
        facts.setdefault(
            "_strategy",
            next((STRATEGIES[word] for word in words if word in STRATEGIES), STRATEGIES["full_shard"]),
        )
        facts["_fsdp_offload"] = facts.get("_fsdp_offload") or "offload" in words
        settle_fsdp(facts, warnings, trainer=True)
    if facts.get("_cpu"):
        facts["device"] = "cpu"
    if str(facts.get("_evaluates", "no")).rpartition(".")[2].lower() in ("steps", "epoch"):
        facts["eval_batch"] = facts.get("_eval_batch", EVAL_BATCH)
    settle_optimizer(facts, warnings)
    settle_attention(facts, warnings)


def settle_checkpointing(facts: Facts, warnings: list[str], default: bool | None, reentrant: bool) -> None:
    """Turn the flags and keyword arguments of gradient checkpointing into the `checkpointing` fact."""
    kwargs = dict(facts.get("_checkpointing_kwargs") or {})
    if default is None and "_checkpointing" not in facts:
        return
    if not facts.get("_checkpointing", default):
        facts["checkpointing"] = "none"
        return
    facts["checkpointing"] = "reentrant" if kwargs.pop("use_reentrant", reentrant) else "non_reentrant"
    if kwargs.get("every_n_layers"):
        facts["checkpoint_every"] = integer("every_n_layers", kwargs.pop("every_n_layers"))
    if kwargs.pop("offload", False):
        facts["checkpoint_offload"] = True
    if kwargs.pop("selective", False):
        warnings.append(
            "selective checkpointing keeps attention outputs, about one hidden state more per layer: not "
            "modeled"
        )
    (
        kwargs.pop("determinism_check", None),
        kwargs.pop("preserve_rng_state", None),
        kwargs.pop("every_n_layers", None),
    )
    if kwargs:
        warnings.append(f"checkpointing arguments {', '.join(sorted(map(str, kwargs)))} are not modeled")


def packed_rows(facts: Facts, warnings: list[str]) -> None:
    """Several documents share a row: the mask they need is the same for any number of them from two on."""
    facts["packed_documents"], facts["padded"] = 2, False
    warnings.append("packed rows: two documents a row are assumed (--set packed_documents=N for more)")


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """TrainingArguments and the words that scripts built on them use for adapters; without such a word a
    Trainer trains every parameter.
    """
    settle(facts, warnings, checkpointing=False)
    quantized = bool(facts.get("_four_bit") or facts.get("_eight_bit"))
    if facts.get("_peft", quantized or any(name in facts for name in ADAPTER_FIELDS)):
        facts["method"] = "qlora" if quantized else "lora"
        facts["quant_type"] = ("nf4" if facts.get("_four_bit") else "int8") if quantized else None
    else:
        facts["method"] = "full"
        facts["_notes"] = [
            "full fine-tuning: no adapter flags found (--use_peft, --lora_r, ...); pass --method "
            "lora if the script adds adapters"
        ]
        for name in ADAPTER_FIELDS:
            facts.pop(name, None)
        if quantized:
            warnings.append(
                "4-bit and 8-bit weights cannot be trained themselves: full fine-tuning in 16 bits is assumed"
            )
    return setup_fields(facts)


ADAPTER_FIELDS = ("rank", "alpha", "dropout", "targets")
RULES: dict[str, Rule] = {
    **TRAINING,
    "model_name_or_path": use("_model", text),
    "max_seq_length": use("sequence_length", integer),
    **{
        name: use("_peft", flag, "adapters")
        for name in ("use_peft", "use_peft_lora", "use_lora", "lora_enable", "lora")
    },
    **{
        name: use("_four_bit", flag)
        for name in ("load_in_4bit", "use_4bit", "use_4bit_quantization", "q_lora", "qlora", "use_qlora")
    },
    **{name: use("_eight_bit", flag) for name in ("load_in_8bit", "use_8bit", "use_8bit_quantization")},
    **{name: use("rank", integer) for name in ("lora_r", "lora_rank")},
    "lora_alpha": use("alpha", number),
    "lora_dropout": use("dropout", number),
    **{name: use("targets", names) for name in ("lora_target_modules", "lora_targets")},
}
"""TrainingArguments, and the adapter options of well-known scripts on top of it (peft examples/sft, FastChat,
LLaVA, Alpaca-LoRA).
"""
