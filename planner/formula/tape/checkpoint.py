"""Gradient checkpointing on the tape, as torch/utils/checkpoint.py (2.13) does it: non-reentrant with early
stop, and reentrant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memplan.planner.formula.tape.tape import Buffer, Node, Tape, Tensor, mark_saved

Body = Callable[[Tensor], list[Tensor]]  # the layer's output first, then what it returns beside it


class _Stop(Exception):
    """Everything that the backward pass needs has been recomputed."""


class _Holder:
    """Stands in the graph for a tensor that was not kept. Calling it gives the recomputed bytes, once."""

    __slots__ = ("frame", "value")

    def __init__(self, frame: _Frame) -> None:
        self.frame, self.value = frame, None

    def __call__(self, tape: Tape) -> Buffer | None:
        if not self.frame.recomputed:
            self.frame.recompute(tape)
        value, self.value = self.value, None
        return value


class _Frame:
    """One checkpointed region: its function, its input and, in order, weak places for what it saved."""

    def __init__(self, tape: Tape, body: Body, given: Tensor, offload: bool) -> None:
        self.body, self.offload = body, offload
        self.given = _on_host(tape, given) if offload else given
        self.moved: Any = None  # stands for the input where the hook outside sent it to the host
        if tape.offload is not None and not offload and tape.pack is None:
            kept = tape.offload.pack(given, "checkpoint")
            if callable(kept):
                self.moved, self.given = kept, _without_bytes(given)
        self.holders: list[Any] = []
        self.recomputed = False

    def pack(self, buffer: Buffer | None, name: str) -> _Holder:
        import weakref

        holder = _Holder.__new__(_Held)
        holder.__init__(self)  # type: ignore[misc]
        self.holders.append(weakref.ref(holder))
        return holder

    def recompute(self, tape: Tape) -> None:
        """Run the forward again, keeping what was saved, and stop at the last saved tensor."""
        self.recomputed = True
        count = 0

        def keep(buffer: Buffer | None, name: str) -> Buffer | None:
            nonlocal count
            holder = self.holders[count]()
            count += 1
            if buffer is not None:
                mark_saved(buffer, name)
            if holder is not None:
                holder.value = buffer
            if count == len(self.holders):
                raise _Stop
            return buffer

        pack, enabled, scope, casts = tape.pack, tape.grad_enabled, tape.scope, tape.casts
        tape.pack, tape.grad_enabled, tape.casts = keep, True, tape.new_casts()  # type: ignore[assignment]
        try:
            self.body(self._input(tape))
        except _Stop:
            pass
        finally:
            tape.pack, tape.grad_enabled, tape.scope, tape.casts = pack, enabled, scope, casts

    def _input(self, tape: Tape) -> Tensor:
        if self.moved is not None:
            given = self.given
            return Tensor(
                self.moved(tape), given.shape, given.dtype, given.node, given.requires_grad, given.name
            )
        return _back(tape, self.given) if self.offload else self.given


class _Held(_Holder):
    __slots__ = ("__weakref__",)


def _on_host(tape: Tape, given: Tensor) -> Tensor:
    """The same tensor without device bytes: save_on_cpu keeps it in pinned host memory (transformers 5.23
    modeling_utils.py).
    """
    tape.host = tape.host + tape.size(given.shape, given.dtype) * tape.times
    return _without_bytes(given)


def _without_bytes(given: Tensor) -> Tensor:
    return Tensor(None, given.shape, given.dtype, given.edge(), given.requires_grad, given.name)


def _back(tape: Tape, given: Tensor) -> Tensor:
    """Copied to the device again for the recomputation."""
    made = tape.alloc(
        "layer input brought back", given.shape, given.dtype, "offloaded between forward and backward"
    )
    return Tensor(made.buffer, given.shape, given.dtype, given.node, given.requires_grad, given.name)


def non_reentrant(tape: Tape, body: Body, given: Tensor, offload: bool = False) -> list[Tensor]:
    """Keep only the input; recompute when the first saved tensor is asked for."""
    if not tape.grad_enabled:
        return body(given)
    frame = _Frame(tape, body, given, offload)
    outer, tape.pack = tape.pack, frame.pack
    try:
        return body(given)
    finally:
        tape.pack = outer


def reentrant(tape: Tape, body: Body, given: Tensor, offload: bool = False) -> list[Tensor]:
    """Run without a graph; the backward pass runs it again in full and goes through that graph at once.

    An output that no gradient reached gets zeros (torch 2.13 autograd/function.py materialize_grads).
    """
    requires_grad = tape.grad_enabled and given.requires_grad
    with tape.no_grad():
        out = body(given)
    if not requires_grad:
        return out
    shape, dtype = given.shape, given.dtype
    besides = [(x.shape, x.dtype) for x in out[1:]]
    tape.sequence += 1

    def backward(tape: Tape, node: Node, grad: Tensor) -> list[Tensor | None]:
        kept = (
            tape.alloc("layer input brought back", shape, dtype, "offloaded before").buffer
            if offload
            else node.held[0]
        )
        zeros = [
            tape.alloc("zero gradient", *each, "of what the layer returns beside its output")
            for each in besides
        ]
        leaf = Tensor(kept, shape, dtype, None, True, "layer input")
        del kept
        enabled, tape.grad_enabled = tape.grad_enabled, True
        casts, tape.casts = tape.casts, tape.new_casts()
        again = body(leaf)
        tape.grad_enabled, tape.casts = enabled, casts
        tape.backward(
            again[0], Tensor(grad.buffer, grad.shape, grad.dtype), tuple(zip(again[1:], zeros, strict=True))
        )
        return [Tensor(leaf.grad.buffer, shape, dtype) if leaf.grad is not None else None]

    node = Node("checkpoint", tape.sequence, (given.edge(),), backward, ((shape, dtype),))
    if offload:
        _on_host(tape, given)
    else:
        tape.save(node, given)
    out[0].node, out[0].requires_grad = node, True
    return out


CHECKPOINTS: dict[str, Callable[[Tape, Body, Tensor, bool], list[Tensor]]] = {
    "non_reentrant": non_reentrant,
    "reentrant": reentrant,
}
