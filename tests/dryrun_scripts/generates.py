"""Seq2SeqTrainer with predict_with_generate: it evaluates after two steps."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments

folder, method = sys.argv[1:3]
tokens, labels, rows, length, beams = map(int, sys.argv[3:8])
model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0})
if method == "lora":
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_2_SEQ_LM"))
row = {"input_ids": torch.full((tokens,), 3), "labels": torch.full((labels,), 3)}
examples = [{**row, "attention_mask": torch.ones(tokens, dtype=torch.long)} for _ in range(32)]
args = Seq2SeqTrainingArguments(
    f"{folder}/out",
    per_device_train_batch_size=4,
    per_device_eval_batch_size=rows,
    predict_with_generate=True,
    generation_max_length=length,
    generation_num_beams=beams,
    max_steps=3,
    eval_strategy="steps",
    eval_steps=2,
    bf16=True,
    report_to="none",
    save_strategy="no",
)


def exact(found):
    return {"tokens": float(found.predictions.shape[1])}


trainer = Seq2SeqTrainer(
    model, args, train_dataset=examples, eval_dataset=examples[: 2 * rows], compute_metrics=exact
)
trainer.train()
