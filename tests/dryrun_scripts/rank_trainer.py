"""transformers' Trainer under torchrun: DDP, FSDP1 or 2, or DeepSpeed's ZeRO, as its arguments say; with
eval_batch it evaluates after two steps, with eval_kept for compute_metrics."""

import json
import os
import sys

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

folder, fields = sys.argv[1], json.loads(sys.argv[2])
parallel, adapters = fields["parallel"], fields["method"] != "full"
quantized = fields["method"] == "qlora"
checkpointed = fields.get("checkpointing", "none") != "none"
shared = {}
if parallel == "fsdp":
    shared["fsdp"] = "full_shard auto_wrap"
    shared["fsdp_config"] = {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "reshard_after_forward": fields.get("reshard_after_forward", True),
    }
    if fields.get("fsdp_version") == 1:
        # accelerate 1.15 utils/dataclasses.py: what the Trainer passes as reshard_after_forward is not heeded
        os.environ["FSDP_SHARDING_STRATEGY"] = (
            "FULL_SHARD" if fields.get("reshard_after_forward", True) else "SHARD_GRAD_OP"
        )
        names = {"none": "NO_PREFETCH", "pre": "BACKWARD_PRE", "post": "BACKWARD_POST"}
        shared["fsdp_config"] |= {
            "version": 1,
            "reshard_after_forward": "full_shard",
            "use_orig_params": fields.get("use_orig_params", True),
            "backward_prefetch": names[fields.get("backward_prefetch", "none")],
        }
elif parallel.startswith("zero"):
    sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    shared["deepspeed"] = {
        "zero_optimization": {"stage": int(parallel[-1]), **dict.fromkeys(sizes, "auto")},
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
batch, kept = fields.get("eval_batch"), fields.get("eval_kept")
if batch:
    shared |= {"per_device_eval_batch_size": batch, "eval_strategy": "steps", "eval_steps": 2}


def accuracy(found):
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


arguments = TrainingArguments(
    "out",
    per_device_train_batch_size=fields["micro_batch"],
    gradient_accumulation_steps=fields.get("gradient_accumulation", 1),
    activation_checkpointing=checkpointed,
    activation_checkpointing_kwargs={"use_reentrant": False},
    bf16=True,
    max_steps=4,
    report_to="none",
    save_strategy="no",
    **shared,
)
options = {}
if quantized or parallel == "ddp":
    options["device_map"] = {"": int(os.environ["LOCAL_RANK"])}
if quantized:
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=getattr(torch, fields.get("quant_storage", "uint8")),
    )
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
model.config.use_cache = False
if quantized and fields.get("kbit_prepare", True):
    model = prepare_model_for_kbit_training(model, checkpointed, {"use_reentrant": False})
if adapters:
    lora = LoraConfig(r=fields.get("rank", 16), target_modules="all-linear", task_type="CAUSAL_LM")
    wide = fields.get("adapter_dtype", "float32") == "float32"
    model = get_peft_model(model, lora, autocast_adapter_dtype=wide)
length = fields["sequence_length"]
row = {name: torch.randint(3, 500, (length,)) for name in ("input_ids", "labels")}
rows = [{**row, "attention_mask": torch.ones(length, dtype=torch.long)} for _ in range(64)]
asked = {"eval_dataset": rows[: kept or 64]} if batch else {}
Trainer(
    model, arguments, train_dataset=rows, **asked, **({"compute_metrics": accuracy} if kept else {})
).train()
