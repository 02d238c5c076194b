"""The op audit: ops of a traced step, replayed with real tensors; what their kernels hide is compared with
the table.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("peft")

import torch

from memplan.planner.inputs.setup import resolve
from memplan.profiler.ops import Like, audit, shapes_of

pytestmark = pytest.mark.trace
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    setup = resolve(
        {"method": "qlora", "recipe": "raw", "device": "cpu", "sequence_length": 16, "load": "random"}
    )
    return audit(LLAMA, setup, "tiny")


def test_every_op_of_the_step_is_replayed(document: dict[str, Any]) -> None:
    assert document["schema"] == "memplan.ops/1"
    assert document["environment"]["device"] == "cpu"
    names = {row["op"] for row in document["ops"]}
    assert {
        "aten.mm.default",
        "bitsandbytes.gemm_4bit.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
    } <= names
    assert len(document["skipped"]) <= 2, document["skipped"]
    assert all(row["reason"] for row in document["skipped"])


def test_hidden_bytes_are_what_the_table_says_where_it_says_something(document: dict[str, Any]) -> None:
    """The 4-bit product dequantizes its weights inside one op: the table knows them, the replay finds at
    least them.
    """
    products = [row for row in document["ops"] if row["op"] == "bitsandbytes.gemm_4bit.default"]
    assert products
    for row in products:
        assert 0 < row["known_bytes"] <= row["hidden_bytes"]


def test_casts_to_the_common_dtype_hide_what_the_table_says() -> None:
    setup = resolve(
        {"method": "lora", "recipe": "raw", "device": "cpu", "sequence_length": 16, "load": "random"}
    )
    casts = [
        row for row in audit(LLAMA, setup)["ops"] if row["op"] == "aten.add.Tensor" and row["known_bytes"]
    ]
    assert casts, "bfloat16 + float32 makes a float32 copy on the CPU"
    for row in casts:
        assert row["known_bytes"] == pytest.approx(row["hidden_bytes"], abs=64)


def test_outputs_are_no_hidden_bytes(document: dict[str, Any]) -> None:
    silu = next(row for row in document["ops"] if row["op"] == "aten.silu.default")
    assert (silu["hidden_bytes"], silu["output_bytes"]) == (0, 16 * 128 * 4)


def test_a_description_stands_for_a_tensor() -> None:
    expanded = Like((4, 3), (0, 1), torch.float32).make("cpu")
    assert (expanded.shape, expanded.stride(), expanded.untyped_storage().nbytes()) == ((4, 3), (0, 1), 12)
    assert Like((2,), (1,), torch.int64).make("cpu").tolist() == [0, 0]
    assert Like((2,), (1,), torch.bool).make("cpu").all()
    two = Like((2, 3), (3, 1), torch.bfloat16)
    assert shapes_of(((two, two), {"out": Like((5,), (1,), torch.int64)})) == "2x bfloat16[2, 3] int64[5]"
