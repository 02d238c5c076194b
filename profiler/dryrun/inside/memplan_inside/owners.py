"""Which tensors are weights, gradients and optimizer states, found where torch's hooks stand."""

import gc

import torch


def address(tensor):
    """Where a CUDA tensor's storage begins; 0 of any other."""
    if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cuda":
        return 0
    inner = getattr(tensor, "_local_tensor", None)  # a DTensor's own shard
    try:
        return (tensor if inner is None else inner).untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a wrapper without storage
        return 0


def inside(name, value, depth=3, seen=None):
    """(name, tensor) of a value and of what it keeps in lists, dictionaries and attributes (a quantization
    state).
    """
    seen = set() if seen is None else seen
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield name, value
        kept = getattr(value, "__dict__", None) or {}
        for key, item in kept.items():
            if key not in ("grad", "_grad", "grad_fn"):
                yield from inside(f"{name}.{key}", item, depth - 1, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from inside(f"{name}.{key}", item, depth - 1, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from inside(name, item, depth - 1, seen)
    elif (
        hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)) and not callable(value)
    ):
        for key, item in vars(value).items():
            yield from inside(f"{name}.{key}", item, depth - 1, seen)


def weights_of(module):
    """Parameters and buffers with what quantization keeps beside them."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield from inside(name, tensor)


def all_weights():
    """Of every module that is alive."""
    done = set()
    for found in gc.get_objects():
        if issubclass(type(found), torch.nn.Module):
            try:
                tensors = [*found._parameters.items(), *found._buffers.items()]
            except AttributeError:  # not initialized
                continue
            for name, tensor in tensors:
                if tensor is not None and id(tensor) not in done:
                    done.add(id(tensor))
                    yield from inside(name, tensor)


def parameters(optimizer):
    """The parameters that an optimizer updates, as (name, tensor) pairs without names."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield "", parameter


def gradients(optimizer):
    """The gradients of an optimizer's parameters, as (name, tensor) pairs without names."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield "", parameter.grad


def states(optimizer):
    """The tensors of an optimizer's state, as (name, tensor) pairs."""
    for parameter, state in optimizer.state.items():
        for name, value in inside("", state):
            if value is not parameter:
                yield name, value
    for name, kept in vars(optimizer).items():
        if name.startswith("exp_avg_sq"):  # AdaLomo keeps them beside, by name
            yield from inside(name, kept)
