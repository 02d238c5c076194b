import sys

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

how, config, world = sys.argv[1], AutoConfig.from_pretrained(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
torch.cuda.set_device(0)
if how in ("fsdp2", "tp"):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
else:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
layer = type(model.model.layers[0])
if how == "ddp":
    model = torch.nn.parallel.DistributedDataParallel(model.cuda(), device_ids=[0])
elif how == "fsdp1":
    from functools import partial

    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    wrap = partial(transformer_auto_wrap_policy, transformer_layer_cls={layer})
    model = FullyShardedDataParallel(model, auto_wrap_policy=wrap, device_id=0, use_orig_params=True)
elif how == "fsdp2":
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cuda")
elif how == "tp":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cuda", (world,))
    plan = {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")} | {
        "mlp.down_proj": RowwiseParallel()
    }
    for block in model.model.layers:
        parallelize_module(block, mesh, plan)
    model.to_empty(device="cuda")
if how == "zero1":
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = model.cuda()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-4)
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=how != "tp")
ids = torch.randint(3, config.vocab_size, (1, 64)).cuda()
for _ in range(3):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
