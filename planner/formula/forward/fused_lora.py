"""Adapters as axolotl's kernels multiply them: projections of one input, or a whole MLP, as one function
that makes its gradients itself (axolotl 0.19 kernels/lora.py matmul_lora, LoRA_QKV, LoRA_O, LoRA_MLP;
quantize.py).

T tokens (B x S), R rank. Adapters' products are added in place, so that no adapter's output is made; what is
saved is the input, gate and up, and adapters in the input's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.symbolic.expr import ceil_div
from memplan.planner.formula.tape.ops import Grads, dropout
from memplan.planner.formula.tape.tape import LORA, Node, Shape, Tape, Tensor
from memplan.planner.inputs.spec import Linear
from memplan.planner.tables.tasks import TASKS


class _Projection:
    """One layer of a group: its shapes, its adapter's tensors, and what its products make."""

    def __init__(self, w: Context, layer: Linear, prefix: str) -> None:
        self.w, self.layer = w, layer
        self.four = w.weight(f"{prefix}{layer.name}.weight").dtype in ("nf4", "fp4")
        self.a, self.b = (w.weight(f"{prefix}{layer.name}.{short}") for short in ("lora_A", "lora_B"))
        self.shapes = (self.a.shape, self.b.shape)
        self.name = layer.name.rpartition(".")[2]

    def weight(self, t: Tape) -> list[Tensor]:
        """The base weight as a product reads it: nothing, or the whole of it in 16 bits."""
        if not self.four:
            return []
        setup, n = self.w.setup, (self.layer.out_features, self.layer.in_features)
        whole = t.alloc("dequantized weight", n, setup.weight_dtype, "the whole weight, for one product")
        if setup.double_quant:
            blocks = (ceil_div(self.layer.out_features * self.layer.in_features, setup.quant_block),)
            constants = t.alloc("quantization constants in fp32", blocks, "float32", "undone once more")
            del constants
        return [whole]

    def low(self, t: Tape, front: Shape, dtype: str) -> Tensor:
        """Tokens times one factor: (T, R)."""
        return t.alloc("low-rank product", (*front, self.shapes[0][0]), dtype, "R numbers a token")

    def copies(self, t: Tape, dtype: str) -> list[Tensor]:
        """The adapter in the input's dtype; its own tensors where they are of it."""
        return [
            x if x.dtype == dtype else t.alloc("copy of the adapter", x.shape, dtype, f"of {self.name}")
            for x in (self.a, self.b)
        ]

    def output(self, t: Tape, given: Tensor) -> Tensor:
        """X W + s X A B, the adapter's part added in place."""
        front, dtype = given.shape[:-1], given.dtype
        held = self.weight(t)
        shape = (*front, self.layer.out_features)
        out = t.alloc(f"{self.name} output", shape, dtype, "base and adapter in one tensor")
        held.clear()
        held = self.copies(t, dtype)
        low = self.low(t, front, dtype)
        del low
        return out

    def gradients(self, t: Tape, front: Shape, dtype: str) -> list[Tensor]:
        """The low-rank gradient, which is used again, and those of both factors in the input's dtype."""
        low = self.low(t, front, dtype)
        made = [
            t.alloc(f"{self.name} gradient of lora_{x}", shape, dtype, "in the input's dtype")
            for x, shape in zip("AB", self.shapes, strict=True)
        ]
        other = self.low(t, front, dtype)
        del other
        return [low, *made]


def _dropped(w: Context, given: Tensor) -> list[Tensor]:
    """The input that adapters read, where it is another one: one mask for all of a group."""
    p = float(w.setup.dropout) if TASKS[w.setup.task].dropout else 0.0
    made = dropout(w.t, given, p)
    return [] if made is given else [made]


