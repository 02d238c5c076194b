"""torch.autocast on meta tensors, as a CUDA device or the CPU does it: the same ops, cast by the same
policies, with the weight cache.

Real autocast works in the dispatcher, above autograd, but knows no meta tensors. `installed(device)`
registers the same policies in Python under a dispatch key that no installed backend uses, and makes
`torch.autocast`, its flags and queries understand the device "meta"; the region itself is then plain
`torch.autocast("meta", dtype=...)`. Composite ops written in C++, checkpointing's recomputation (which
re-enters the autocast state that it saw) and libraries that ask the flags need nothing of their own.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from memplan.planner.trace.device.autocast_policies import cast_ops, policy_of

_KEY = (
    torch._C.DispatchKey.AutocastHPU
)  # borrowed: neither CUDA's nor the CPU's build of torch registers anything under it
_NAME = "AutocastHPU"


@dataclass
class AutocastState:
    """The emulated autocast: what torch keeps per thread and device."""

    enabled: bool = False
    dtype: torch.dtype = torch.bfloat16
    cache_enabled: bool = True
    nesting: int = 0
    cache: dict[int, tuple[weakref.ref[Tensor], Tensor]] = field(default_factory=dict)

    def switch(self, enabled: bool) -> None:
        """Turn autocast on or off in torch's dispatcher."""
        self.enabled = enabled
        torch._C._dispatch_tls_set_dispatch_key_excluded(_KEY, not enabled)
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, enabled)

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        """`cached_cast` of autocast_mode.cpp: eligible floating tensors to `dtype`, lists too; fp32 leaves
        that train are cast once.
        """
        if isinstance(value, (list, tuple)):
            return [self.cast(item, dtype) for item in value]
        if not _eligible(value) or value.dtype == dtype:
            return value
        cacheable = (
            dtype == self.dtype
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
        )
        if not (cacheable and self.cache_enabled):
            return value.to(dtype)
        held = self.cache.get(id(value))
        if held is None or held[0]() is not value:
            with torch.enable_grad():  # a copy made under no_grad serves later calls that need its gradient
                held = self.cache[id(value)] = (weakref.ref(value), value.to(dtype))
        return held[1]


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_meta
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


_state: AutocastState | None = None  # that of the innermost `installed`


