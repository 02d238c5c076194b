"""Constants keep their values: what a program computes from them alone is computed on the host as well, so
that shapes which depend on it are known (which labels count, where a mask is set). For adapters and models
that need it; meta tensors have no values of their own.

Each meta storage whose content is known has a twin in host memory. An op whose tensors are all known runs on
the twins too; one that writes anything else into a known storage ends that knowledge.

Which pixels of a picture are exactly 0, as those of padding are, is known too: none of a batch's.
Which experts a router chooses is known too, once it is asked for: every one equally often.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten
_FACTORIES = {
    _ATEN.zeros.default,
    _ATEN.ones.default,
    _ATEN.full.default,
    _ATEN.arange.default,
    _ATEN.arange.start,
    _ATEN.arange.start_step,
    _ATEN.scalar_tensor.default,
    _ATEN.lift_fresh.default,
}
_TOKENS = {_ATEN.randint.default, _ATEN.randint.low}  # a batch: any token will do
_MOST = {
    True: 1 << 23,  # Gemma 4's pooling windows: patches x tokens of each picture
    False: 1 << 27,
}  # elements of a constant whose value is kept, by whether they are floating

Answer = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class Values(dict[Any, Answer]):
    """Answers to ops (planner/trace/observe.py), and before them the values that are known."""

    def __init__(self, answers: Mapping[Any, Answer], routed: bool = False, pictures: bool = False) -> None:
        super().__init__(answers)
        self._routed, self._pictures = routed, pictures
        self._twins: dict[int, Any] = {}  # address of a meta storage -> the storage with its content

    def get(self, func: Any, default: Any = None) -> Any:
        """What answers an op: values where they are known, the op's own rule otherwise."""
        plain = super().get(func)

        def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = self._known(func, args, kwargs)
            return plain(func, args, kwargs) if out is NotImplemented and plain is not None else out

        return answer

    def keep(self, meta: Tensor, value: Tensor) -> Tensor:
        """`meta` has the content of `value`, which nobody else may change."""
        storage = meta.untyped_storage()
        self._twins[storage._cdata] = value.untyped_storage()
        weakref.finalize(storage, self._twins.pop, storage._cdata, None)
        return meta

    def keep_data(self, meta: Tensor, data: Any, *rest: Any) -> None:
        """`meta` was made of numbers, or of single-element tensors among which none is unknown."""
        parts = list(_tensors(data))
        if all(self.value(part) is not None for part in parts):
            numbers = tree_map_only(Tensor, lambda part: self.value(part).tolist(), data)  # type: ignore[union-attr]
            self.keep(meta, torch.as_tensor(numbers, dtype=meta.dtype).clone())

    def value(self, tensor: Tensor) -> Tensor | None:
        """The content of a tensor on the host; None where it is not known."""
        if not tensor.is_meta:
            return tensor
        held = self._twins.get(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else None
        if held is None:
            return None
        return torch.empty(0, dtype=tensor.dtype).set_(
            held, tensor.storage_offset(), tensor.shape, tensor.stride()
        )

    def _known(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = list(_tensors((args, kwargs)))
        if func in _TOKENS:
            func = _ATEN.zeros.default
            args, kwargs = (args[-1],), {**kwargs, "dtype": kwargs.get("dtype") or torch.int64}
        if getattr(func, "is_view", False) or torch.Tag.nondeterministic_seeded in func.tags:
            return NotImplemented
        placed = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
        if not any(t.is_meta for t in given) and not (placed and (given or func in _FACTORIES)):
            return NotImplemented
        written = list(_written(func, args))
        if all(self._small(t) for t in given):
            return self._computed(func, args, kwargs, placed)
        for tensor in written:
            if tensor.layout == torch.strided:
                self._twins.pop(tensor.untyped_storage()._cdata, None)
        if func is _ATEN.topk.default and self._routed and args[0].is_meta:
            return self._balanced(func, args, kwargs)
        if func is _ATEN.eq.Scalar and self._pictures and args[0].is_meta and args[0].is_floating_point():
            made = func(*args, **kwargs)
            return self.keep(made, torch.zeros(made.shape, dtype=made.dtype))
        return self._selected(func, args)

    def _balanced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The largest k of E unknown numbers a row: the E places in turn, so that all are chosen equally
        often.
        """
        made = func(*args, **kwargs)
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        chosen = made[1].movedim(dim, -1)
        places = torch.arange(chosen.numel()) % args[0].shape[dim]
        self.keep(made[1], places.view(chosen.shape).movedim(-1, dim).contiguous())
        return made

    def _small(self, tensor: Tensor) -> bool:
        return tensor.numel() <= _MOST[tensor.is_floating_point()] and self.value(tensor) is not None

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], placed: bool) -> Any:
        on_host = {**kwargs, "device": "cpu"} if placed else kwargs
        with torch.no_grad():
            made = func(
                *tree_map_only(Tensor, self.value, args), **tree_map_only(Tensor, self.value, on_host)
            )
        if next(_written(func, args), None) is not None:
            return args[0] if func._schema.returns else None
        if any(t.layout != torch.strided for t in _tensors(made)):
            return NotImplemented
        if kwargs.get("device") is not None and not placed:
            return made  # copied to the host

        shared = {
            self._twins[t.untyped_storage()._cdata]._cdata for t in _tensors((args, kwargs)) if t.is_meta
        }

        def on_meta(value: Tensor) -> Tensor:
            value = value.clone() if value.untyped_storage()._cdata in shared else value
            return self.keep(
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta"), value
            )

        return tree_map_only(Tensor, on_meta, made)

    def _selected(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Elements of an unknown tensor at the places where a known mask is set."""
        if func is not _ATEN.index.Tensor:
            return NotImplemented
        places: list[Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            mask = self.value(index)
            if mask is None:
                return NotImplemented
            places += [
                torch.empty(column.shape, dtype=torch.int64, device="meta")
                for column in mask.nonzero().unbind(1)
            ]
        return func(args[0], places)


def _written(func: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
