import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

config = AutoConfig.from_pretrained(f"{sys.argv[1]}/model")
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
ids = torch.arange(128)
rows = [{"input_ids": ids + n, "labels": ids, "attention_mask": torch.ones_like(ids)} for n in range(64)]
args = TrainingArguments(
    f"{sys.argv[1]}/out",
    per_device_train_batch_size=2,
    per_device_eval_batch_size=8,
    max_steps=2,
    eval_strategy="steps",
    eval_steps=2,
    bf16=True,
    report_to="none",
    save_strategy="no",
)


def accuracy(found):
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


Trainer(model, args, train_dataset=rows, eval_dataset=rows, compute_metrics=accuracy).train()