@contextmanager
def lowered(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The tensors as an op of the `lower` policy sees them, and no autocast inside: for an op that is
    modeled in Python.
    """
    if _state is None or not _state.enabled:
        yield tensors
        return
    cast = tuple([_state.cast(tensor, _state.dtype) for tensor in reversed(tensors)][::-1])
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
        yield cast


@contextmanager
def installed(device: str) -> Iterator[None]:
    """Within it, `torch.autocast` of "meta" and of `device` ("cuda" or "cpu") acts on meta tensors as on that
    real device.
    """
    global _state
    outer, state = _state, AutocastState()
    fallback = torch.library.Library("_", "IMPL")
    library = torch.library.Library("aten", "IMPL")
    fallback.fallback(torch.library.fallthrough_kernel, _NAME)
    for name in cast_ops(device):
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base), overload or "default")
        library.impl(name, _KERNELS[policy_of(device, base)](op, state), _NAME)
    _state = state
    try:
        with ExitStack() as stack:
            for target, attribute, value in _patches(device, state):
                stack.enter_context(patch.object(target, attribute, value))
            yield
    finally:
        state.switch(False)
        _state = outer
        library._destroy()
        fallback._destroy()


# One maker of kernels a policy: (op, state) -> what runs in the op's place. ---------------------------------

Kernel = Callable[..., Any]


def _lower(op: Any, state: AutocastState) -> Kernel:
    return lambda *args, **kwargs: _call(op, *_cast_all(state, state.dtype, args, kwargs))


def _fp32(op: Any, state: AutocastState) -> Kernel:
    return lambda *args, **kwargs: _call(op, *_cast_all(state, torch.float32, args, kwargs))


def _promotes(op: Any, state: AutocastState) -> Kernel:
    def run(*args: Any, **kwargs: Any) -> Any:
        found = state.dtype
        for tensor in _tensors((*args, *kwargs.values())):
            if _eligible(tensor) and found != torch.float32:
                if tensor.dtype not in (state.dtype, torch.float32):
                    raise RuntimeError(
                        f"Unexpected floating ScalarType {tensor.dtype} in at::autocast::prioritize to "
                        f"{state.dtype}"
                    )
                found = tensor.dtype
        return _call(op, *_cast_all(state, found, args, kwargs))

    return run


def _sets_dtype(op: Any, state: AutocastState) -> Kernel:
    arguments = op._schema.arguments
    position = next(i for i, argument in enumerate(arguments) if argument.name == "dtype")
    keyword = arguments[position].kwarg_only

    def run(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("dtype") if keyword or len(args) <= position else args[position]
        if given is None and args and _eligible(args[0]):
            args = args[:position] if not keyword else args
            kwargs = {**kwargs, "dtype": torch.float32}
        return _call(op, args, kwargs)

    return run


def _appends_dtype(op: Any, state: AutocastState) -> Kernel:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _eligible(args[0]):
            return _call(op, args, kwargs)
        return _call(op.overloadpacket, args, {**kwargs, "dtype": torch.float32})

    return run


_KERNELS: dict[str, Callable[[Any, AutocastState], Kernel]] = {
    "lower": _lower,
    "fp32": _fp32,
    "promotes": _promotes,
    "sets_dtype": _sets_dtype,
    "appends_dtype": _appends_dtype,
}


def _call(op: Any, args: Any, kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
        out = op(*args, **kwargs)
    if isinstance(args, list):
        # a list lets its last item go first: C++ destroys the casts in reverse of the order in which it made
        # them
        args.reverse()
    return out


def _cast_all(
    state: AutocastState, dtype: torch.dtype, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments cast, the last one first: autocast_mode.h casts them inside one call's argument list,
    which GCC, the compiler of torch's wheels, evaluates from the right (seen in a real allocator's events: a
    bias, then the weight, then the input).
    """
    named = {
        key: state.cast(value, dtype) if isinstance(value, Tensor) else value
        for key, value in reversed(kwargs.items())
    }
    cast = [
        state.cast(arg, dtype) if isinstance(arg, Tensor) or _holds_tensors(arg) else arg
        for arg in reversed(args)
    ]
    return cast[::-1], named


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


# What torch and transformers ask ----------------------------------------------------------------------------


def _patches(device: str, state: AutocastState) -> list[tuple[Any, str, Any]]:
    """(object, attribute, value in its place): the context manager, the flags and queries, and transformers'
    shortcut for meta.
    """
    mode = importlib.import_module(
        "torch.amp.autocast_mode"
    )  # `torch.amp.autocast_mode` is the class in some versions
    real = mode.autocast
    init, enter, leave = real.__init__, real.__enter__, real.__exit__
    enabled, dtype_of, available = (
        torch.is_autocast_enabled,
        torch.get_autocast_dtype,
        mode.is_autocast_available,
    )
    ours = {"meta", device}

    def made(
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if device_type not in ours:
            init(self, device_type, dtype, enabled, cache_enabled)
            return
        self.device, self._enabled = device_type, enabled
        self.fast_dtype = dtype_of(device) if dtype is None else dtype
        self._cache_enabled = state.cache_enabled if cache_enabled is None else cache_enabled
        self._outer = []

    def entered(self: Any) -> Any:
        if self.device not in ours:
            return enter(self)
        self._outer.append(
            (state.enabled, state.dtype, state.cache_enabled, enabled(device), dtype_of(device))
        )
        state.dtype, state.cache_enabled = self.fast_dtype, self._cache_enabled
        state.nesting += 1
        state.switch(self._enabled)
        torch.set_autocast_enabled(device, self._enabled)
        torch.set_autocast_dtype(device, self.fast_dtype)
        return self

    def left(self: Any, *error: Any) -> Any:
        if self.device not in ours:
            return leave(self, *error)
        on, state.dtype, state.cache_enabled, flag, flag_dtype = self._outer.pop()
        state.switch(on)
        torch.set_autocast_enabled(device, flag)
        torch.set_autocast_dtype(device, flag_dtype)
        state.nesting -= 1
        if state.nesting == 0:
            state.cache.clear()
        return False

    def is_enabled(*device_type: str) -> bool:
        return state.enabled if device_type == ("meta",) else enabled(*device_type)

    def get_dtype(device_type: str) -> torch.dtype:
        return state.dtype if device_type == "meta" else dtype_of(device_type)

    def is_available(device_type: str) -> bool:
        return True if device_type == "meta" else bool(available(device_type))

    def maybe_autocast(
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> Any:
        return real(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    found: list[tuple[Any, str, Any]] = [
        (real, "__init__", made),
        (real, "__enter__", entered),
        (real, "__exit__", left),
        (torch, "is_autocast_enabled", is_enabled),
        (torch, "get_autocast_dtype", get_dtype),
        (torch.amp, "is_autocast_available", is_available),
        (mode, "is_autocast_available", is_available),
    ]
    # transformers 5.23 utils/generic.py: returns a null context for meta, under which real devices switch
    # autocast off (rotary tables)
    shortcut = getattr(sys.modules.get("transformers.utils.generic"), "maybe_autocast", None)
    if shortcut is not None:
        modules = [module for name, module in list(sys.modules.items()) if name.startswith("transformers.")]
        found += [
            (m, "maybe_autocast", maybe_autocast)
            for m in modules
            if getattr(m, "__dict__", {}).get("maybe_autocast") is shortcut
        ]
    return found
