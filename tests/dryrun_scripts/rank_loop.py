"""A plain loop that wraps its model itself: DDP under torchrun, `fully_shard` or FSDP1 on the fake process
group.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

folder, fields = sys.argv[1], json.loads(sys.argv[2])
ddp, adapters, quantized = (
    fields["parallel"] == "ddp",
    fields["method"] != "full",
    fields["method"] == "qlora",
)
if ddp:
    dist.init_process_group("nccl")
else:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=fields["gpus"])
local = int(os.environ.get("LOCAL_RANK", 0))
torch.cuda.set_device(local)
options = {"device_map": {"": local}} if ddp or quantized else {}
if quantized:
    options["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=getattr(torch, fields.get("quant_storage", "uint8")),
    )
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
checkpointed = fields.get("checkpointing", "none") != "none"
if checkpointed:
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if adapters:
        model.enable_input_require_grads()
if quantized and fields.get("kbit_prepare", True):
    kwargs = {"use_reentrant": False}
    model = prepare_model_for_kbit_training(model, checkpointed, kwargs)
if adapters:
    lora = LoraConfig(r=fields.get("rank", 16), target_modules="all-linear", task_type="CAUSAL_LM")
    wide = fields.get("adapter_dtype", "float32") == "float32"
    model = get_peft_model(model, lora, autocast_adapter_dtype=wide)
model.train()
if ddp:
    view = fields.get("gradient_as_bucket_view", False)
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[local], gradient_as_bucket_view=view)
elif fields.get("fsdp_version") == 1:
    from functools import partial

    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import BackwardPrefetch, FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    layer = type((model.get_base_model() if adapters else model).model.layers[0])
    layers = partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
    prefetch = {"pre": BackwardPrefetch.BACKWARD_PRE, "post": BackwardPrefetch.BACKWARD_POST}
    strategies = {True: ShardingStrategy.FULL_SHARD, False: ShardingStrategy.SHARD_GRAD_OP}
    model = FullyShardedDataParallel(
        model,
        auto_wrap_policy=fsdp_auto_wrap_policy(model) if adapters else layers,
        device_id=local,
        use_orig_params=fields.get("use_orig_params", False),
        backward_prefetch=prefetch.get(fields.get("backward_prefetch", "pre")),
        sharding_strategy=strategies[fields.get("reshard_after_forward", True)],
    )
else:
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model() if adapters else model
    for block in base.model.layers:
        fully_shard(block, reshard_after_forward=fields.get("reshard_after_forward", True))
    fully_shard(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
shape = fields["micro_batch"], fields["sequence_length"]
ids = torch.randint(3, 500, shape, device="cuda")
micro_batches = fields.get("gradient_accumulation", 1)
for _ in range(4):
    optimizer.zero_grad()
    for _ in range(micro_batches):
        outputs = model(input_ids=ids, labels=ids, use_cache=False)
        (outputs.loss / micro_batches if micro_batches > 1 else outputs.loss).backward()
    optimizer.step()
