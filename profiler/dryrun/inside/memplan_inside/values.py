"""True values of integer and Boolean tensors, where no kernel computes anything.

Device memory is readable host memory in a dry run. After each listed op has made its allocations as on a GPU,
the same op is run on the CPU over the same memory, so that every branch that a program takes on a mask, a
label, a length or a count is the branch that it takes on a GPU. Floating-point values stay unknown.
"""

import contextlib
import ctypes
import math
import os
import warnings
import weakref

import torch

from memplan_inside.answer import Answer
from memplan_inside.host import reading_nothing
from memplan_inside.lines import asking_line

MOST, MOST_FLOATING = 1 << 24, 1 << 16
"""Elements: what is larger stays unknown. Of floating-point tensors only the constants of small ones are
written, and what is copied and joined of them alone: peft makes masks of ones in fp32.
"""
JOINED = {"cat", "copy_", "index_select", "where", "flip", "roll"}
"""Ops that put together what they are given: of known floating-point values the result is known."""
OPS = """
eq ne lt le gt ge any all sum prod max min amax amin aminmax argmax argmin cumsum cumprod where
masked_fill_ index _index_put_impl_ gather scatter scatter_ scatter_add scatter_add_ scatter_reduce
scatter_reduce_ index_select index_fill_ index_add index_add_ index_copy index_copy_ cat roll flip tril
triu tril_ triu_ tril_indices triu_indices eye clamp clamp_ clamp_min clamp_max clamp_min_ clamp_max_
minimum maximum add add_ sub sub_ rsub mul mul_ div div_ remainder remainder_ floor_divide floor_divide_
bitwise_and bitwise_and_ bitwise_or bitwise_or_ bitwise_xor bitwise_xor_ bitwise_not bitwise_not_
logical_and logical_and_ logical_or logical_or_ logical_not logical_not_ logical_xor bitwise_left_shift
bitwise_right_shift __lshift__ __rshift__ neg neg_ abs abs_ sign sgn pow sort topk kthvalue searchsorted
bucketize isin masked_scatter_ masked_select take put_ count_nonzero arange linspace fill_ zero_ copy_
random_ randperm bincount repeat_interleave square isposinf isneginf
"""
"""Ops whose integer and Boolean results are computed: those that programs make masks, labels and counts with.
"""
LEFT = {"aten::pow.Scalar", "aten::pow.Scalar_out", "aten::pow.Tensor_Tensor", "aten::pow.Tensor_Tensor_out"}
"""Left to torch: a number to the power of a tensor becomes a wrapped number on the GPU (ATen/native/Pow.cpp
pow_Scalar_out), which no Python kernel can be given (csrc/jit/python/pybind_utils.cpp)."""
_NUMBERS = (int, float, bool, complex)
CREATE = {"arange", "fill_", "zero_", "eye", "linspace", "tril_indices", "triu_indices"}
"""These know their values whatever the dtype."""
COMPARE = {"eq": False, "ne": True}

SIZED = {
    "nonzero": lambda made: made.shape[0],
    "_unique2": lambda made: made[0].shape[0],
    "unique_consecutive": lambda made: made[0].shape[0],
}
"""Op -> how many entries its result has, given that result."""

notes = {}
_unknown = set()
_known = {}  # address of a known floating-point tensor's storage -> a weak reference to the tensor
_kept = []


def install():
    """Put the kernels in place. Where torch cannot hand out its own kernels (before 2.10), values stay
    unknown.
    """
    if not hasattr(torch.library, "get_kernel") or os.environ.get("MEMPLAN_DRYRUN_VALUES") == "0":
        notes["integer and Boolean values are unknown: torch.library.get_kernel came with torch 2.10"] = 1
        return
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OPS.split():
            packet = getattr(torch.ops.aten, name, None)
            for overload in packet.overloads() if packet is not None else ():
                _override(library, name, getattr(packet, overload))
        for name, count_of in SIZED.items():
            _override_with(library, getattr(torch.ops.aten, name).default, _sized(count_of))
        _override_with(library, torch.ops.aten.equal.default, _equal)
        _override_with(library, torch.ops.aten._local_scalar_dense.default, _scalar)


