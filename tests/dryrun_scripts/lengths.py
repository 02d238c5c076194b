import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

folder, method, sampling, steps, seed = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.bfloat16, device_map={"": 0})
if method == "lora":
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
noise = torch.randn(4 * steps, generator=torch.Generator().manual_seed(seed))
lengths = torch.exp(5.5 + 0.8 * noise).long().clamp(16, 1024).tolist()
rows = [{"input_ids": [7] * length, "labels": [7] * length} for length in lengths]
pad = DataCollatorForSeq2Seq(tokenizer)


def collate(batch):
    found = pad(batch)
    with open(f"{folder}/steps.txt", "a") as file:
        print(found["input_ids"].shape[1], int(not found["attention_mask"].all()), file=file)
    return found


args = TrainingArguments(
    f"{folder}/out",
    per_device_train_batch_size=4,
    num_train_epochs=1,
    bf16=True,
    activation_checkpointing=method == "lora",
    activation_checkpointing_kwargs={"use_reentrant": False},
    train_sampling_strategy=sampling,
    report_to="none",
    save_strategy="no",
    seed=seed,
)
Trainer(model, args, train_dataset=rows, data_collator=collate).train()
