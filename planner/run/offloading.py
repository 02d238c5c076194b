"""Activation offloading: a hook on what autograd saves, as TRL's, axolotl's and torchtune's trainers put it
around a training step (`planner/tables/offloaders.py`).

On a GPU TRL's own class runs. On meta, where streams and addresses mean nothing, `Offloading` does what that
class does, allocation by allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.built import Watcher
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.offloaders import OFFLOADERS, SMALLEST, STASH, Offloader

Key = tuple[int, int, torch.dtype]  # of the storage, the place in it, and how it is read


def around_step(
    model: nn.Module, setup: Setup, device: torch.device, watcher: Watcher
) -> Callable[[], AbstractContextManager[Any]]:
    """What a micro-step's forward and backward run in. Raises UsageError where TRL is missing on a GPU."""
    if setup.activation_offload == "none":
        return nullcontext
    row = OFFLOADERS[setup.activation_offload]
    if device.type == "cuda":
        hook = _of_trl(model, row, setup.activation_offload)
    else:
        hook = Offloading(model, row, watcher)
        _spare_head(model)
    return lambda: hook


def _of_trl(model: nn.Module, row: Offloader, name: str) -> Any:
    """The library's own hook on a GPU."""
    if find_spec("trl") is None:
        raise UsageError(f"trl not installed: activation_offload '{name}' is its class: pip install trl")
    if not row.shares and row.streams:
        raise UsageError(f"activation_offload '{name}' cannot be measured: its class is not TRL's")
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    hook = get_act_offloading_ctx_manager(model, use_streams=row.streams, warn_if_no_head=False)
    if not row.spares_weights:
        hook.param_storages = set()
    return hook


def _spare_head(model: nn.Module) -> None:
    """The output projection's saved tensors stay (get_act_offloading_ctx_manager)."""
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Module):
        plain = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        head.register_forward_pre_hook(lambda *_: plain.__enter__())
        head.register_forward_hook(lambda *_: plain.__exit__(), always_call=True)


@dataclass(slots=True)
class _Sent:
    """What is on the host: `token` lives as long as its bytes there; where it lies once it is back."""

    token: Any
    shape: tuple[int, ...]  # of the copy
    dtype: torch.dtype
    view: tuple[Any, ...]  # size, stride and offset of the tensor in the copy


class Offloading(saved_tensors_hooks):
    """The hook of one row on meta tensors. A tensor is known by a number; `kept` has those that stay, `sent`
    those that went.
    """

    def __init__(self, model: nn.Module, row: Offloader, watcher: Watcher) -> None:
        super().__init__(self.pack, self.unpack)
        self.row, self.watcher = row, watcher
        self.weights = {_address(p) for p in model.parameters()} if row.spares_weights else set()
        self.number = 0
        self.kept: dict[int, torch.Tensor] = {}
        self.sent: dict[int, _Sent] = {}
        self.stash: dict[int, torch.Tensor] = {}  # under way to the host
        self.back: dict[int, torch.Tensor] = {}  # fetched, and held until the next node has run
        self.place: dict[Key, int] = {}
        self.key_of: dict[int, Key] = {}
        self.node: Any = None
        self.first_pass: int | None = (
            None  # the backward pass that fetched first: in one inside it, nothing goes
        )
        self.begun = False  # the backward pass, and with it its callback

    def __enter__(self) -> None:
        for table in (self.kept, self.sent, self.stash, self.back, self.place, self.key_of):
            table.clear()
        self.number, self.begun = 0, False
        if self.row.empties:
            self.watcher.empty_cache()
        super().__enter__()

    def __exit__(self, *raised: object) -> None:
        for table in (self.back, self.stash):
            table.clear()
        super().__exit__(*raised)

    # -- the forward -----------------------------------------------------------------------------------------

    def pack(self, tensor: torch.Tensor) -> int:
        """A saved tensor's number."""
        self.number += 1
        number = self.number
        if self.row.whole and tensor.is_meta and not isinstance(tensor, nn.Parameter) and not _plain(tensor):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        key = (self.watcher.number_of(tensor), tensor.storage_offset(), tensor.dtype)
        if self.row.shares and key in self.place:
            self.kept[number] = tensor
            self._track(key, number)
        elif self._stays(tensor):
            self.kept[number] = tensor
        else:
            self._send(number, tensor, key)
        return number

    def _stays(self, tensor: torch.Tensor) -> bool:
        return (
            not tensor.is_meta
            or tensor.numel() * tensor.element_size() < SMALLEST
            or isinstance(tensor, (nn.Parameter, nn.Buffer))
            or _address(tensor) in self.weights
        )

    def _send(self, number: int, tensor: torch.Tensor, key: Key) -> None:
        spread = 0 in tensor.stride()
        if not spread and not _plain(tensor):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        if self.row.streams:
            for old in [each for each in self.stash if each <= number - STASH]:
                self._let_go(old)
        nbytes = tensor.untyped_storage().nbytes() if spread else tensor.numel() * tensor.element_size()
        token = self.watcher.keep_on_host(torch.empty(1), nbytes)
        shape = (nbytes // tensor.element_size(),) if spread else tuple(tensor.shape)
        view = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        self.sent[number] = _Sent(token, shape, tensor.dtype, view)
        if self.row.streams:
            self.stash[number] = tensor
            if self.row.shares:
                self._track(key, number)

    def _track(self, key: Key, number: int) -> None:
        self.place[key], self.key_of[number] = number, key

    def _untrack(self, number: int) -> None:
        key = self.key_of.pop(number, None)
        if key is not None and self.place.get(key) == number:
            del self.place[key]

    def _let_go(self, number: int) -> None:
        """The copy is done: the GPU's tensor goes."""
        del self.stash[number]
        self._untrack(number)

    # -- the backward ----------------------------------------------------------------------------------------

    def unpack(self, number: int) -> torch.Tensor:
        """The tensor of that number, on the GPU again."""
        if self.row.streams and not self.begun:
            self.begun, self.first_pass = True, torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self.back.clear)
        sent = self.sent.pop(number, None)
        found = self.kept.pop(number) if sent is None else self._fetched(number, sent)
        self._untrack(number)
        return found

    def _fetched(self, number: int, sent: _Sent) -> torch.Tensor:
        if not self.row.streams:
            return self._made(sent)
        node, before = torch._C._current_autograd_node(), []
        if torch._C._current_graph_task_id() == self.first_pass and node != self.node:
            self.node, before = node, list(self.back)
        waits = number in self.stash
        if waits:
            found, count = self.stash[number], 0
        else:
            with self.watcher.side_stream():
                found = self._made(sent)
            self.back[number] = found
            count = _holders(found)

        def after(outputs: Any, inputs: Any) -> Any:
            if not waits and number in self.back and _holders(self.back[number]) > count:
                del self.back[number]  # someone holds a view: the stream is told, the stash lets go
            for old in list(self.stash):
                self._let_go(old)
            for old in before:
                self.back.pop(old, None)
            return outputs

        node.register_hook(after)
        return found

    def _made(self, sent: _Sent) -> torch.Tensor:
        made = torch.empty(sent.shape, dtype=sent.dtype, device="meta")
        return torch.as_strided(made, *sent.view)


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _holders(tensor: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _plain(tensor: torch.Tensor) -> bool:
    return bool(tensor.is_contiguous() and tensor.storage_offset() == 0)