def projections(w: Context, layers: Sequence[Linear], given: Tensor, prefix: str) -> list[Tensor]:
    """The outputs of projections of one input; their gradients meet in one backward."""
    t = w.t
    with t.inside(prefix):
        group = [_Projection(w, layer, prefix) for layer in layers]
        dropped = _dropped(w, given)
        shape, dtype, arrived = given.shape, given.dtype, dict[int, Tensor]()
        front = shape[:-1]

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            parts = [each.gradients(t, front, dtype) for each in group]
            result = _input_gradient(t, group, shape, dtype) if node.needs(0) else None
            found: list[Tensor | None] = [result]
            if dropped_too:
                scaled = t.alloc("gradient of the dropped input", shape, dtype, "of all adapters")
                if len(group) == 1:
                    scaled = t.alloc("gradient of the dropped input", shape, dtype, "scaled")
                found.append(scaled)
            arrived.clear()
            return found + [x for each in parts for x in each[1:]]

        dropped_too = bool(dropped)
        outputs = [each.output(t, given) for each in group]
        saves = [given, *(dropped or [given])]
        for each in group:
            saves += each.copies(t, dtype)
        inputs = (given, *dropped, *(x for each in group for x in (each.a, each.b)))
        common = t.op(LORA, inputs, (0,), dtype, saves=saves, backward=backward, name="projections")
        del saves
        return [
            t.op(
                "projection",
                (common,),
                out.shape,
                dtype,
                alias=out,
                backward=_keeping(arrived, number),
            )
            for number, out in enumerate(outputs)
        ]


def _keeping(arrived: dict[int, Tensor], number: int) -> Callable[[Tape, Node, Tensor], Grads]:
    """A gradient waits for those of the other outputs."""

    def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
        arrived[number] = Tensor(grad.buffer, grad.shape, grad.dtype)
        return [t.alloc("nothing", (0,), grad.dtype)]

    return backward


def _input_gradient(t: Tape, group: Sequence[_Projection], shape: Shape, dtype: str) -> Tensor:
    """dY W of the first, those of the others added in place; viewed in the input's shape."""
    result: Tensor | None = None
    for each in group:
        held = each.weight(t)
        if result is None:
            result = t.alloc("gradient of the projections' input", shape, dtype, "summed in place")
        held.clear()
    assert result is not None
    result.viewed = True
    return result


def mlp(w: Context, layers: Sequence[Linear], given: Tensor, prefix: str) -> Tensor:
    """down(act(gate) * up), each with its adapter: gate's and up's gradients are written over them."""
    t = w.t
    with t.inside(prefix):
        gate, up, down = group = [_Projection(w, layer, prefix) for layer in layers]
        dropped = _dropped(w, given)
        shape, dtype = given.shape, given.dtype
        front, inner = shape[:-1], (*shape[:-1], down.layer.in_features)
        dropped_too = bool(dropped)

        def backward(t: Tape, node: Node, grad: Tensor) -> Grads:
            held = down.weight(t)
            hidden = t.alloc("gradient of the hidden states", inner, dtype, "then those again")
            held.clear()
            low = down.low(t, front, dtype)
            del low
            parts = {each.name: each.gradients(t, front, dtype) for each in (down, up, gate)}
            result = _input_gradient(t, (up, gate), shape, dtype) if node.needs(0) else None
            found: list[Tensor | None] = [result]
            if dropped_too:
                found.append(t.alloc("gradient of the dropped input", shape, dtype, "of both adapters"))
            del hidden
            return found + [x for each in group for x in parts[each.name][1:]]

        states = [each.output(t, given) for each in (gate, up)]
        hidden = t.alloc("gated", inner, dtype, "act(gate) * up")
        made = down.output(t, hidden)
        saves = [given, *(dropped or [given]), *states]
        for each in group:
            saves += each.copies(t, dtype)
        inputs = (given, *dropped, *(x for each in group for x in (each.a, each.b)))
        return t.op(LORA, inputs, made.shape, dtype, saves=saves, backward=backward, alias=made)
