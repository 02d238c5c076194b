"""A lower bound where no trace can run a setup as it is: the nearest run that one can, less what the real one
does not hold on the GPU. With one rank nothing is shared out, so that a strategy's own copies only add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memplan.planner.formula.sharding.strategies import SHARDED, seen
from memplan.planner.inputs import state_spaces
from memplan.planner.inputs.quantized import packed
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Breakdown, Peak, Prediction, Row
from memplan.planner.tables.components import HELD_ACROSS_STEPS, STEP_MOMENTS

_ON_HOST: Mapping[str, Sequence[str]] = {
    "none": (),
    "optimizer": HELD_ACROSS_STEPS[1:],
    "all": HELD_ACROSS_STEPS,
}
"""The components that a rank keeps in host memory, by what it offloads: gradients go with their optimizer."""
_PLAIN = ("lora_", "embed_tokens", "lm_head", "norm")
"""Parts of the names of weights that stay in 16 bit beside packed ones."""
_TOLD = ("traced_layers", "unknown_share", "unknown_ops")


def nearest(config: Mapping[str, Any], setup: Setup) -> Setup | None:
    """The setup without what no trace runs: one rank's sharding and offload, in the dtypes that its forward
    and backward see, weights packed in a format of their own, and a scan too long in plain torch. None
    where there is nothing to leave out, or several ranks share.
    """
    sharded = setup.parallel in SHARDED
    if sharded and setup.gpus > 1:
        return None
    runs = seen(setup).with_(parallel="none", offload="none") if sharded else setup
    if packed(config, setup) is not None:
        runs = runs.with_(checkpoint_quant="none")
    runs = state_spaces.by_kernels(config, runs)
    return None if runs is setup else runs


def bound(found: Prediction, config: Mapping[str, Any], setup: Setup) -> Prediction:
    """The least that `setup` needs, from the prediction of its nearest run. Reserved memory is what is
    allocated: how a run that differs is cut into blocks is not known.
    """
    checkpoint, after_load = packed(config, setup), found.moment("load").rows
    moments = []
    for moment in found.moments:
        alive = after_load if moment.moment == "load_peak" else moment.rows
        rows = (row for row in alive if row.component not in _ON_HOST[setup.offload])
        if checkpoint is not None:
            rows = (_in_bits(row, checkpoint.bits, checkpoint.name) for row in rows)
        moments.append(Breakdown(moment.moment, tuple(rows)))
    step = [moment for moment in moments if moment.moment in STEP_MOMENTS]
    return found.with_(
        setup=setup,
        moments=tuple(moments),
        peak=_peak(moments, found.peak.context_bytes),
        step_peak=_peak(step, found.peak.context_bytes),
        smallest_capacity_bytes=None,
        survival=None,
        not_modelled=(*found.not_modelled, *_missing(setup), *state_spaces.uncounted(config, setup)),
        extra={key: found.extra[key] for key in _TOLD if key in found.extra},
    )


def _in_bits(row: Row, bits: int, named: str) -> Row:
    """A weight in its packed bits; any other row as it is."""
    plain = len(row.shape) < 2 or any(part in row.name for part in _PLAIN)
    if row.component != "weights" or row.dtype not in ("bfloat16", "float16") or plain:
        return row
    why = f"weights of a checkpoint quantized with {named}: {bits} bits each, without their scales"
    return Row(row.name, row.shape, "uint8", row.count, row.bytes * bits // 16, row.component, why)


def _peak(moments: Sequence[Breakdown], context: int) -> Peak:
    largest = max(moments, key=lambda m: m.allocated_bytes)
    return Peak(largest.moment, largest.allocated_bytes, largest.allocated_bytes, context)


def _missing(setup: Setup) -> Iterator[str]:
    """What the nearest run does not show; of packed weights `quantized.lacks` says it."""
    if setup.parallel in SHARDED:
        yield f"what {setup.parallel} gathers and keeps of its own on its one rank"
    if setup.offload != "none":
        yield f"what offload '{setup.offload}' brings onto the GPU for a while"
