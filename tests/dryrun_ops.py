"""Integer and Boolean results of many ops on the stub device and on the CPU, as JSON in argv[1]."""

import json
import sys

import torch
import torch.nn.functional as F


def cases(device):
    """Name -> what to compute."""
    padded = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).to(device)
    labels = torch.tensor([[-100, 5, 7, -100], [3, -100, 9, 2]]).to(device)
    ids = torch.tensor([[4, 8, 2, 0], [7, 7, 1, 3]]).to(device)
    ones = torch.ones(2, 4, dtype=torch.long, device=device)
    packed = torch.tensor([[0, 1, 2, 0, 1, 0]]).to(device)
    index = torch.tensor([[2, 0], [1, 3]], device=device)

    def put():
        made = torch.zeros(2, 4, dtype=torch.long, device=device)
        made[1, 2] = 5
        made[0] = torch.tensor([1, 2, 3, 4], device=device)
        made[:, -1] += 7
        made[made > 3] = 0
        return made

    return {
        "all": lambda: (padded.all(), ones.all(), (padded == 1).all(dim=1), bool(ones.bool().all())),
        "any": lambda: ((padded == 0).any(), (ones == 0).any(-1), padded.any(dim=0)),
        "compare": lambda: (ids > 3, ids >= padded, ids.ne(7), ids.lt(2), torch.equal(ids, ids.clone())),
        "count": lambda: (
            labels.ne(-100).sum(),
            (labels != -100).sum(-1),
            padded.sum(dim=1, dtype=torch.int32),
        ),
        "extremes": lambda: (
            ids.max(),
            ids.min(),
            ids.max(dim=1),
            ids.amax(-1),
            ids.argmax(-1),
            ids.argmin(),
        ),
        "scan": lambda: (padded.cumsum(-1), (padded.long().cumsum(-1) - 1).masked_fill(padded == 0, 1)),
        "arithmetic": lambda: (ids + 1, ids - padded, ids * 3, ids // 2, ids % 3, -ids, ids.abs(), 10 - ids),
        "logic": lambda: (~(ids > 3), (ids > 3) & padded.bool(), (ids > 3) | (ids == 0), ids ^ 1, ids << 1),
        "where": lambda: (torch.where(padded == 1, labels, -100), torch.where(ids > 3, 1, 0)),
        "make": lambda: (
            torch.arange(6, device=device),
            torch.full((2,), 3, device=device),
            torch.eye(2, device=device),
        ),
        "ranges": lambda: (
            torch.arange(2, 9, 3, device=device),
            torch.zeros(2, dtype=torch.int, device=device),
        ),
        "shape": lambda: (
            ids.T.contiguous(),
            ids.repeat(1, 2),
            ids[:, ::2].clone(),
            ids.flip(1),
            ids.roll(1, 1),
        ),
        "join": lambda: (
            torch.cat([ids, labels], 1),
            torch.stack([ids, padded]),
            F.pad(ids, (1, 2), value=-1),
        ),
        "index": lambda: (
            ids[index[:, 0] % 2],
            ids.gather(1, index),
            ids.index_select(1, index[0]),
            ids[:, -1],
        ),
        "mask": lambda: (ids[padded == 1], labels[labels != -100], ids.masked_select(ids > 3)),
        "nonzero": lambda: (padded.nonzero(), torch.where(padded == 0), (padded == 0).nonzero(as_tuple=True)),
        "put": lambda: (put(), torch.zeros(2, 5, dtype=torch.long, device=device).scatter(1, index, 1)),
        "triangle": lambda: (torch.ones(3, 3, dtype=torch.bool, device=device).tril(), ids.triu()),
        "packed": lambda: (
            torch.diff(packed),
            (packed == 0).cumsum(-1),
            (packed[:, 1:] != packed[:, :-1] + 1).any(),
        ),
        "sort": lambda: (
            ids.sort(dim=-1),
            ids.argsort(dim=-1, stable=True),
            ids.flatten().unique(),
            ids.topk(2),
        ),
        "unique": lambda: (
            ids.unique(return_counts=True),
            packed.unique_consecutive(),
            torch.isin(ids, packed),
        ),
        "repeat": lambda: (
            torch.repeat_interleave(index[0], index[1]),
            ids.flatten().bincount(),
            F.one_hot(index),
        ),
        "numbers of counts": lambda: (
            labels.ne(-100).sum() / 2,
            labels.ne(-100).sum().float(),
            padded.sum(-1).to(torch.bfloat16),
            (ids > 3).sum(dtype=torch.float32),
            ids.float(),
        ),
        "casts": lambda: (
            ids.bool(),
            ids.int(),
            (ids > 2).long(),
            ids.to(torch.uint8),
            padded.bool().to("cpu"),
        ),
        "search": lambda: (
            torch.searchsorted(packed[0].sort().values, index),
            torch.bucketize(ids, index[0].sort().values),
        ),
        "host": lambda: (
            ids.tolist(),
            ids.sum().item(),
            int(labels.max()),
            len(ids[ids > 100]),
            ids.cpu() + 1,
        ),
        "clamp": lambda: (
            ids.clamp(1, 4),
            ids.clamp_min(2),
            torch.minimum(ids, padded),
            ids.prod(),
            ids.sign(),
        ),
        "broadcast": lambda: (
            padded[:, None, :] * padded[:, :, None],
            (packed == packed.T),
            ids.expand(3, 2, 4).sum(0),
        ),
    }


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def results(device):
    found = {}
    for name, make in cases(device).items():
        try:
            found[name] = plain(make())
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


with open(sys.argv[1], "w") as file:
    json.dump({device: results(device) for device in ("cpu", "cuda")}, file)
model = torch.nn.Linear(2, 2).cuda()  # a step, so that the dry run has a training to see
optimizer = torch.optim.SGD(model.parameters())
model(torch.zeros(1, 2, device="cuda")).sum().backward()
optimizer.step()
