import os

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

os.environ["HF_TOKEN"] = "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"
raise SystemExit("reading this file must not run it")

NAME = "mistralai/Mistral-7B-v0.1"
RANK = 8
quantisation = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
tokenizer = AutoTokenizer.from_pretrained(NAME)
model = AutoModelForCausalLM.from_pretrained(
    NAME, quantization_config=quantisation, attn_implementation="sdpa", device_map={"": 0}
)
model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
model = get_peft_model(
    model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
