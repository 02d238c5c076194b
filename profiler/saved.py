"""Which storages autograd saves for backward, seen by its own hooks while one step runs, recomputation under checkpointing included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def saved_tensors(note: Callable[[int], None]) -> Iterator[None]:
    """Call `note` with the address of every storage that is saved inside.

    The hooks hand back the tensor itself, so no lifetime changes. Hooks that others push meanwhile (checkpointing does) would hide ours:
    they are wrapped, and what they keep is noted too, where it is a tensor on the device.
    """
    module = torch._C._autograd
    push = module._push_saved_tensors_default_hooks

    def seen(kept: Any) -> None:
        if isinstance(kept, torch.Tensor):
            address = kept.untyped_storage().data_ptr()
            if address:
                note(address)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen(tensor)
        return tensor

    def wrapped(theirs: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
        def both(tensor: Any) -> Any:
            kept = theirs(tensor)
            seen(kept)
            return kept

        push(both, unpack)

    module._push_saved_tensors_default_hooks = wrapped
    push(pack, lambda tensor: tensor)
    try:
        yield
    finally:
        module._pop_saved_tensors_default_hooks()
        module._push_saved_tensors_default_hooks = push
