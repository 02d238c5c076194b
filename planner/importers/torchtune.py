"""torchtune's YAML (0.6.1, frozen): read, and answered with the nearest recipe, raw; what differs is said."""

from __future__ import annotations

import re
from typing import Any

from memplan.planner.importers.rules import (
    Facts,
    Rule,
    bad,
    dtype,
    flag,
    ignored,
    integer,
    names,
    nested,
    not_modelled,
    number,
    one_of_text,
    setup_fields,
    text,
    use,
)
from memplan.planner.tables.errors import UsageError, shorten

OPTIMIZERS = {
    "torch.optim.AdamW": "adamw_torch",
    "torch.optim.Adam": "adamw_torch",
    "torch.optim.SGD": "sgd",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_bnb_8bit",
    "bitsandbytes.optim.Lion8bit": "lion_8bit",
    "torchao.optim.AdamW8bit": "adamw_torch_8bit",
    "torchao.prototype.low_bit_optim.AdamW8bit": "adamw_torch_8bit",
}
COMPONENT = re.compile(r"torchtune\.models\.([a-z0-9_]+)\.(?:(qlora|lora|qdora|dora)_)?([a-z0-9_]+)")
MODELS = {
    "llama3_1_8b": "llama-3.1-8b",
    "llama3_1_70b": "llama-3.1-70b",
    "llama3_1_405b": "llama-3.1-405b",
    "llama3_8b": "llama-3-8b",
    "llama3_70b": "llama-3-70b",
    "llama3_2_1b": "llama-3.2-1b",
    "llama3_2_3b": "llama-3.2-3b",
    "llama3_3_70b": "llama-3.3-70b",
    "llama2_7b": "llama-2-7b",
    "llama2_13b": "llama-2-13b",
    "llama2_70b": "llama-2-70b",
    "code_llama2_7b": "codellama-7b",
    "code_llama2_13b": "codellama-13b",
    "mistral_7b": "mistral-7b",
    "qwen2_7b": "qwen2-7b",
    "qwen2_1_5b": "qwen2-1.5b",
    "qwen2_0_5b": "qwen2-0.5b",
    "phi3_mini": "phi-3-mini",
    "phi4_14b": "phi-4",
    "gemma_2b": "gemma-2b",
    "gemma_7b": "gemma-7b",
    "gemma2_2b": "gemma-2-2b",
    "gemma2_9b": "gemma-2-9b",
    "gemma2_27b": "gemma-2-27b",
    **{
        f"qwen2_5_{size}{kind}": f"qwen2.5-{size.replace('_', '.')}"
        for size in ("0_5b", "1_5b", "3b", "7b", "14b", "32b", "72b")
        for kind in ("", "_base", "_instruct")
    },
    **{
        f"qwen3_{size}{kind}": f"qwen3-{size.replace('_', '.')}"
        for size in ("0_6b", "1_7b", "4b", "8b", "14b", "32b")
        for kind in ("", "_base", "_instruct")
    },
}
"""torchtune's builders -> the catalog's names."""


LOSSES = {
    "CEWithChunkedOutputLoss": "torchtune-0.6",
    "LinearCrossEntropyLoss": "torchtune",
    "LigerFusedCrossEntropyLoss": "fused",
}
"""torchtune 0.6.1 modules/loss/ce_chunked_output_loss.py; modules/loss/cross_entropy_loss.py after it, which has
Liger's own kernel too (02b12d3).
"""

RENAMED = {"output_proj": "o_proj"}
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "output_proj": "o_proj",
}
"""torchtune's module names -> those of transformers' models; Phi's hold several projections in one
(modeling_phi3.py).
"""


def _component(key: str, value: Any) -> tuple[str, str]:
    """The builder of a model: (method word, model)."""
    match = COMPONENT.fullmatch(text(key, value))
    if match is None:
        raise bad(key, value, "a builder such as torchtune.models.llama3_1.lora_llama3_1_8b")
    return match.group(2) or "full", match.group(3)


def _optimizer(key: str, value: Any) -> str:
    name = text(key, value)
    if name not in OPTIMIZERS:
        raise UsageError(
            f"{key} '{shorten(name, 60)}' is not supported: pass --optimizer with a supported name, "
            "and a copy of the file without the key"
        )
    return OPTIMIZERS[name]


