import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

folder, how, method = sys.argv[1:4]
config = AutoConfig.from_pretrained(f"{folder}/model")
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
layer = type(model.model.layers[0]).__name__
if method == "lora":
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
ids = torch.arange(128)
rows = [{"input_ids": ids + n, "labels": ids, "attention_mask": torch.ones_like(ids)} for n in range(64)]
wrapped = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "transformer_layer_cls_to_wrap": [layer]}
fsdp = {"fsdp": True, "fsdp_config": wrapped}
args = TrainingArguments(
    f"{folder}/out",
    per_device_train_batch_size=2,
    max_steps=2,
    bf16=True,
    report_to="none",
    save_strategy="no",
    **(fsdp if how == "fsdp" else {}),
)


trainer = Trainer(model, args, train_dataset=rows)
trainer.train()
held = torch.cuda.memory_allocated()
torch.cuda.reset_peak_memory_stats()
trainer.save_model()
state = trainer.accelerator.get_state_dict(trainer.model)
host = {each.untyped_storage().data_ptr(): each.nbytes for each in state.values()}
with open(f"{folder}/saved.{trainer.args.process_index}", "w") as file:
    file.write(f"{held} {torch.cuda.max_memory_allocated() - held} {sum(host.values())}")
