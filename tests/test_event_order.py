"""The formula's run in the order of the trace's: loads with random weights, layer norms, grouped heads under
the memory-efficient kernel.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import plan, replay_of
from memplan.planner.formula.tape.layers import layer_norm
from memplan.planner.formula.tape.tape import Tape
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

SIZES: dict[str, dict[str, Any]] = {
    "bloom-560m": {"hidden_size": 256, "n_head": 4, "n_layer": 3, "vocab_size": 2048},
    "qwen3-0.6b": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "head_dim": 64,
        "vocab_size": 2048,
    },
}


def small(name: str) -> dict[str, Any]:
    changed = {**find(name).config, **SIZES[name], "_name_or_path": f"small {name}"}
    return {k: v[:3] if k == "layer_types" and v else v for k, v in changed.items()}


@pytest.mark.parametrize("name", list(SIZES))
def test_random_weights_are_made_module_by_module(name: str):
    pytest.importorskip("torch")
    from memplan.planner.trace.engine import traced

    setup = resolve({"method": "full", "recipe": "raw", "load": "random", "sequence_length": 64})
    _, log = traced(small(name), setup)
    first = min(mark.begin for mark in log.marks if mark.step >= 0)
    theirs = [log.storages[n].nbytes for kind, n, _ in log.events[:first] if kind == "alloc"]
    run = replay_of(find(small(name)).spec(), setup)
    assert run is not None
    events = run.events
    ours = [
        events.sizes[each] for each in events.events[: events.spans[0][1]] if 0 <= each < len(events.sizes)
    ]
    products = 100_000  # bytes: norms and biases, which lie in a pool of their own, come in another order
    assert [n for n in ours if n >= products] == [n for n in theirs if n >= products]


def test_a_layer_norm_makes_its_output_before_its_statistics():
    tape = Tape()
    x = tape.alloc("x", (2, 8, 16), "float32")
    layer_norm(tape, x, None, None, "normalized")
    assert [info.name for info in tape.infos] == ["x", "normalized", "layer norm mean", "layer norm rstd"]


def test_grouped_heads_reach_the_efficient_kernel_from_torch_2_14_on():
    """Before, transformers' own call with only that kernel left is refused by the trace; the formula takes
    heads that were repeated before the call, as the published T4 runs have them.
    """
    pytest.importorskip("torch")
    from memplan.planner.trace.engine import trace

    fields = {"method": "lora", "recipe": "hf", "weight_dtype": "float32", "autocast": "none"}
    fields |= {
        "checkpointing": "none",
        "attention": "sdpa-efficient",
        "sequence_length": 512,
        "gpu": "h100-80gb",
    }
    config = small("qwen3-0.6b")
    theirs, ours = trace(config, resolve(fields)), plan(find(config).spec(), resolve(fields))
    for moment in ("forward", "backward"):
        there = sum(row.bytes for row in theirs.moment(moment).rows)
        assert sum(row.bytes for row in ours.moment(moment).rows) == pytest.approx(there, rel=1e-3), moment
    older = resolve({**fields, "torch": "2.13"})
    with pytest.raises(UsageError, match="efficient"):
        trace(config, older)
    assert any("repeat" in row.name for row in plan(find(config).spec(), older).moment("forward").rows)