def _has(name, key):
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    except RuntimeError:  # an overload of TorchScript's, which the dispatcher does not know
        return False


def _override(library, name, op):
    if op._name in LEFT:
        return
    if _has(op._name, "CUDA") or (_has(op._name, "CompositeExplicitAutograd") and name == "copy_"):
        _override_with(library, op, lambda op, kernel: _kernel(name, op, kernel))


def _override_with(library, op, make):
    kernel = torch.library.get_kernel(op, "CUDA")
    _kept.append(kernel)
    library.impl(op, make(op, kernel), "CUDA", with_keyset=True, allow_override=True)


def view(tensor):
    """The same memory as a CPU tensor."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = extent * tensor.element_size()
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _readable(tensor):
    return tensor.device.type == "cuda" and tensor.layout is torch.strided and tensor.data_ptr() != 0


def _on_cpu(value, seen):
    """An argument with every tensor as its CPU view; `seen` collects the tensors."""
    if isinstance(value, torch.Tensor):
        seen.append(value)
        if value.device.type != "cuda":
            return value
        if value.numel() == 0 or not _readable(value):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        return view(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item, seen) for item in value)
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _floating(tensor):
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _from_integers(name, args):
    """Whether floating-point results are made of integers and Booleans alone, as a loss's denominator is."""
    sources = list(_tensors(args[1:2] if name == "copy_" else args))
    return bool(sources) and not any(_floating(tensor) for tensor in sources)


def _is_known(tensor):
    held = _known.get(tensor.data_ptr())
    return held is not None and held() is not None


def _all_known(sources):
    """Whether every floating-point tensor among them has known values."""
    return all(
        tensor.device.type != "cuda" or _is_known(tensor) for tensor in _tensors(sources) if _floating(tensor)
    )


def _kernel(name, op, kernel):
    writes = any(
        argument.is_out or (argument.alias_info is not None and argument.alias_info.is_write)
        for argument in op._schema.arguments
    )
    creates, call, places = name in CREATE, kernel.call_boxed, _promoting(op)

    def run(keyset, *args, **kwargs):
        if places and any(type(args[place]) in _NUMBERS for place in places if place < len(args)):
            args = _with_tensors(args, places)
        result = call(keyset, *args, **kwargs)
        outputs = list(_tensors(result if isinstance(result, (list, tuple)) else (result,)))
        floating = all(_floating(tensor) for tensor in outputs)
        joined = name in JOINED and _all_known(args[name == "copy_" :])
        if floating and not creates and not joined and not _from_integers(name, args):
            for tensor in outputs:
                _known.pop(tensor.data_ptr(), None)
            return result
        if all(0 < tensor.numel() <= (MOST_FLOATING if floating else MOST) for tensor in outputs):
            with _quietly():
                _compute(name, op, writes, creates, args, kwargs, outputs)
        return result

    return reading_nothing(run, MOST_FLOATING) if name == "copy_" else run


def _promoting(op):
    """Places of the tensors that decide the result's dtype together: a number there arrives as a Python
    number.
    """
    arguments = op._schema.arguments
    found = [
        place
        for place, argument in enumerate(arguments)
        if str(argument.type) == "Tensor"
        and not argument.kwarg_only
        and argument.name not in ("condition", "mask")
    ]
    return found if len(found) > 1 else []


def _with_tensors(args, places):
    """Numbers as tensors again, of a dtype that changes the result's no more than a number does."""
    like = next(
        (args[place] for place in places if place < len(args) and isinstance(args[place], torch.Tensor)), None
    )
    args = list(args)
    for place in places:
        if place < len(args) and type(args[place]) in _NUMBERS:
            args[place] = _scalar_tensor(args[place], like)
    return args


def _scalar_tensor(number, like):
    kind = type(number)
    if kind is bool:
        dtype = torch.bool
    elif like is not None and (_floating(like) or (kind is int and like.dtype is not torch.bool)):
        dtype = like.dtype
    else:
        dtype = torch.int64 if kind is int else torch.get_default_dtype()
    with torch._C.DisableTorchFunction():
        return torch.full((), number, dtype=dtype, device="cpu")


