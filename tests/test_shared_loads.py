"""A load that is written out once is the load of every setup that shares it."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import symbolic
from memplan.planner.formula.replay.events import NamedEvents
from memplan.planner.formula.replay.load import Load
from memplan.planner.formula.replay.loaded import NOT_READ, OF_STATES, loaded
from memplan.planner.formula.symbolic.expr import AtomValues
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import UsageError

RANK = 16
SETUPS: tuple[dict[str, Any], ...] = (
    {"method": "qlora"},
    {"method": "qlora", "quant_type": "int8", "recipe": "axolotl"},
    {"method": "lora", "recipe": "axolotl", "load": "random"},
    {"method": "lora", "modules_to_save": ("lm_head",)},
    {"method": "full", "checkpointing": "non_reentrant"},
    {"method": "dora", "optimizer": "adafactor"},
    {"method": "prefix-tuning"},
    {"method": "adapter"},
    {"method": "lora", "task": "dpo"},
)
OTHERS: tuple[dict[str, Any], ...] = (
    {"gpu": "t4"},
    {"gpu": "h100-80gb"},
    {"attention": "eager"},
    {"attention": "sdpa-math"},
    {"checkpointing": "none"},
    {"checkpointing": "reentrant"},
    {"loss": "chunked"},
    {"outputs_fp32": False},
    {"optimizer": "adamw_torch"},
    {"optimizer": "adamw_bnb_8bit"},
    {"optimizer": "sgd", "optimizer_mode": "loop"},
    {"optimizer": "adamw_bnb_8bit", "rank": 64},
)


def written(spec: ModelSpec, setup: Setup) -> tuple[list[int], list[int], list[Any], int]:
    """The load of one setup, shared with none."""
    structure = symbolic(spec, setup)
    out = NamedEvents()
    load = Load(structure.parameter_table, AtomValues({"R": RANK}), out, structure.rank.each_layer)
    load.run()
    return out.events, out.sizes, out.names, load.adapted


def shared(spec: ModelSpec, setup: Setup) -> NamedEvents:
    structure = symbolic(spec, setup)
    return loaded(structure.parameter_table, RANK, structure.rank.each_layer).out


PAIRS = [
    (name, fields)
    for name in ("llama-7b", "gpt2", "mixtral-8x7b")
    for fields in SETUPS
    if (name, fields["method"]) != ("mixtral-8x7b", "dora")  # which the formula has no rule for
]


@pytest.mark.parametrize(("name", "fields"), PAIRS, ids=lambda x: x if isinstance(x, str) else x["method"])
def test_what_no_load_reads_changes_none(name: str, fields: dict[str, Any]):
    spec, setup = find(name).spec(), resolve(fields)
    own, compared = written(spec, setup), 0
    for change in OTHERS:
        assert change.keys() <= {*NOT_READ, *OF_STATES}
        other = setup.with_(**change)
        try:
            found = written(spec, other)
        except UsageError:  # a kernel that cannot run it
            continue
        assert found == own, change
        assert shared(spec, other) is shared(spec, setup), change
        compared += 1
    assert compared >= 6
    events = shared(spec, setup)
    assert (events.events, events.sizes, events.names) == own[:3]


@pytest.mark.parametrize(
    "change",
    [
        {"double_quant": False},
        {"kbit_prepare": False},
        {"load": "random"},
        {"targets": ("q_proj",)},
        {"weight_dtype": "float32"},
        {"optimizer": "adagrad"},  # its states are there at once
    ],
    ids=str,
)
def test_what_a_load_reads_has_a_load_of_its_own(change: dict[str, Any]):
    spec, setup = find("llama-7b").spec(), resolve({"method": "qlora", "optimizer": "adamw_torch"})
    other = setup.with_(**change)
    assert written(spec, other) != written(spec, setup)
    assert shared(spec, other) is not shared(spec, setup)
    assert shared(spec, other).sizes == written(spec, other)[1]
