"""What is held, and by whom: the tensors of a model and of its optimizer by name, and what autograd saves for
backward.

Facts about the libraries' objects, for whoever attributes memory: the trace to its storages, the profiler to
the allocator's addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Named = Iterator[tuple[str, torch.Tensor]]
STEPPED = ("optimizer_step", "update_and_allocate")
"""The moments after which the optimizer holds its states."""


def weights(model: Any) -> Named:
    """Parameters, buffers, and what a bitsandbytes weight keeps beside itself."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        for key, tensor in quantization_constants(module):
            yield f"{name}.{key}", tensor


def reference(built: Any) -> Named:
    """The tensors of the models beside the trained one; none where there is none."""
    beside = {"reference model": built.reference, **built.companions}
    for what, model in beside.items():
        if model is not None:
            label = what.replace("_", " ")
            yield from ((f"{label}: {name}", tensor) for name, tensor in weights(model))


def batches(built: Any) -> Named:
    """The micro-batch that runs, and those that wait for it."""
    yield from tensors(built.batch, "batch")
    yield from tensors(built.waiting, "waiting batch")
    yield from tensors(built.rollout, "sampled batch")
    yield from tensors(built.colocated, "vLLM beside the trainer: its configured share")


def cache(built: Any) -> Named:
    """Keys and values of the tokens that a generation has read and sampled, where it keeps them."""
    for number, layer in enumerate(getattr(built.held, "layers", ())):
        for key in ("keys", "values"):
            yield from tensors(getattr(layer, key, None), f"KV cache.{number}.{key}")


def quantization_constants(module: Any) -> Named:
    """Block maxima, code tables, and those of the second quantization (bitsandbytes 0.50 functional.py
    QuantState, nn/modules.py).
    """
    weight = module._parameters.get("weight")
    # the parametrization of a quantized parameter has the state itself (bitsandbytes 0.50 nn/parametrize.py)
    state = getattr(module if weight is None else weight, "quant_state", None)
    for level, prefix in ((state, ""), (getattr(state, "state2", None), "nested_")):
        for key in ("absmax", "code", "offset"):
            yield from tensors(getattr(level, key, None), f"weight.{prefix}{key}")
    for holder in (weight, getattr(module, "state", None)):
        for key in ("SCB", "CB"):
            yield from tensors(getattr(holder, key, None), f"weight.{key}")


def gradients(parameters: Any, names: dict[int, str]) -> Named:
    """The gradients that parameters hold now; `names` by id of a parameter."""
    return ((f"{names[id(p)]}.grad", p.grad) for p in parameters if p.grad is not None)


def optimizer_states(built: Any, names: dict[int, str]) -> Named:
    """The optimizer's tensors by parameter, and AdaLoRA's importance buffers."""
    for parameter, state in built.optimizer.state.items():
        yield from tensors(state, names.get(id(parameter), ""))
    yield from tensors(importance_buffers(built.model))


def importance_buffers(model: Any) -> dict[str, Any]:
    """AdaLoRA's moving averages, by parameter (peft 0.21 tuners/adalora/layer.py RankAllocator); empty for
    other methods.
    """
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    return {
        key: getattr(allocator, key)
        for key in ("ipt", "exp_avg_ipt", "exp_avg_unc")
        if hasattr(allocator, key)
    }


def tensors(value: Any, path: str = "") -> Named:
    """Every tensor in nested dictionaries and lists, with its path, and the parts of one that wraps others;
    none in anything else.
    """
    if isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value):
        for part in value.__tensor_flatten__()[0]:
            yield from tensors(getattr(value, part), f"{path}.{part}" if path else part)
    elif isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{path}.{key}" if path else str(key))
    elif hasattr(value, "ortho_matrix"):  # a projector of galore_torch or apollo_torch
        yield from tensors(value.ortho_matrix, f"{path}.ortho_matrix")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from tensors(inner, f"{path}.{index}")


@contextmanager
def saved_for_backward(note: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `note` with every tensor that autograd saves inside, recomputation under checkpointing included.

    The hooks hand back the tensor itself, so no lifetime changes. Hooks that others push meanwhile
    (checkpointing does) would hide ours: they are wrapped, and what they keep is noted too, where it is a
    tensor. Of a sparse tensor its parts are noted. Noted too is what custom functions' contexts keep.
    """
    module = torch._C._autograd
    push = module._push_saved_tensors_default_hooks

    def seen(kept: Any) -> None:
        if isinstance(kept, torch.Tensor):
            for part in (kept._indices(), kept._values()) if kept.layout == torch.sparse_coo else (kept,):
                note(part)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen(tensor)
        return tensor.detach()  # an output that its own node holds with its history would never be freed

    def wrapped(theirs: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
        def both(tensor: Any) -> Any:
            try:
                kept = theirs(tensor)
            except Exception:  # a recomputation keeps its last tensor, and stops there
                seen(tensor)
                raise
            seen(kept)
            return kept

        push(both, unpack)

    module._push_saved_tensors_default_hooks = wrapped  # type: ignore[assignment]
    push(pack, lambda tensor: tensor)
    try:
        with kept_by_contexts(seen):
            yield
    finally:
        module._pop_saved_tensors_default_hooks()
        module._push_saved_tensors_default_hooks = push


@contextmanager
def kept_by_contexts(note: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call `note` with every tensor that the context of a custom function keeps as an attribute, when
    the function returns: no hook sees those (bitsandbytes 0.50 autograd/_functions.py MatMul8bitLt keeps its
    input so). torch's own functions save by the hooks' way; a checkpoint's keeps random number states beside.
    """
    function = torch.autograd.Function
    own = function.__dict__["apply"]  # a classmethod up to torch 2.13, a built-in one from 2.14 on

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = own.__get__(None, cls)(*args, **kwargs)
        if cls.__module__.startswith("torch."):
            return made
        for output in made if isinstance(made, tuple) else (made,):
            node = getattr(output, "grad_fn", None)
            for _, kept in tensors(getattr(node, "__dict__", None)):
                note(kept)
        return made

    function.apply = classmethod(applied)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        function.apply = own
