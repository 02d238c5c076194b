"""How weights arrive: transformers' own order and converters, the copies that merging experts makes, the
orders that threads leave open.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.allocator.replay import replay
from memplan.planner.answers.verdict import judge, need_of, what_it_takes
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.run import loading, upcast
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.engine import trace
from memplan.planner.trace.events import load_orders
from memplan.planner.trace.events.log import ALLOC, FREE, READ, Log
from memplan.planner.trace.events.record import record

pytestmark = pytest.mark.trace

MIB = 2**20
PUBLISHED = Path(__file__).parents[2] / "shared" / "published" / "t4_lora_qlora.json"
WIDE: dict[
    str, Any
] = {  # 4-bit weights of 1.375 MiB: in the large pool, where another order leaves other remainders
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def setup_of(**fields: Any) -> Setup:
    return resolve(
        {"recipe": "raw", "micro_batch": 1, "sequence_length": 32, "targets": ("attention",), **fields}
    )


def log_of(config: dict[str, Any], setup: Setup) -> Log:
    return record(config, setup, target_of(setup), full=True)[0]


def live_bytes(log: Log) -> list[int]:
    """Bytes of tensors (before rounding) after each event of the load."""
    found, live = [], 0
    for kind, _, nbytes in log.events[log.marks[0].begin : log.marks[0].end]:
        live += nbytes if kind == ALLOC else -nbytes if kind == FREE else 0
        found.append(live)
    return found


# -- the library's order -------------------------------------------------------------------------------------


def test_tensors_are_read_in_the_natural_order_of_their_names_and_quantized_one_by_one() -> None:
    log = log_of(WIDE | {"num_hidden_layers": 11}, setup_of(method="qlora"))
    reads = [s for s in log.storages if s.op == READ]
    layers = [s.layer for s in reads if s.layer is not None]
    assert reads[0].module == "lm_head.weight" and reads[-1].module == "model.norm.weight"
    assert layers == sorted(layers) and layers[-1] == 10  # not 0, 1, 10, 2
    for one, other in zip(reads, reads[1:], strict=False):
        if one.died is not None and one.died < log.marks[0].end and one.layer is not None:
            assert one.died < other.born  # its original is gone before the next is read


def test_the_scales_are_allocated_before_the_packed_weights() -> None:
    """bitsandbytes 0.50 backends/cuda/ops.py quantize_4bit; its meta kernel returns them the other way
    round.
    """
    log = log_of(WIDE, setup_of(method="qlora", double_quant=False))
    made = [s for s in log.storages if s.op.startswith("bitsandbytes.quantize_4bit")]
    assert [s.dtype for s in made[:4]] == ["float32", "uint8", "float32", "uint8"]


def test_merging_experts_makes_two_more_copies_of_a_third_of_them() -> None:
    """Mixtral stores each expert's three matrices; X is one of the three over all experts of a layer. When
    gate and up are there, the layer's 3 X are read; stacking gate and up frees their sources one after the
    other, and joining the two makes 2 X beside them: 5 X where 3 X remain. In the last layer all of the model
    is there but what is read later.
    """
    setup = setup_of(method="lora", load="pretrained")
    log = log_of(EXPERTS, setup)
    third = 4 * 128 * 256 * 2  # experts x hidden x intermediate, bfloat16
    live = live_bytes(log)
    later = sum(
        s.nbytes for s in log.storages if s.op == READ and s.born > live.index(max(live))
    )  # attention, norms, router
    buffers = sum(s.nbytes for s in log.storages if s.name.endswith("inv_freq"))
    assert max(live) == live[-1] - buffers - later + 2 * third
    assert {s.nbytes for s in log.storages if s.op == "aten.stack.default"} == {third}
    assert (
        trace(EXPERTS, setup).moment("load_peak").allocated_bytes
        > trace(EXPERTS, setup).moment("load").allocated_bytes + third
    )


@pytest.mark.parametrize("load", ["random", "pretrained"])
def test_however_they_arrive_the_same_weights_stay(load: str) -> None:
    log = log_of(EXPERTS, setup_of(method="lora", load=load))
    layer = (
        2 * 128 * 128 + 2 * 64 * 128 + 4 * 128 + 3 * 4 * 128 * 256 + 2 * 128
    )  # attention, router, experts, norms
    held = (
        2 * (2 * 512 * 128 + 2 * layer + 128) + 2 * 16 * 4
    )  # bfloat16; two fp32 tables of inverse frequencies
    assert (
        sum(
            s.nbytes
            for s in log.storages
            if s.component == "weights" and s.died is None and ".lora_" not in s.name
        )
        == held
    )


def test_what_the_library_cannot_convert_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise ValueError("no way back")

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", refuse)
    setup = setup_of(method="lora", load="pretrained")
    assert trace(EXPERTS, setup).warnings == (loading.NOT_MERGED,)
    assert trace(WIDE, setup).warnings == ()  # nothing to convert


def test_an_older_peft_leaves_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def older(
        model: Any, use_gradient_checkpointing: bool = True, gradient_checkpointing_kwargs: Any = None
    ) -> Any:
        return model

    assert (
        any(kind == "empty_cache" for kind, _, _ in log_of(WIDE, setup_of(method="qlora")).events)
        == upcast.clears_cache()
    )
    monkeypatch.setattr("peft.prepare_model_for_kbit_training", older)
    assert not any(kind == "empty_cache" for kind, _, _ in log_of(WIDE, setup_of(method="qlora")).events)


# -- orders --------------------------------------------------------------------------------------------------

EVENT = st.tuples(st.just(ALLOC), st.integers(), st.integers(1, 100))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0, 1), st.integers(0, 9))
def test_an_order_keeps_every_event_and_what_each_waits_for(work: list[int], ahead: float, seed: int) -> None:
    reads = tuple((ALLOC, number, 1) for number in range(len(work)))
    done = tuple(
        tuple((ALLOC, 1000 + 10 * number + i, 1) for i in range(count)) for number, count in enumerate(work)
    )
    made = load_orders.reordered(load_orders.Load(0, 0, reads, done), ahead, Random(seed))
    assert sorted(made) == sorted([*reads, *(event for events in done for event in events)])
    place = {event[1]: index for index, event in enumerate(made)}
    own = [event[1] for events in done for event in events]
    assert [place[key] for key in own] == sorted(
        place[key] for key in own
    )  # the main thread's work keeps its order
    for number, events in enumerate(done):
        assert all(place[event[1]] > max(place[key] for key in range(number + 1)) for event in events)
    finished = [key for _, key, _ in made if key < 1000]
    assert all(
        finished.index(key) >= key - load_orders.WORKERS + 1 for key in range(len(work))
    )  # a thread is busy with at most one


def test_a_band_holds_the_prediction_and_is_as_wide_as_the_orders() -> None:
    found = trace(WIDE, setup_of(method="qlora"))
    band = found.extra["bands"]
    predicted = {
        "load": found.moment("load").allocated_bytes,
        "load_peak": found.moment("load_peak").allocated_bytes,
        "step_peak": found.step_peak.allocated_bytes,
    }
    for name, nbytes in predicted.items():
        assert band[name]["low_bytes"] <= nbytes <= band[name]["high_bytes"], name
    assert band["load"]["low_bytes"] < band["load"]["high_bytes"]
    assert (
        band["load_peak"]["high_bytes"] > found.moment("load_peak").allocated_bytes + 8 * MIB
    )  # threads far ahead: originals pile up
    assert trace(WIDE, setup_of(method="qlora")).extra["bands"] == band  # the same orders every time


@pytest.mark.parametrize(
    "fields", [{"method": "lora", "load": "pretrained"}, {"method": "qlora", "load": "random"}]
)
def test_no_band_where_no_order_is_open(fields: dict[str, Any]) -> None:
    assert "bands" not in trace(WIDE, setup_of(**fields)).extra


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published runs are not here")
def test_published_loads_of_one_quantized_model_lie_in_its_band() -> None:
    """Six loads of one model measured 1070 to 1078 MiB; the batch was made after they were measured."""
    runs = [
        run
        for run in json.loads(PUBLISHED.read_text())
        if "TinyLlama" in run["model"] and run["method"] == "qlora"
    ]
    measured = {run["measured_mib"]["after_load"] for run in runs}
    setup = setup_of(
        method="qlora",
        gpu="t4",
        weight_dtype="float16",
        double_quant=False,
        rank=32,
        sequence_length=512,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    )
    log = record(find("tinyllama-1.1b").config, setup, target_of(setup))[0]
    first = min(mark.begin for mark in log.marks if mark.step >= 0)
    band = load_orders.bands(log, setup, replay(log.events))
    assert band is not None and len(measured) == 6
    low, high = ((band["load"][end] - 512 * 8) / MIB for end in ("low_bytes", "high_bytes"))
    assert high - low < 0.02 * low
    assert sum(low <= mib <= high for mib in measured) == 6, (low, high, first)


# -- the verdict where only expandable segments help ---------------------------------------------------------


def test_a_card_that_only_expandable_segments_save_is_tight() -> None:
    """Segments of 1,200 MiB that attention's scores left cannot serve the 3,840 MiB of the loss, and what is
    left of them in use keeps them from being released.
    """
    setup = resolve({"method": "qlora", "micro_batch": 20, "sequence_length": 1024, "gpu": "t4"})
    found = trace(find("smollm2-360m").config, setup)
    card = find_gpu("t4")
    assert (
        found.peak.allocated_bytes
        < card.usable_bytes
        < found.smallest_capacity_bytes
        < found.peak.device_bytes
    )
    assert found.peak.allocated_bytes < found.extra["expandable_capacity_bytes"] <= card.usable_bytes
    only = "only with PYTORCH_ALLOC_CONF=expandable_segments"
    assert judge(found, card).verdict == "tight" and only in what_it_takes(found, card)
    without = replace(found, extra={})
    assert not need_of(without).survives(card) and need_of(found).survives(card)
    assert "only if the prediction is too high" in what_it_takes(without, card)
    assert only not in what_it_takes(found, find_gpu("l4"))
    assert judge(found, find_gpu("a100-40gb")).verdict == "fits"
