"""A dense MLP on the tape, gated or not."""

from __future__ import annotations

from memplan.planner.formula.forward.activation_functions import activation
from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.linears import bottleneck, linear
from memplan.planner.formula.tape.ops import mul, split
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.inputs.spec import Mlp


def dense_mlp(
    w: Context, mlp: Mlp, given: Tensor, prefix: str, kept_alive: list[Tensor] | None = None
) -> Tensor:
    """down(act(gate(x)) * up(x)), with one fused gate-up projection or two; or down(act(up(x))), whose
    activations a module that does more than project keeps.
    """
    t, act, fused = w.t, activation(mlp.activation), "glu" in w.kernels
    if not mlp.gated:
        up, down = mlp.linears
        hidden = linear(w, up, given, prefix)
        del given
        hidden = act(w, hidden)
        out = linear(w, down, hidden, prefix)
        if kept_alive is not None:
            kept_alive.append(hidden)
        return bottleneck(w, "mlp", out, prefix) if mlp.inline else out
    if mlp.fused_gate_up:
        both, down = mlp.linears
        states = linear(w, both, given, prefix)
        shape = (*given.shape[:-1], mlp.intermediate)
        gate, up_states = split(t, states, (shape, shape))
        del states
        if fused:
            from memplan.planner.formula.tape.fused_kernels import gated_product

            return linear(w, down, gated_product(t, gate, up_states, copies=True), prefix)
        up_states = mul(t, up_states, act(w, gate), "gated")
        return linear(w, down, up_states, prefix)
    gate_proj, up_proj, down = mlp.linears
    if w.fuses("lora_mlp", mlp.linears):
        from memplan.planner.formula.forward import fused_lora

        return fused_lora.mlp(w, mlp.linears, given, prefix)
    if fused:
        from memplan.planner.formula.tape.fused_kernels import gated_product

        gate = linear(w, gate_proj, given, prefix)
        up_states = linear(w, up_proj, given, prefix)
        product = gated_product(t, gate, up_states, copies=False)
        del gate, up_states
        return linear(w, down, product, prefix)
    return linear(
        w,
        down,
        mul(t, act(w, linear(w, gate_proj, given, prefix)), linear(w, up_proj, given, prefix), "gated"),
        prefix,
    )