_ANY: dict[str, Rule] = {"*": Rule("ignored", why="a part that the training step does not hold")}
RULES: dict[str, Rule] = {
    "model": nested(
        {
            "_component_": use("_component", _component),
            "lora_attn_modules": use("_attention_targets", names),
            "apply_lora_to_mlp": use("_mlp", flag),
            "apply_lora_to_output": use("_output", flag),
            "lora_rank": use("rank", integer),
            "lora_alpha": use("alpha", number),
            "lora_dropout": use("dropout", number),
            "quantize_base": use("_quantize", flag),
            "use_dora": use("_dora", flag),
            **{
                name: not_modelled("a model of its own shape: name the nearest one, or give a config.json")
                for name in (
                    "vocab_size",
                    "num_layers",
                    "num_heads",
                    "num_kv_heads",
                    "embed_dim",
                    "intermediate_dim",
                )
            },
            "attn_dropout": not_modelled("dropout of attention scores", (0.0,)),
            "max_seq_len": not_modelled("the table of rotary angles", errs="low"),
            **ignored(
                "where the tokenizer or the pictures come from, or a number",
                "image_size *_trainable norm_eps",
            ),
        }
    ),
    "tokenizer": nested(
        {
            "_component_": Rule("ignored", why="the tokenizer"),
            "max_seq_len": use("sequence_length", integer),
            **_ANY,
        }
    ),
    "dataset": nested({"packed": use("_packed", flag), **_ANY}),
    "batch_size": use("micro_batch", integer),
    "gradient_accumulation_steps": use("gradient_accumulation", integer),
    "optimizer": nested(
        {
            "_component_": use("optimizer", _optimizer),
            "fused": use("_fused", flag),
            "maximize": not_modelled("negated gradients", errs="low"),
            "amsgrad": not_modelled("a third state of every parameter", errs="low"),
            "momentum": not_modelled("a state of every parameter", (0.0,), errs="low"),
            "foreach": Rule(
                "not_modelled", why="one parameter at a time", harmless=(None, True), errs="high"
            ),
            **_ANY,
        }
    ),
    "dtype": use("weight_dtype", dtype),
    "device": use("_device", text),
    "enable_activation_checkpointing": use("_checkpointing", flag),
    "loss": nested(
        {
            "_component_": use("_loss", text),
            "num_output_chunks": not_modelled("the size of a chunk of logits", (8,)),
            **_ANY,
        }
    ),
    "enable_activation_offloading": use("_offloads", flag, "saved tensors go to the host"),
    "ac_mode": use("_ac_mode", one_of_text("full", "selective", "none")),
    "ac_option": use("_ac_option", integer, "every so many layers"),
    "optimizer_in_bwd": use("optimizer_in_backward", flag),
    "fsdp_cpu_offload": not_modelled("shards on the host", errs="high"),
    "compile": not_modelled("a compiled step frees and fuses tensors differently", errs="high"),
    "tensor_parallel_dim": not_modelled("weights split across GPUs", (1,), errs="high"),
    "tensor_parallel_plan": not_modelled("weights split across GPUs", errs="high"),
    "teacher_model": not_modelled("a teacher model is resident too", errs="low"),
    "data_parallel_shard_dim": use("_shards", lambda key, value: value),
    "data_parallel_replicate_dim": not_modelled("replicas beside shards", (1,)),
    "context_parallel_dim": not_modelled("sequences split across GPUs", (1,), errs="high"),
    "early_exit_loss": not_modelled("a loss after several layers: more logits", errs="low"),
    "layer_dropout": not_modelled("layers left out at random: the prediction is of a step with all of them"),
    **{
        name: not_modelled("reinforcement learning holds further models and generates", errs="low")
        for name in (
            "policy_model",
            "reward_and_value_model",
            "ref_checkpointer",
            "grpo_samples",
            "ppo_epochs",
            "orchestration",
        )
    },
    "base_model_path": Rule("ignored", why="where the weights come from"),
    "fsdp": nested({"cpu_offload": not_modelled("shards on the host"), **_ANY}),
    "datasets": Rule("ignored", why="names data"),
    "dataloader": Rule("ignored", why="how data reaches the host"),
    **{
        name: not_modelled("embeddings and head gathered by themselves", ([],), errs="high")
        for name in ("memory_efficient_fsdp_wrap", "custom_sharded_layers")
    },
    "fsdp_reshard_after_forward": Rule(
        "not_modelled", why="gathered weights stay until backward", harmless=(None, True), errs="low"
    ),
    **ignored(
        "numbers of reinforcement learning, reported by its models",
        """
        inference postprocessing training forward_batch_size max_generated_tokens num_steps reward_functions name
        ppo_batch_size min_response_length penalize_no_eos reward_penalty stop_token_ids whiten_rewards gamma lmbda kl_coeff
        ref_policy_checkpointer value_checkpointer reward_checkpointer temperature top_k save_every_n_epochs debug_*
    """,
    ),
    "enable_kv_cache": Rule("ignored", why="generation only"),
    **ignored(
        "files, schedules, logging and randomness",
        """
        checkpointer resume_from_checkpoint save_adapter_weights_only output_dir seed shuffle lr_scheduler epochs
        max_steps_per_epoch clip_grad_norm metric_logger log_* profiler low_cpu_ram collate_fn
        cudnn_deterministic_mode quantizer dataset_val batch_size_val run_val_every_n_steps
        keep_last_n_checkpoints enable_async_checkpointing teacher_checkpointer kd_ratio kd_loss
    """,
    ),
}


