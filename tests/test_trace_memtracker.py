"""torch's own MemTracker, where it works (dense models, full fine-tuning): component by component, to the
byte, its differences named.

MemTracker (torch 2.13 distributed/_tools/mem_tracker.py) dispatches the same kinds of events on real CPU
tensors. Named differences:
* the batch is `OTH` there and an activation here;
* at the backward's peak the loss's four bytes are an activation there and a temporary here: only the sum is
  compared;
* what the optimizer makes inside its step is `OPT` there; here it is a temporary unless the optimizer keeps
  it;
* a torch optimizer's step counters live on the host unless it is fused: on the CPU MemTracker sees them, on a
  GPU they are not there.
"""

from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
mem_tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")

from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.run import step  # noqa: E402
from memplan.planner.run.build import build  # noqa: E402
from memplan.planner.run.model import quiet  # noqa: E402
from memplan.planner.trace.device.target import target_of  # noqa: E402
from memplan.planner.trace.events.log import Log  # noqa: E402
from memplan.planner.trace.events.record import record  # noqa: E402
from memplan.planner.trace.events.timeline import Timeline  # noqa: E402

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "gemma2": SIZES,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64},
    "gpt_neox": SIZES,
    "llama": SIZES,
    "qwen2": SIZES,
}
CPU = torch.device("cpu")


def setup_of(optimizer, dtype="float32"):
    fields = {
        "method": "full",
        "recipe": "raw",
        "weight_dtype": dtype,
        "optimizer": optimizer,
        "device": "cpu",
    }
    return resolve({**fields, "micro_batch": 2, "sequence_length": 16})


class Snapshots:
    """What MemTracker holds when each moment of the second step ends."""

    def __init__(self):
        self.tracker = mem_tracker.MemTracker()
        self.found = {}

    @contextmanager
    def announce(self, moment, step=-1):
        yield
        if step == 1:
            self.found[moment] = self.now("current")

    def now(self, kind):
        """Bytes by component: PARAM, BUFFER, GRAD, ACT, TEMP, OPT, OTH, Total."""
        snapshot = self.tracker.get_tracker_snapshot(kind)[CPU]
        return {getattr(kind, "name", str(kind)): nbytes for kind, nbytes in snapshot.items()}


def tracked(config, setup):
    """({moment: components at its end}, components at the second step's peak) by MemTracker."""
    snapshots = Snapshots()
    with quiet():
        built = build(config, setup, "cpu")
        snapshots.tracker.track_external(built.model, built.optimizer, *built.batch.values())
        with snapshots.tracker as tracker:
            step.run(built, snapshots, 0)
            tracker.reset_mod_stats()
            step.run(built, snapshots, 1)
        return snapshots.found, snapshots.now("peak")


def at_end(log: Log, moment):
    """Bytes by component alive when `moment` of the second step ends, by the trace."""
    end = next(mark.end for mark in log.marks if (mark.step, mark.moment) == (1, moment))
    totals = dict.fromkeys(("weights", "gradients", "optimizer_states", "activations", "temporaries"), 0)
    for storage in log.storages:
        if storage.born < end and (storage.died is None or storage.died >= end):
            totals[storage.component] += storage.nbytes
    return totals


def translated(theirs):
    return {
        "weights": theirs["PARAM"] + theirs["BUFFER"],
        "gradients": theirs["GRAD"],
        "optimizer_states": theirs["OPT"],
        "activations": theirs["ACT"] + theirs["OTH"],
        "temporaries": theirs["TEMP"],
    }


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_component_agrees_to_the_byte(family):
    config, setup = {"model_type": family, **FAMILIES[family]}, setup_of("adamw_torch_fused")
    ends, peak = tracked(config, setup)
    log, _ = record(config, setup, target_of(setup), full=True)
    for moment in ("forward", "backward", "optimizer_step"):
        assert at_end(log, moment) == translated(ends[moment]), moment
    assert Timeline(log, setup, target_of(setup)).moments()[2].allocated_bytes == peak["Total"]


def test_what_foreach_makes_inside_the_step_is_temporary():
    config, setup = {"model_type": "llama", **SIZES}, setup_of("adamw_torch")
    ends, peak = tracked(config, setup)
    log, _ = record(config, setup, target_of(setup), full=True)
    counters = 4 * sum(1 for s in log.storages if s.component == "gradients" and s.died is None)
    ours = at_end(log, "optimizer_step")
    assert ours == {
        **translated(ends["optimizer_step"]),
        "optimizer_states": ends["optimizer_step"]["OPT"] - counters,
    }
    moments, _, step_peak = Timeline(log, setup, target_of(setup)).moments()
    components = next(m for m in moments if m.moment == step_peak.moment).components
    assert step_peak.moment == "optimizer_step" and step_peak.allocated_bytes == peak["Total"] - counters
    assert components["temporaries"] == ours["gradients"], "one copy of the denominators"
    assert peak["OPT"] == components["optimizer_states"] + components["temporaries"] + counters