@contextlib.contextmanager
def _quietly():
    """What the CPU refuses (an index out of bounds among unknown ones) leaves the values as they are."""
    try:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            yield
    except Exception as error:
        notes[f"a value was not computed: {type(error).__name__}: {str(error)[:120]}"] = 1


def _compute(name, op, writes, creates, args, kwargs, outputs):
    seen = []
    args, kwargs = _on_cpu(args, seen), {key: _on_cpu(value, seen) for key, value in kwargs.items()}
    inputs = seen
    if name == "copy_":  # from the host: known, whatever its dtype
        inputs = [tensor for tensor in seen[-1:] if tensor.device.type == "cuda"]
    unknown = [
        tensor
        for tensor in inputs
        if _floating(tensor) and tensor.device.type == "cuda" and not _is_known(tensor)
    ]
    if unknown and not creates:
        _fill_unknown(name, args, outputs)
        return
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    if "generator" in kwargs:
        kwargs["generator"] = None
    made = op(*args, **kwargs)
    for tensor in outputs:
        _unknown.discard(tensor.data_ptr())
        if _floating(tensor) and tensor.numel() <= MOST_FLOATING:
            _known[tensor.data_ptr()] = weakref.ref(tensor)
    if writes:
        return
    for tensor, value in zip(outputs, made if isinstance(made, (list, tuple)) else (made,), strict=True):
        if _readable(tensor):
            view(tensor).copy_(value)


def _fill_unknown(name, args, outputs):
    """An integer or Boolean result of floating-point values: finite, different from infinity, evenly spread,
    else 0.
    """
    for tensor in outputs:
        if _floating(tensor) or not _readable(tensor):
            continue
        _unknown.add(tensor.data_ptr())
        target = view(tensor)
        if name in COMPARE and len(args) > 1 and _decided(args[0], args[1]):
            same = isinstance(args[1], torch.Tensor)
            target.fill_(same != COMPARE[name])
        elif name in ("topk", "sort") and target.dim():
            _spread(target, args[0].shape[-1])
        else:
            target.zero_()


def _decided(left, right):
    """A value compared with itself (is it a number?) or with infinity."""
    if isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and left.data_ptr() == right.data_ptr()
    return isinstance(right, float) and math.isinf(right)


def _spread(target, size):
    """Indices of a choice among `size`, each chosen equally often: what a trained router comes close to."""
    width = target.shape[-1]
    rows = torch.arange(target.numel() // width).reshape(*target.shape[:-1], 1)
    target.copy_((rows * width + torch.arange(width)) % size)


def _sized(count_of):
    """Ops whose result is as large as a count that they read back: it gets the true one."""

    def make(op, kernel):
        def run(keyset, *args, **kwargs):
            made = count = None
            with _quietly():
                seen = []
                cpu = _on_cpu(args, seen)
                if all(not _floating(tensor) and 0 < tensor.numel() <= MOST for tensor in seen):
                    made = op(*cpu, **kwargs)
                    count = count_of(made)
            with Answer(count):
                result = kernel.call_boxed(keyset, *args, **kwargs)
            if made is not None:
                with _quietly():
                    for tensor, value in zip(_tensors((result,)), _tensors((made,)), strict=True):
                        if tensor.numel():
                            view(tensor).copy_(value)
            return result

        return run

    return make


def _equal(op, kernel):
    """Floating-point tensors are equal to themselves alone."""

    def run(keyset, left, right):
        result = kernel.call_boxed(keyset, left, right)
        with _quietly():
            if _floating(left) or left.numel() > MOST:
                result = left.data_ptr() == right.data_ptr()
            else:
                result = op(*_on_cpu((left, right), []))
        return result

    return run


def _scalar(op, kernel):
    """Reading a single value: what came from unknown values is noted, and never infinite or no number."""

    def run(keyset, tensor):
        value = kernel.call_boxed(keyset, tensor)
        if isinstance(value, float) and not math.isfinite(value):
            return 0.0
        if tensor.dtype is torch.bool and tensor.data_ptr() in _unknown:
            notes[f"depends on values: {asking_line()}"] = 1
        return value

    return run
