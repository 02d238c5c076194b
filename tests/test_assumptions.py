"""What a prediction assumed is said by both engines, and only where it applies."""

from __future__ import annotations

import pytest

from memplan.planner.formula.assumptions import assumptions, of_formula, warnings
from memplan.planner.formula.engine import plan
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve


def said(model: str, **fields: object) -> str:
    return " ".join(warnings(find(model).spec(), resolve(fields)))


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"method": "full", "weight_dtype": "float16"}, True),
        ({"method": "full", "weight_dtype": "float16", "trainable_dtype": "float32"}, False),
        ({"method": "full", "weight_dtype": "float16", "recipe": "raw"}, False),
        ({"method": "full", "weight_dtype": "bfloat16"}, False),
        ({"method": "lora", "weight_dtype": "float16"}, False),
        ({"method": "lora", "weight_dtype": "float16", "adapter_dtype": "float16"}, True),
    ],
)
def test_a_grad_scaler_refuses_float16_weights_that_are_trained(
    fields: dict[str, object], refused: bool
) -> None:
    assert ("unscale FP16" in said("llama-7b", **fields)) == refused


def test_the_grad_scaler_does_refuse_them() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight * 2).sum().float()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)


def test_experts_stay_unquantized_whatever_the_method() -> None:
    assert "expert weights stay" in said("mixtral-8x7b", method="qlora")
    assert "expert weights stay" not in said("mixtral-8x7b", method="lora")
    assert "expert weights stay" not in said("llama-7b", method="qlora")


def test_paged_states_can_move_to_the_card() -> None:
    spec = find("llama-7b").spec()
    assert any("paged" in text for text in assumptions(spec, resolve({"optimizer": "paged_adamw_8bit"})))
    assert not any("paged" in text for text in assumptions(spec, resolve({})))


def test_what_no_trainer_does_by_itself_is_said() -> None:
    spec = find("llama-7b").spec()
    said = {
        recipe: " ".join(assumptions(spec, resolve({"method": "adalora", "recipe": recipe})))
        for recipe in ("raw", "hf")
    }
    assert "update_and_allocate" in said["hf"] and "update_and_allocate" not in said["raw"]
    assert "update_and_allocate" not in " ".join(
        assumptions(spec, resolve({"method": "adalora", "importance_buffers": False}))
    )


def test_what_was_not_replayed_is_said() -> None:
    setup = resolve({"parallel": "zero2", "gpus": 2})
    assert any(text.startswith("zero2 so set up: reserved") for text in of_formula(setup, False))
    assert any("of this depth" in text for text in of_formula(resolve({}), False))
    assert not any("reserved" in text for text in of_formula(resolve({}), True))


def test_expandable_segments_move_what_the_formula_reserves() -> None:
    spec = find("llama-7b").spec()
    native, expandable = (
        plan(spec, resolve({"method": "qlora", "allocator": mode})) for mode in ("native", "expandable")
    )
    assert expandable.peak.reserved_bytes < native.peak.reserved_bytes


@pytest.mark.trace
def test_both_engines_say_what_they_assumed() -> None:
    pytest.importorskip("torch")
    from memplan.planner.trace.engine import trace

    model, setup = (
        find("smollm2-135m"),
        resolve({"sequence_length": 64, "method": "full", "weight_dtype": "float16"}),
    )
    formula, traced = plan(model.spec(), setup), trace(model.config, setup)
    assert set(formula.assumptions) - set(traced.assumptions) == set(of_formula(setup, True))
    assert set(traced.assumptions) <= set(formula.assumptions)
    assert set(formula.warnings) == set(traced.warnings) != set()
