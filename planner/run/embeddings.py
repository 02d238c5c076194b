"""What sentence-transformers makes of a backbone: an embedding for each text of an example, and the in-batch
contrastive loss of them.

sentence-transformers 6.2 sentence_transformer/losses/multiple_negatives_ranking.py
compute_loss_from_embeddings,
cached_multiple_negatives_ranking.py calculate_loss, base/losses/gradcache.py forward_cached and
_backward_hook,
base/losses/merged_forward.py embed_columns, sentence_transformer/modules/pooling.py. The model is a
SentenceTransformer, of which accelerate has wrapped the forward: all that it returns is converted to
fp32, token
embeddings too. B examples, S tokens of a text, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from memplan.planner.run.built import Built
from memplan.planner.run.model import is_encoder

SCALE = 20.0
"""multiple_negatives_ranking.py scale; its value moves no memory."""
Features = dict[str, torch.Tensor]


def embed(built: Built) -> Any:
    """MultipleNegativesRankingLoss, or the cached one where the setup has a mini-batch."""
    columns = [
        {name.partition(":")[2]: tensor for name, tensor in built.batch.items() if name.startswith(f"{i}:")}
        for i in range(built.setup.texts or 0)
    ]
    if built.setup.mini_batch is not None:
        return {"loss": _cached(built, columns, built.setup.mini_batch)}
    first, *others = columns
    queries = _embedded(built, first)
    texts = _together(built, others) if len(others) > 1 else [_embedded(built, others[0])]
    places = torch.arange(len(queries), device=queries.device)
    return {"loss": _ranked(queries, texts[0], torch.cat(texts, dim=0), places).mean()}


def _together(built: Built, columns: list[Features]) -> list[torch.Tensor]:
    """Several columns of one length in one forward."""
    merged = {name: torch.cat([column[name] for column in columns], dim=0) for name in columns[0]}
    found = _embedded(built, merged)
    return list(found.reshape(len(columns), -1, *found.shape[1:]).unbind(0))


def _embedded(built: Built, features: Features) -> torch.Tensor:
    """(rows, H): the embedding of each row, in fp32 where accelerate converts. `features` keeps what modules
    write into it.
    """
    with built.autocast():
        inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
        hidden = built.base(**inputs, return_dict=True).last_hidden_state
        features["token_embeddings"] = hidden
        pool = mean if is_encoder(built.base.config) else last_token
        features["sentence_embedding"] = pool(hidden, features["attention_mask"])
    made = features
    if built.setup.outputs_fp32 and built.setup.autocast != "none":
        from accelerate.utils.operations import convert_to_fp32

        made = convert_to_fp32(features)
    return made["sentence_embedding"]


def last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last real token's state: what a model that was made for text generation is pooled by."""
    _, length, width = hidden.shape
    values, indices = mask.flip(1).max(1)
    indices = torch.where(values == 0, length - 1, indices)
    places = (length - indices - 1).unsqueeze(-1).unsqueeze(1).expand(-1, 1, width)
    real = mask.unsqueeze(-1).expand_as(hidden).to(hidden.dtype)
    return torch.gather(hidden * real, 1, places).squeeze(dim=1)


def mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of the real tokens' states, summed in fp32."""
    real = mask.unsqueeze(-1).to(hidden.dtype)
    total = (hidden * real).sum(dim=1, dtype=torch.float32)
    count = torch.clamp(real.sum(dim=1, dtype=torch.float32), min=1e-9)
    return (total / count).to(hidden.dtype)


def _ranked(
    queries: torch.Tensor, positives: torch.Tensor, texts: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """A loss for each of the queries at `places`: all texts are candidates, its own is right."""
    rows = torch.arange(len(places), device=queries.device)
    chosen, own = queries[places], positives[places]
    scores = _cosine(chosen, texts) * SCALE
    right = scores[rows, places]
    log_z = torch.logsumexp(torch.cat([scores], dim=1), dim=1)
    del own
    return -(right - log_z)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    left, right = (functional.normalize(each, p=2, dim=-1) for each in (a, b))
    return torch.mm(left, right.transpose(0, 1))


def _cached(built: Built, columns: list[Features], size: int) -> torch.Tensor:
    """The loss of embeddings that are made a mini-batch at a time, without a graph; its backward makes each
    again with one, and gives it the gradient of its embeddings.
    """
    parts = [
        [
            {name: tensor[start : start + size] for name, tensor in column.items()}
            for start in range(0, len(column["input_ids"]), size)
        ]
        for column in columns
    ]
    vectors: list[list[torch.Tensor]] = []
    for column in parts:
        with torch.no_grad():
            found = [_embedded(built, dict(part)) for part in column]
        vectors.append([each.detach().requires_grad_() for each in found])
    queries = torch.cat(vectors[0])
    texts = [torch.cat(each) for each in vectors[1:]]
    candidates, all_places = torch.cat(texts, dim=0), torch.arange(len(queries), device=queries.device)
    losses = []
    for start in range(0, len(queries), size):
        places = all_places[start : start + size]
        loss = _ranked(queries, texts[0], candidates, places).mean() * len(places) / len(queries)
        loss.backward()
        losses.append(loss.detach())
    total = torch.stack(losses).sum().detach().requires_grad_()
    gradients = [[each.grad for each in column] for column in vectors]
    total.register_hook(lambda outer: _again(built, parts, gradients, outer))
    return total


def _again(
    built: Built, parts: list[list[Features]], gradients: list[list[torch.Tensor]], outer: torch.Tensor
) -> None:
    """The gradient of every mini-batch of texts, of a number that has that of its embeddings."""
    with torch.enable_grad():
        for column, wanted in zip(parts, gradients, strict=True):
            for part, gradient in zip(column, wanted, strict=True):
                vectors = _embedded(built, dict(part))
                surrogate = torch.dot(vectors.flatten().float(), gradient.flatten().float()) * outer
                surrogate.backward()
