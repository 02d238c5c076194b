import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

folder, adapter, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", device_map={"": 0})
if count:
    model = PeftModel.from_pretrained(model, adapter, adapter_name="task_0")
    for number in range(1, count):
        model.load_adapter(adapter, adapter_name=f"task_{number}")
model.eval()
ids = torch.randint(0, 100, (2, 512), device="cuda")
with torch.no_grad():
    for number in range(max(2, count)):
        if count:
            model.set_adapter(f"task_{number % count}")
        answer = model(input_ids=ids, logits_to_keep=1)
        del answer
