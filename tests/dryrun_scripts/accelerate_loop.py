import json
import sys

import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(f"{folder}/model"), dtype=torch.float32)
with open(f"{folder}/text.jsonl") as file:
    texts = [json.loads(line)["text"] for line in file]


def collate(batch):
    found = tokenizer(batch, padding=True, return_tensors="pt")
    found["labels"] = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return found


loader = torch.utils.data.DataLoader(texts, batch_size=4, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