def finish(facts: Facts, warnings: list[str]) -> dict[str, Any]:
    """The nearest setup under recipe raw: everything, adapters and states included, in the file's dtype."""
    if "optimizer" not in facts:
        raise UsageError(
            "a torchtune file without an optimizer trains nothing: evaluation and generation are not "
            "predicted"
        )
    word, model = facts.get("_component", ("full", ""))
    facts["_model"] = MODELS.get(model)
    if facts["_model"] is None and model:
        warnings.append(
            f"torchtune's builder {model} has no model in the catalog: name the model beside the file"
        )
    facts.setdefault("weight_dtype", "bfloat16")
    facts["autocast"] = "none"
    facts.setdefault("micro_batch", 1)
    _checkpointing(facts, warnings)
    loss = LOSSES.get(facts.get("_loss", "").rpartition(".")[2])
    if loss is not None:
        facts["loss"] = loss
    if ".rlhf." in facts.get("_loss", ""):  # recipes/lora_dpo_single_device.py; SimPO compares with nothing
        facts.pop("loss", None)
        facts["task"] = "dpo_logits"
        if facts["_loss"].endswith(".SimPOLoss"):
            facts["reference"] = "none"
    if facts.get("_fused") and facts.get("optimizer") == "adamw_torch":
        facts["optimizer"] = "adamw_torch_fused"
    if facts.get("_device") == "cpu":
        facts["device"] = "cpu"
    facts["method"] = "dora" if facts.get("_dora") else METHOD_OF[word]
    if word != "full":
        _adapters(facts, model, warnings)
    if word in ("qlora", "qdora") or facts.get("_quantize"):
        facts |= {"quant_type": "nf4", "double_quant": True, "kbit_prepare": False}
        warnings.append(
            "torchtune quantizes with torchao's NF4: bitsandbytes' nf4 with double quantization is the "
            "nearest"
        )
    if facts.get("_packed"):
        facts["packed_documents"] = 2
    _attention(facts, model)
    return {**setup_fields(facts), "recipe": "raw"}


def _checkpointing(facts: Facts, warnings: list[str]) -> None:
    """ac_mode is read where enable_activation_checkpointing is off; its layers count from 1 (torchtune 0.6.1
    recipes/full_finetune_distributed.py, training/activations.py). Offloading is refused without checkpoints.
    """
    mode = facts.get("_ac_mode", "none")
    on = facts.get("_checkpointing", False) or mode != "none"
    facts["checkpointing"] = "non_reentrant" if on else "none"
    if not facts.get("_checkpointing") and mode == "selective" and facts.get("_ac_option", 1) > 1:
        facts["checkpoint_every"] = facts["_ac_option"]
        warnings.append(
            "ac_option checkpoints the last of every so many layers; the first is assumed, which is as many where "
            "the number of layers is a multiple"
        )
    if facts.get("_offloads") and facts.get("_checkpointing"):
        facts["activation_offload"] = "torchtune"
    elif facts.get("_offloads"):
        warnings.append(
            "torchtune refuses enable_activation_offloading without enable_activation_checkpointing: left out"
        )


METHOD_OF = {"full": "full", "lora": "lora", "qlora": "qlora", "dora": "dora", "qdora": "dora"}
"""The first word of a builder's name -> memplan's method."""


def _adapters(facts: Facts, model: str, warnings: list[str]) -> None:
    """Adapters in the file's dtype, on the transformers modules that torchtune's names stand for."""
    facts["adapter_dtype"] = facts["weight_dtype"]
    mlp = ("gate_proj", "up_proj", "down_proj") if facts.get("_mlp") else ()
    modules = (*facts.get("_attention_targets", ("q_proj", "v_proj")), *mlp)
    fused = FUSED if model.startswith(("phi3", "phi4")) else {}
    facts["targets"] = tuple(dict.fromkeys(fused.get(name, RENAMED.get(name, name)) for name in modules))
    if fused and facts["targets"] != modules:
        warnings.append(
            "the transformers model fuses projections that torchtune keeps apart: adapters on the fused "
            "ones are assumed"
        )
    if facts.get("_output"):
        warnings.append("apply_lora_to_output: an adapter on the head is not modeled")


def _attention(facts: Facts, model: str) -> None:
    """torchtune 0.6.1 modules/attention.py repeats grouped key and value heads before
    scaled_dot_product_attention, so that float32 takes the memory-efficient kernel, where a grouped call
    would take the math path; Gemma 2 caps its scores by hand, which is eager attention.
    """
    if model.startswith("gemma2"):
        facts["attention"] = "eager"
    elif facts["weight_dtype"] == "float32" and facts.get("device") != "cpu":
        facts["attention"] = "sdpa-efficient"
    else:
        facts["_notes"] = [
            "torchtune saves grouped key and value heads once for every query head, transformers once for "
            "each group"
        ]
