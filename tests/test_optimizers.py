"""OPTIMIZERS: each row's bytes against the states that the real optimizer keeps after traced steps, and what
is said of other names.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.optimizers import OPTIMIZERS, WITHOUT_A_RULE

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 320,
    "intermediate_size": 400,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
"""Norms below the 8-bit floor, matrices on both sides of the paging floor, and sizes that no block divides.
"""


# bitsandbytes' tables of 256 fp32 values: one or two for the whole optimizer, which no tensor's row counts
SHARED = "qmap"


def states(prediction: Prediction) -> int:
    """Bytes of the states on the device at the end of the step."""
    rows = [
        row
        for row in prediction.moment("optimizer_step").rows
        if row.component == "optimizer_states" and SHARED not in row.name
    ]
    return sum(row.bytes for row in rows)


@pytest.mark.trace
@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "hf") for name in OPTIMIZERS), ("ademamix_8bit", "raw"), ("lion_8bit", "raw")],
)
def test_a_rows_bytes_are_those_of_the_optimizers_states(name: str, recipe: str) -> None:
    for library in ("transformers", "peft", "bitsandbytes"):
        pytest.importorskip(library)
    from memplan.planner.trace.engine import trace

    setup = resolve(
        {"method": "full", "recipe": recipe, "optimizer": name, "sequence_length": 32, "load": "random"}
    )
    planned, traced = plan(find(CONFIG).spec(), setup), trace(CONFIG, setup)
    assert states(planned) == states(traced)
    assert planned.host_bytes == traced.host_bytes
    assert (planned.host_bytes > 0) == OPTIMIZERS[name].paged


@pytest.mark.trace
def test_what_another_training_of_this_process_overrode_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer with an 8-bit optimizer leaves its embeddings' override in bitsandbytes' one manager, by
    place: also for another model.
    """
    bnb = pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    setup = resolve(
        {
            "method": "full",
            "recipe": "raw",
            "optimizer": "adamw_bnb_8bit",
            "sequence_length": 32,
            "load": "random",
        }
    )
    before = states(trace(CONFIG, setup))
    monkeypatch.setitem(bnb.optim.GlobalOptimManager.get_instance().index2config, (0, 0), {"optim_bits": 32})
    assert states(trace(CONFIG, setup)) == before


def test_names_of_transformers_are_rows_or_known_to_have_none() -> None:
    names = {name.value for name in pytest.importorskip("transformers.training_args").OptimizerNames}
    assert names <= {*OPTIMIZERS, *WITHOUT_A_RULE}
    assert not set(WITHOUT_A_RULE) & set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "galore_adamw",
            "transformers knows 'galore_adamw', memplan has no rule for it yet: nearest by name .*adamw",
        ),
        ("lomo", "transformers knows 'lomo', memplan has no rule for it yet: expected one of adafactor, "),
        ("adamw_troch", "unknown optimizer 'adamw_troch': did you mean adamw_torch"),
    ],
)
def test_a_real_optimizer_without_a_row_is_no_misspelling(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve({"optimizer": name})
