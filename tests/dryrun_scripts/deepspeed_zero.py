import os
import sys

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

stage, config = int(sys.argv[1]), AutoConfig.from_pretrained(sys.argv[2])
for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": stage},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
}
engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
ids = torch.randint(3, config.vocab_size, (1, 64)).cuda()
for _ in range(5):
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    engine.step()
