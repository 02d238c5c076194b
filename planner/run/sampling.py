"""Completions sampled from a model by transformers' own generate: the first token of each row and the last
one, the cache's own concatenation between them.

That the first and the last decide: what a further token makes differs from the one before in one size, the
tokens that the cache has, and no tensor shrinks as that grows. So no token between needs more than the last
one, and the first, which reads the prompts whole, is run as it is. Where the cache grows in fewer steps than
there are tokens (GROWTH_STEPS), blocks that it leaves behind are fewer: reserved bytes are less than,
allocated bytes equal to, a run of every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from memplan.planner.inputs.tasks import growth
from memplan.planner.run.built import Built


class Sampled(NamedTuple):
    """The cache of keys and values as generate leaves it, and the scores (N, V) of each token where they are
    kept (`output_scores`).
    """

    cache: Any
    scores: list[torch.Tensor]


def sample(
    built: Built,
    announce: Callable[[], AbstractContextManager[None]],
    model: Any,
    prompts: torch.Tensor,
    mask: torch.Tensor,
    completion: int,
    chosen: Mapping[str, Any],
    shown: Mapping[str, torch.Tensor] | None = None,
) -> Sampled:
    """`completion` tokens of each of the rows of `prompts` (N, P), as `chosen` (fields of a
    GenerationConfig) has it, in moments that `announce` opens. `shown`: the prompts' pictures.
    """
    drawn: dict[str, torch.Tensor] = {}
    with announce(), built.kernels(), _drawing(drawn):
        name, cache, scores = _one_token(model, prompts, mask, chosen, drawn, **(shown or {}))
        if completion < 2:
            return Sampled(cache, scores)
        for more in growth(completion - 2):
            scores += [scores[0].new_empty(scores[0].shape) for _ in range(more if scores else 0)]
            grow(cache, more)
        built.held = cache
    with announce(), built.kernels(), _drawing(drawn):
        built.held = None
        sampled = prompts.new_zeros((len(prompts), completion - 1))
        ids = torch.cat([prompts, sampled], dim=1)
        both = torch.ones_like(ids, dtype=mask.dtype)
        del sampled
        _, cache, last = _one_token(model, ids, both, chosen, drawn, **{name: cache})
        drawn.clear()
    return Sampled(cache, scores + last)


@contextmanager
def _drawing(drawn: dict[str, torch.Tensor]) -> Iterator[None]:
    """The probabilities that a token is drawn from stay until those of the next token are there, as the
    variable of generate's loop keeps them; so do the logits (`_one_token`).
    """
    draw = torch.multinomial

    def drawing(probabilities: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        drawn["probabilities"] = probabilities
        return draw(probabilities, *args, **options)

    with patch.object(torch, "multinomial", drawing):
        yield


def _one_token(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    chosen: Mapping[str, Any],
    drawn: dict[str, torch.Tensor],
    **given: Any,
) -> tuple[str, Any, list[torch.Tensor]]:
    """One token of each row, sampled by transformers' generate: the name that it has for its cache, the
    cache, and the token's scores where they are kept. `drawn` keeps what generate's loop would.
    """
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class Kept(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            drawn["logits"] = scores
            return scores

    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=1,
            do_sample=True,
            disable_compile=True,
            use_cache=True,
            return_dict_in_generate=True,
            **chosen,
        ),
        logits_processor=LogitsProcessorList([Kept()]),
        **given,
    )
    name = "cache" if "cache" in made else "past_key_values"  # its name until transformers 5.2x
    return name, made[name], list(made.scores or ())


def grow(cache: Any, more: int) -> None:
    """Keys and values of so many tokens more, in each of the cache's layers that hold those of every one."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is None:
            continue
        keys, values = layer.keys, layer.values
        layer.update(*(each.new_empty((*each.shape[:-2], more, each.shape[-1])) for each in (keys, values)))
        del keys, values
