import json
import sys

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, accelerated = sys.argv[1], sys.argv[2:] == ["accelerate"]
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
with open(f"{folder}/text.jsonl") as file:
    texts = [json.loads(line)["text"] for line in file]


def collate(batch):
    found = tokenizer(batch, padding=True, return_tensors="pt")
    found["labels"] = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return found


loader = torch.utils.data.DataLoader(texts, batch_size=2, collate_fn=collate)
if accelerated:
    accelerator = Accelerator(mixed_precision="bf16")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
else:
    model = model.cuda()
for batch in loader:
    loss = model(**batch.to("cuda")).loss
    accelerator.backward(loss) if accelerated else loss.backward()
    optimizer.step()
    optimizer.zero_grad()
