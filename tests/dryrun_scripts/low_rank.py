import sys

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

folder, optim, optim_args = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype="bfloat16")
rows = load_dataset("json", data_files=f"{folder}/text.jsonl", split="train")
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=["text"])
args = TrainingArguments(
    f"{folder}/out",
    per_device_train_batch_size=2,
    bf16=True,
    optim=optim,
    optim_args=optim_args or None,
    optim_target_modules="all-linear",
    report_to="none",
    save_strategy="no",
)
collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
Trainer(model, args, train_dataset=rows, data_collator=collator).train()
