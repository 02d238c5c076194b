"""Properties that every prediction has, whatever the setup: hypothesis looks for the setup that has not."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.formula.engine import plan, symbolic
from memplan.planner.formula.program import Symbolic
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.components import COMPONENTS

METHODS = ("full", "freeze", "lora", "qlora", "adalora", "dora")
LAYERS = (2, 5, 9)


def config(layers: int, family: str = "llama") -> dict[str, Any]:
    return {
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "sliding_window": 40,
    }


SPECS: dict[tuple[str, int], ModelSpec] = {
    (f, n): read_config(config(n, f)) for f in ("llama", "mistral", "gemma2") for n in LAYERS
}

STRUCTURES = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "recipe": st.sampled_from(("raw", "hf")),
        "checkpointing": st.sampled_from(("none", "non_reentrant", "reentrant")),
        "attention": st.sampled_from(("eager", "sdpa")),
        "autocast": st.sampled_from(("none", "bfloat16")),
        "padded": st.booleans(),
        "optimizer": st.sampled_from(("adamw_torch", "adamw_torch_fused", "sgd")),
        "gradient_accumulation": st.sampled_from((1, 2)),
    }
)
FAMILIES = st.sampled_from(("llama", "mistral", "gemma2"))
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 200), st.integers(1, 64))
QUICK = settings(max_examples=25, deadline=None)


def built(family: str, layers: int, fields: dict[str, Any]) -> tuple[Setup, Symbolic]:
    setup = resolve(fields)
    return setup, symbolic(SPECS[family, layers], setup)


@given(FAMILIES, STRUCTURES, SIZES)
@QUICK
def test_components_add_up_and_nothing_is_negative(
    family: str, fields: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    _, structure = built(family, 5, fields)
    for moment in structure.breakdowns(*sizes):
        assert all(row.bytes > 0 and row.count > 0 for row in moment.rows), moment.moment
        assert sum(moment.components[c] for c in COMPONENTS) == moment.allocated_bytes


@given(FAMILIES, STRUCTURES, SIZES, st.sampled_from(("batch", "sequence", "rank")), st.integers(1, 50))
@QUICK
def test_larger_sizes_never_need_less(
    family: str, fields: dict[str, Any], sizes: tuple[int, int, int], axis: str, more: int
) -> None:
    """With the discrete choices fixed; B = 1 and windows that do not cut are choices too: both points are in
    the larger one's.
    """
    _, structure = built(family, 5, fields)
    larger = list(sizes)
    larger[("batch", "sequence", "rank").index(axis)] += more
    program = structure.program(structure.guard(larger[0], larger[1]))
    small, large = program.totals(sizes), program.totals((larger[0], larger[1], larger[2]))
    assert all(large.moments[name] >= small.moments[name] for name in small.moments)


@given(FAMILIES, STRUCTURES, SIZES)
@QUICK
def test_more_layers_never_need_less(
    family: str, fields: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    peaks = [built(family, layers, fields)[1].totals(*sizes) for layers in LAYERS]
    for shallow, deep in zip(peaks, peaks[1:], strict=False):
        assert all(deep.moments[name] >= shallow.moments[name] for name in shallow.moments)


@given(
    FAMILIES,
    STRUCTURES.filter(lambda f: f["method"] != "freeze"),
    SIZES,
    st.sampled_from(("non_reentrant", "reentrant")),
)
@QUICK
def test_checkpointing_never_saves_more_when_every_layer_trains(
    family: str, fields: dict[str, Any], sizes: tuple[int, int, int], kind: str
) -> None:
    """Compared at the end of the forward, where what was saved is all there: the largest state of the forward
    moment.
    """
    plain = built(family, 9, {**fields, "checkpointing": "none"})[1]
    saving = built(family, 9, {**fields, "checkpointing": kind})[1]
    saved = [saved_at_backward(structure, sizes) for structure in (plain, saving)]
    assert saved[1] <= saved[0]


def saved_at_backward(structure: Symbolic, sizes: tuple[int, int, int]) -> int:
    """Bytes that are kept for the backward when it begins."""
    from memplan.planner.formula.step import run_step

    tape = run_step(structure.parameter_table, structure.device, structure.guard(sizes[0], sizes[1]))
    end = next(position for position, moment in tape.marks if moment == "backward")
    alive: dict[int, int] = {}
    for index, change in tape.log[:end]:
        for each, count in change.items() if index < 0 else [(index, change)]:
            alive[each] = alive.get(each, 0) + count
    values = dict(zip(("B", "S", "R"), sizes, strict=True))
    return sum(tape.infos[i].size.evaluate(values) * n for i, n in alive.items() if tape.infos[i].saved_by)


@given(FAMILIES, STRUCTURES, SIZES)
@QUICK
def test_a_prediction_equals_its_structure(
    family: str, fields: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    setup = resolve({**fields, "micro_batch": sizes[0], "sequence_length": sizes[1], "rank": sizes[2]})
    spec = SPECS[family, 5]
    rank = setup.init_rank if setup.method == "adalora" and setup.init_rank else setup.rank
    assert (
        plan(spec, setup).peak.allocated_bytes == symbolic(spec, setup).totals(sizes[0], sizes[1], rank).peak
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("method", METHODS)
def test_javascript_and_numpy_and_python_agree(method: str) -> None:
    numpy = pytest.importorskip("numpy")
    structure = built("gemma2", 5, {"method": method})[1]
    cells = [(b, s, r) for b in (1, 2, 7) for s in (1, 39, 40, 41, 500) for r in (1, 16)]
    code = f"const f = {structure.javascript()};\nconst cells = {json.dumps(cells)};\n"
    code += "const text = o => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, String(v)]));\n"
    code += "console.log(JSON.stringify(cells.map(c => text(f(...c.map(BigInt))))));"
    answer = subprocess.run(["node", "-e", code], capture_output=True, text=True, timeout=60, check=True)
    columns = [numpy.array(column) for column in zip(*cells, strict=True)]
    grid = structure.grid(*columns)
    for i, (cell, found) in enumerate(zip(cells, json.loads(answer.stdout), strict=True)):
        totals = structure.totals(*cell)
        assert {name: int(size) for name, size in found.items()} == totals.moments
        assert {name: int(grid[name][i]) for name in totals.moments} == totals.moments
