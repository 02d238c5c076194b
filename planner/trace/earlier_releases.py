"""What earlier releases of a library did in a step, put back while a run that used them is traced.

A prediction is of the installed libraries. A run that others published used older ones; where what they did
otherwise is known from their source, tracing with it put back says how far the trace is from that run, and
the difference of the two traces how many bytes the change of the library moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch


def _shifted_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    **kwargs: Any,
) -> torch.Tensor:
    """The loss of (B, S, V) logits as transformers 4.48 took it: the shifted logits are a contiguous fp32
    copy, (B, S-1, V), beside the whole ones in fp32, which the name keeps until the loss is there (4.48.1
    loss/loss_utils.py ForCausalLMLoss; 4.49.0 shifts the labels alone).
    """
    from transformers.loss.loss_utils import fixed_cross_entropy

    kwargs.pop("shift_labels", None)
    logits = logits.float()
    shifted = logits[..., :-1, :].contiguous()
    wanted = labels[..., 1:].contiguous()
    return fixed_cross_entropy(
        shifted.view(-1, vocab_size), wanted.view(-1), num_items_in_batch, ignore_index, **kwargs
    )


def shifted_logits() -> AbstractContextManager[Any]:
    """The loss of transformers 4.48: `_shifted_loss`."""
    return patch.dict("transformers.loss.loss_utils.LOSS_MAPPING", {"ForCausalLM": _shifted_loss})


def expanded_keys() -> AbstractContextManager[Any]:
    """Keys and values expanded to every query head before the attention call, as transformers did before it
    handed grouped heads to torch (5.24 integrations/sdpa_attention.py use_gqa_in_sdpa).
    """
    return patch("transformers.integrations.sdpa_attention.use_gqa_in_sdpa", lambda *args, **kwargs: False)


EARLIER: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "shifted_logits": shifted_logits,
    "expanded_keys": expanded_keys,
}
"""What can be put back, by the name of the difference (validate/library_differences.py)."""


@contextmanager
def put_back(names: Iterable[str]) -> Iterator[None]:
    """The named differences put back for as long as this lasts; KeyError for one that cannot be."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(EARLIER[name]())
        yield
