"""One rank under ZeRO: partitions and buckets by hand arithmetic after DeepSpeed's rules, and the coordinator
of stage 3 by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.planner.formula.engine import plan, symbolic
from memplan.planner.formula.sharding.zero3_prefetch import Limits, Parameter, fetched
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
NORMS = 64 * 11
MATRICES = 2 * 1003 * 64 + 5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64)


def predicted(parallel: str, ranks: int = 3, **fields: Any) -> Prediction:
    given = {
        "method": "full",
        "gpus": ranks,
        "parallel": parallel,
        "sequence_length": 16,
        "zero_reduce_bucket": 20_000,
        "zero_persistence_threshold": 100,
        "device": "cpu",
        **fields,
    }
    return plan(find(MODEL).spec(), resolve(given))


def component(found: Prediction, moment: str, name: str) -> int:
    return found.moment(moment).components[name]


def row(found: Prediction, moment: str, name: str) -> int:
    return sum(r.bytes for r in found.moment(moment).rows if r.name == name)


def flat(elements: int, ranks: int) -> int:
    """Elements of one partition: padded to a multiple of 2 N, divided."""
    return -(-elements // (2 * ranks)) * 2


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("parallel", ["zero1", "zero2"])
def test_stages_1_and_2_divide_masters_and_states_of_each_group(parallel: str, ranks: int):
    found = predicted(parallel, ranks)
    partition = flat(MATRICES, ranks) + flat(NORMS, ranks)
    steps = 2 * 4  # one counter a group
    assert component(found, "optimizer_step", "optimizer_states") == 3 * 4 * partition + steps
    padding = partition * ranks - MATRICES - NORMS
    buffers = 2 * 4 * 8
    assert component(found, "optimizer_step", "weights") == 2 * (MATRICES + NORMS + padding) + buffers


# deepspeed 0.19.8 itself, run on CPU processes over gloo: this model in bfloat16, torch's AdamW in two groups
# (matrices; norms), the elements in `single_partition_of_fp32_groups`, or in `fp32_partitioned_groups_flat`,
# `grad_partitions_flat_buffer` and all `ds_tensor`.
DEEPSPEED = {
    ("zero1", 2): (177472, 352),
    ("zero2", 2): (177472, 352),
    ("zero2", 3): (118316, 236),
    ("zero3", 2): (177472, 352),
    ("zero3", 3): (118336, 242),
}


@pytest.mark.parametrize(("parallel", "ranks"), DEEPSPEED)
def test_partitions_are_deepspeeds_own(parallel: str, ranks: int):
    decayed, rest = DEEPSPEED[parallel, ranks]
    found = predicted(parallel, ranks)
    for name, elements in (("decayed", decayed), ("not decayed", rest)):
        assert row(found, "forward", f"fp32 partition ({name})") == 4 * elements
        assert row(found, "forward", f"fp32 partition ({name}) exp_avg") == 4 * elements
    if parallel == "zero3":
        assert component(found, "forward", "gradients") == 2 * (decayed + rest)
        assert (
            component(found, "forward", "weights") == 2 * (decayed + rest) + 2 * NORMS + 2 * 4 * 8
        )  # persistent: 704 elements


# The same processes' third step, every storage alive sampled after each operation: forward, backward, step of
# the last rank (rank 0 where stage 1 was sampled, whose partition's whole tensors are smaller). B = 2, S =
# 16, eager attention, nothing prefetched or kept in stage 3.
PEAKS = {"zero2": (3713188, 3932572, 4286804), "zero3": (3754601, 3818273, 3950385)}
FIRST_RANK = (3713188, 3953816, 4267348)
HEAD = 2 * 1003 * 64
MASK = 2 * 16 * 8  # the sampled batch had none


def step(found: Prediction) -> tuple[int, ...]:
    return tuple(
        found.moment(moment).allocated_bytes - MASK for moment in ("forward", "backward", "optimizer_step")
    )


def test_peaks_are_those_of_deepspeeds_processes():
    given = {"micro_batch": 2, "attention": "eager", "zero_prefetch_bucket": 0, "zero_reuse_distance": 0}
    for ours, theirs in zip(step(predicted("zero2", 2, **given)), PEAKS["zero2"], strict=True):
        assert abs(ours - theirs) <= 0.004 * theirs
    across = 376448 - 356992  # gradients of the partition: the last rank's whole tensors, rank 0's
    first = step(predicted("zero1", 2, **given))
    for ours, theirs in zip((first[0], first[1] - across, first[2] - across), FIRST_RANK, strict=True):
        assert abs(ours - theirs) <= 0.001 * theirs
    forward, backward, stepped = step(predicted("zero3", 2, **given))
    assert abs(stepped - PEAKS["zero3"][2]) <= 0.001 * stepped
    for ours, theirs in ((forward, PEAKS["zero3"][0]), (backward, PEAKS["zero3"][1])):
        assert (
            0 <= ours - theirs <= HEAD * 1.01
        )  # ours counts the most that is gathered in a pass all through it: here the head


def test_stage_1_keeps_whole_gradients_until_the_backward_is_done_and_stage_2_does_not():
    first, second = predicted("zero1"), predicted("zero2")
    assert component(first, "backward", "gradients") >= 2 * (MATRICES + NORMS)
    largest = 2 * 1003 * 64
    partition = 2 * (flat(MATRICES, 3) + flat(NORMS, 3))
    assert component(second, "backward", "gradients") <= partition + 2 * 2 * largest + 2 * NORMS
    assert row(first, "backward", "reduce bucket") == row(second, "backward", "reduce bucket") == 2 * 20_000


def test_the_step_sees_fp32_gradients_of_a_partition():
    found = predicted("zero2", 8)
    assert row(found, "optimizer_step", "fp32 gradients") == 4 * flat(MATRICES, 8)
    assert row(found, "optimizer_step", "flat gradients") == 2 * flat(MATRICES, 8)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_stage_3_divides_each_tensor_and_keeps_small_ones_whole(ranks: int):
    found = predicted("zero3", ranks)
    shapes = [(1003, 64)] * 2 + [(64, 64), (64, 64), (32, 64), (32, 64), (172, 64), (172, 64), (64, 172)] * 5
    matrices = sum(-(-a * b // ranks) for a, b in shapes)
    norms = 11 * -(-64 // ranks)
    assert component(found, "load", "weights") == 2 * (matrices + norms) + 2 * NORMS + 2 * 4 * 8
    assert component(found, "optimizer_step", "optimizer_states") == 3 * 4 * (matrices + norms) + 2 * 4
    assert component(found, "forward", "gradients") == 2 * (matrices + norms)
    assert row(found, "forward", "reduce bucket") == 2 * 20_000


def test_auto_is_what_transformers_puts_in_its_place():
    hidden = 64
    found = predicted(
        "zero3", 2, zero_reduce_bucket="auto", zero_prefetch_bucket="auto", zero_persistence_threshold="auto"
    )
    assert row(found, "forward", "reduce bucket") == 2 * hidden * hidden
    assert any(r.name == "model.norm.weight (whole)" for r in found.moment("load").rows)
    assert not any(
        r.name.startswith("model.layers.*.self_attn.k_proj.weight (whole)") for r in found.moment("load").rows
    )


def test_offloading_moves_bytes_to_the_host():
    here, there = predicted("zero2"), predicted("zero2", offload="optimizer")
    assert component(there, "optimizer_step", "optimizer_states") == 0
    assert there.host_bytes > here.host_bytes + component(here, "optimizer_step", "optimizer_states")
    all_there = predicted("zero3", offload="all")
    assert component(all_there, "load", "weights") == 2 * NORMS + 2 * 4 * 8
    fsdp = predicted("fsdp", offload="all")
    assert (
        component(fsdp, "optimizer_step", "weights") == 2 * 4 * 8
        and component(fsdp, "optimizer_step", "gradients") == 0
    )
    whole = predicted("fsdp").moment("optimizer_step").components
    assert fsdp.host_bytes == whole["weights"] + whole["gradients"] + whole["optimizer_states"] - 2 * 4 * 8


def test_the_coordinator_by_hand():
    a, b, c = (Parameter(n) for n in (100, 50, 10))
    order = [([(a,), (b,), (c,)], False)]
    alone = fetched(order, Limits(prefetch=0, live=10**9, reuse=0))
    assert (alone.forward, alone.backward) == (100, 100)  # one module at a time
    kept = fetched(order, Limits(prefetch=0, live=10**9, reuse=10**9))
    assert (kept.forward, kept.backward) == (160, 160)  # everything is used again soon
    near = fetched(order, Limits(prefetch=0, live=10**9, reuse=61))
    assert (near.forward, near.backward) == (
        100,
        100,
    )  # b and c stay for the backward, 20 elements on; a, 120 on, goes
    ahead = fetched(order, Limits(prefetch=60, live=10**9, reuse=0))
    assert (
        ahead.forward == 60 + 60 + 100
    )  # b and c copied out of their flat buffer, which waits for c; a ahead for the backward
    assert fetched(order, Limits(prefetch=60, live=50, reuse=0)).forward == 100  # no room to look ahead


def test_a_checkpointed_layer_is_gathered_again():
    layer = [(Parameter(100),), (Parameter(50),)]
    limits = Limits(prefetch=0, live=10**9, reuse=0)
    assert fetched([(layer, True)], limits).backward == fetched([(layer, False)], limits).backward == 100


@pytest.mark.parametrize("parallel", ["fsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
def test_no_row_is_negative_and_every_evaluator_agrees(parallel: str, method: str):
    numpy = pytest.importorskip("numpy")
    for accumulation in (1, 4):
        found = predicted(
            parallel,
            method=method,
            gradient_accumulation=accumulation,
            device="cuda",
            checkpointing="non_reentrant",
        )
        for moment in found.moments:
            assert all(r.bytes > 0 and r.count > 0 for r in moment.rows), moment.moment
        structure = symbolic(find(MODEL).spec(), found.setup)
        grid = structure.grid(numpy.array([1, 2]), numpy.array([16, 16]), found.setup.rank)
        assert int(grid["peak"][0]) == found.peak.allocated_bytes
        assert {name: size for name, size in structure.totals(1, 16, found.setup.rank).moments.items()} == {
            m.moment: m.allocated_bytes for m in found.moments
        }


def test_sharing_never_needs_more_than_holding_everything_for_full_training_of_a_large_model():
    spec = find("llama-7b").spec()

    def peak(parallel: str, ranks: int) -> int:
        setup = resolve(
            {"method": "full", "gpus": ranks, "parallel": parallel, "checkpointing": "non_reentrant"}
        )
        return plan(spec, setup).peak.allocated_bytes

    sizes = {parallel: peak(parallel, 64) for parallel in ("zero1", "zero2", "zero3", "fsdp")}
    assert sizes["fsdp"] < sizes["zero3"] < sizes["zero2"] < sizes["zero1"] < peak("ddp", 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "4-bit storage that is cast": (
        {"method": "qlora", "parallel": "fsdp", "quant_storage": "float32"},
        "quant_storage=bfloat16",
    ),
    "4-bit uint8 under stage 3": ({"method": "qlora", "parallel": "zero3"}, "quant_storage=bfloat16"),
    "int8 under fsdp": ({"method": "lora", "parallel": "fsdp", "quant_type": "int8"}, "ddp"),
    "adafactor's means of a part": ({"parallel": "fsdp", "optimizer": "adafactor"}, "adamw"),
    "inference": ({"method": "inference", "parallel": "zero3"}, "parallel=none"),
    "adalora": ({"method": "adalora", "parallel": "zero2"}, "ddp"),
    "fsdp offloads all or nothing": ({"parallel": "fsdp", "offload": "optimizer"}, "all"),
    "nothing to offload with ddp": ({"parallel": "ddp", "offload": "all"}, "none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_strategy_cannot_do_is_refused_with_the_next_move(name: str):
    given, move = REFUSED[name]
    with pytest.raises(UsageError, match=move):
        predicted(**given)


def test_4_bit_weights_are_shared_only_where_their_storage_is_the_others_dtype():
    spec = find("llama-7b").spec()

    def weights(**fields: Any) -> int:
        setup = resolve({"method": "qlora", "kbit_prepare": False, **fields})
        return plan(spec, setup).moment("load").components["weights"]

    alone = weights()
    whole = weights(gpus=8, parallel="fsdp")
    shared = weights(gpus=8, parallel="fsdp", quant_storage="bfloat16")
    assert alone * 0.8 < whole < alone and shared < alone * 0.35
    assert weights(gpus=8, parallel="ddp") == alone


def test_ddp_copies_gradients_and_bucket_views_take_their_place():
    alone, copies = predicted("none", 1), predicted("ddp", 2)
    views = predicted("ddp", 2, gradient_as_bucket_view=True)
    gradients = 2 * (MATRICES + NORMS)
    assert (
        copies.moment("optimizer_step").allocated_bytes - alone.moment("optimizer_step").allocated_bytes
        == gradients
    )
    assert views.moment("optimizer_step").allocated_bytes == alone.moment("optimizer_step").allocated_bytes
    assert views.moment("load").allocated_bytes - alone.moment("load").allocated_bytes == gradients
