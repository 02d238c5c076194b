"""Resident parameters against numbers that were derived by hand or are public."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.parameters import ParameterTable
from memplan.planner.formula.resident.states import BLOCK_8BIT, FLOOR_8BIT, FLOOR_PAGED
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

GIB = 2**30


def parameter_table(model: str, **fields: Any) -> ParameterTable:
    return ParameterTable(find(model).spec(), resolve(fields))


def weight_bytes(found: ParameterTable, rank: int = 16) -> int:
    return sum(row.size.evaluate({"R": rank}) for row in found.weight_rows())


def state_bytes(found: ParameterTable, rank: int = 16) -> int:
    return sum(row.size.evaluate({"R": rank}) for row in found.state_rows())


def test_opt_350m_lora_as_peft_prints_it() -> None:
    found = parameter_table("opt-350m", method="lora", rank=8, targets="q_proj,v_proj")
    assert found.trainable_parameters().evaluate({"R": 8}) == 786_432
    assert found.total_parameters().evaluate({"R": 8}) == 331_982_848
    assert found.checkpoint_bytes().evaluate({"R": 8}) == 786_432 * 4


def test_llama_2_7b_in_16_and_4_bit() -> None:
    full = parameter_table("llama-2-7b", method="full")
    assert full.trainable_parameters().constant == 6_738_415_616
    buffers = sum(row.size.constant or 0 for row in full.weight_rows() if row.why == "a buffer")
    assert weight_bytes(full) == 2 * 6_738_415_616 + buffers
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    qlora = parameter_table("llama-2-7b", method="qlora")
    packed = sum(row.size.constant or 0 for row in qlora.weight_rows() if row.dtype == "nf4")
    assert packed == linear // 2


def test_double_quantization_saves_0_373_bits_a_parameter() -> None:
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    once, twice = (
        sum(
            row.size.constant or 0
            for row in parameter_table("llama-2-7b", method="qlora", double_quant=double).weight_rows()
            if row.why.startswith(("absmax", "one per 256"))
        )
        for double in (False, True)
    )
    assert once * 8 / linear == pytest.approx(32 / 64)
    assert twice * 8 / linear == pytest.approx(8 / 64 + 32 / (64 * 256))
    assert (once - twice) * 8 / linear == pytest.approx(0.373, abs=5e-4)


@pytest.mark.parametrize(("recipe", "gib"), [("paper", 5.31), ("raw", 7.27)])
def test_llama_3_8b_static_weights_by_recipe(recipe: str, gib: float) -> None:
    """NF4 with double quantization and bf16 embeddings, or fp32 ones after k-bit preparation (survey's
    arithmetic, 0.01 GiB).
    """
    found = parameter_table("llama-3.1-8b", method="qlora", recipe=recipe)
    base = sum(row.size.constant or 0 for row in found.weight_rows() if not row.why.startswith("adapter"))
    assert base / GIB == pytest.approx(gib, abs=0.015)


def test_fp32_adapters_cost_16_bytes_a_parameter() -> None:
    found = parameter_table("llama-2-7b", method="lora", recipe="raw")
    trained = found.trainable_parameters().evaluate({"R": 16})
    assert state_bytes(found) == 8 * trained
    adapters = sum(
        row.size.evaluate({"R": 16}) for row in found.weight_rows() if row.why.startswith("adapter")
    )
    assert adapters == 4 * trained


def test_adalora_importance_costs_12_bytes_a_parameter_more() -> None:
    with_, without = (
        parameter_table("llama-2-7b", method="adalora", recipe="raw", importance_buffers=on)
        for on in (True, False)
    )
    linears = 32 * 7
    trained = (
        with_.trainable_parameters().evaluate({"R": 12}) - linears
    )  # ranknum is trained, without importance
    assert state_bytes(with_, 12) - state_bytes(without, 12) == 12 * trained


def test_8_bit_states_have_a_floor_and_block_constants() -> None:
    found = parameter_table("llama-2-7b", method="full", optimizer="adamw_bnb_8bit")
    by_name = {row.name: row for row in found.state_rows()}
    norm = by_name["model.norm.weight state1"]
    assert norm.shape == (FLOOR_8BIT,) and norm.dtype == "uint8"  # 4,096 elements are not below the floor
    small = parameter_table("opt-350m", method="full", optimizer="adamw_bnb_8bit")
    bias = next(row for row in small.state_rows() if row.name.endswith("q_proj.bias state1"))
    assert bias.dtype == "float32" and bias.shape == (1024,)
    head = by_name["lm_head.weight state1 constants"]
    assert head.shape == (32000 * 4096 // BLOCK_8BIT,)


def test_paged_states_below_the_floor_stay_on_the_device() -> None:
    found = parameter_table(
        "llama-2-7b", method="qlora", optimizer="paged_adamw_32bit", rank=16, targets="q_proj,v_proj"
    )
    assert FLOOR_PAGED > 16 * 4096
    assert found.host_rows() == [] and state_bytes(found) == 8 * found.trainable_parameters().evaluate(
        {"R": 16}
    )
    wide = parameter_table(
        "llama-2-7b", method="qlora", optimizer="paged_adamw_32bit", rank=64, targets="q_proj,v_proj"
    )
    assert (
        state_bytes(wide, 64) == 0
        and sum(row.size.evaluate({"R": 64}) for row in wide.host_rows()) == 8 * 64 * 2 * 2 * 4096 * 32
    )


def test_mixtures_keep_their_experts_in_16_bit_under_nf4() -> None:
    found = parameter_table("mixtral-8x7b", method="qlora", recipe="paper", targets="attention")
    experts = [row for row in found.weight_rows() if ".experts." in row.name]
    assert experts and all(row.dtype == "bfloat16" for row in experts)
    prepared = parameter_table("mixtral-8x7b", method="qlora", recipe="raw", targets="attention")
    assert all(row.dtype == "float32" for row in prepared.weight_rows() if ".experts." in row.name)


def test_freeze_trains_the_last_layers_alone() -> None:
    found = parameter_table("llama-2-7b", method="freeze", trainable_layers=2)
    assert found.trainable_parameters().constant == 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096)


@pytest.mark.parametrize("target", ["q_prj", "embed_tokens", "nothing"])
def test_a_target_that_matches_nothing_is_named(target: str) -> None:
    with pytest.raises(UsageError, match=target):
        parameter_table("llama-2-7b", method="lora", targets=target)


def test_modules_to_save_are_trained_copies() -> None:
    plain = parameter_table("llama-2-7b", method="lora", recipe="raw")
    saved = parameter_table("llama-2-7b", method="lora", recipe="raw", modules_to_save="lm_head")
    assert (saved.trainable_parameters() - plain.trainable_parameters()) == 32000 * 4096
    assert weight_bytes(saved) - weight_bytes(plain) == 2 * 32000 * 4096
