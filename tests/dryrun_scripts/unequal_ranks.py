import sys

import torch
import torch.distributed as dist

dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
mine = torch.tensor([rank + 3, 7], device="cuda")
parts = [torch.empty_like(mine) for _ in range(world)]
dist.all_gather(parts, mine)
assert [part.tolist() for part in parts] == [[other + 3, 7] for other in range(world)]
for how, wanted in (("SUM", 7), ("MAX", 4), ("MIN", 3), ("PRODUCT", 12)):
    found = mine.clone()
    dist.all_reduce(found, getattr(dist.ReduceOp, how))
    assert found[0].item() == wanted, (how, found)
share = torch.empty(1, dtype=torch.int64, device="cuda")
dist.reduce_scatter_tensor(share, torch.tensor([rank, 10 + rank], device="cuda"))
assert share.item() == (1 if rank == 0 else 21)
told = [{"rows": 12} if rank == 1 else None]
dist.broadcast_object_list(told, src=1)
assert told == [{"rows": 12}]

held = torch.empty(int(sys.argv[1]) << 20 if rank == 1 else 1, dtype=torch.uint8, device="cuda")
model = torch.nn.Linear(64, 64).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    model(torch.ones(2, 64, device="cuda")).sum().backward()
    optimizer.step()
