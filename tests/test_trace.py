"""The trace engine: what a prediction adds up to, what the survey's facts come out as, and what bad input
says.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from memplan.planner.allocator.replay import replay
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.errors import UsageError
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.engine import trace
from memplan.planner.trace.events.record import record
from memplan.profiler.cases import predicted_step

pytestmark = pytest.mark.trace

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def setup_of(**fields: Any) -> Setup:
    return resolve({"recipe": "raw", "micro_batch": 2, "sequence_length": 64, "load": "random", **fields})


def held(setup: Setup, *suffixes: str) -> int:
    """Bytes (of tensors, before rounding) of what the run keeps whose name ends so, at the end of the second
    step.
    """
    log, _ = record(SMALL, setup, target_of(setup))
    return sum(s.nbytes for s in log.storages if s.died is None and s.name.endswith(suffixes))


@pytest.fixture(scope="module")
def lora() -> Prediction:
    return trace(SMALL, setup_of(method="lora"))


def test_rows_add_up_to_the_allocators_counter_at_every_moment(lora: Prediction) -> None:
    log, _ = record(SMALL, lora.setup, target_of(lora.setup))
    run = replay(log.events)
    assert lora.peak.allocated_bytes == max(run.allocated)
    for mark in (mark for mark in log.marks if mark.step == 1):
        moment = lora.moment(mark.moment)
        assert moment.allocated_bytes == run.peaks(mark.begin, mark.end).allocated
        assert sum(moment.components.values()) == moment.allocated_bytes
        assert set(moment.components) == set(COMPONENTS)


def test_every_component_is_found(lora: Prediction) -> None:
    assert all(any(moment.components[component] > 0 for moment in lora.moments) for component in COMPONENTS)


def test_two_steps_are_enough_and_the_second_is_steady(lora: Prediction) -> None:
    marks = {(mark["step"], mark["moment"]) for mark in lora.extra["timeline"]["moments"]}
    assert {(0, "forward"), (1, "forward"), (1, "backward"), (1, "optimizer_step")} <= marks
    assert max(lora.extra["timeline"]["allocated"]) == lora.peak.allocated_bytes


def test_adalora_costs_twelve_bytes_a_parameter_over_lora() -> None:
    """Importance and its two averages in fp32, from the storages of PEFT's own RankAllocator (peft 0.21
    tuners/adalora/layer.py).
    """
    setup = setup_of(method="adalora", init_rank=8, target_rank=4)
    log, _ = record(SMALL, setup, target_of(setup))
    kept = [s for s in log.storages if s.died is None and s.component == "optimizer_states"]
    importance = sum(s.nbytes for s in kept if s.name.startswith(("ipt.", "exp_avg_ipt.", "exp_avg_unc.")))
    adapters = (
        sum(
            s.nbytes
            for s in log.storages
            if s.died is None and s.component == "weights" and ".lora_" in s.name
        )
        // 4
    )
    assert importance == 12 * adapters > 0
    assert held(setup.replaced(importance_buffers=False), "ipt", "exp_avg_unc") == 0


def test_double_quantization_saves_0_373_bits_a_parameter() -> None:
    """8 bits a block of 64 and 32 a block of 256 x 64, in place of 32 a block of 64 (Dettmers et al. 2023,
    section 3).
    """
    sizes = {}
    big = {**SMALL, "hidden_size": 2048, "intermediate_size": 4096, "head_dim": 512}
    for double in (False, True):
        setup = setup_of(method="qlora", double_quant=double)
        log, _ = record(big, setup, target_of(setup))
        weights = [s for s in log.storages if s.died is None and s.component == "weights"]
        sizes[double] = sum(
            s.nbytes for s in weights if s.name.endswith(("weight.absmax", "weight.nested_absmax"))
        )
        packed = sum(s.nbytes for s in weights if s.name.endswith("weight") and s.dtype == "uint8")
    saved = 8 * (sizes[False] - sizes[True]) / (2 * packed)
    assert math.isclose(saved, 32 / 64 - 8 / 64 - 32 / (64 * 256), rel_tol=1e-6) and round(saved, 3) == 0.373


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full", "optimizer": "adamw_bnb_8bit"},
        {"method": "full", "optimizer": "adafactor"},
        {"method": "full", "optimizer": "sgd"},
        {"method": "full", "optimizer": "lion_8bit"},
        {"method": "lora", "gradient_accumulation": 3},
        {"method": "lora", "retain_outputs": True},
        {"method": "lora", "zero_grad": "after_step"},
        {"method": "lora", "padded": True},
        {"method": "freeze"},
        {"method": "dora"},
        {"method": "ia3"},
        {"method": "prompt-tuning"},
        {"method": "prefix-tuning"},
        {"method": "adapter"},
        {"method": "lora-fa"},
        {"method": "inference"},
        {"method": "qlora", "quant_type": "int8"},
        {"method": "qlora", "quant_type": "fp4"},
        {"method": "full", "checkpointing": "reentrant"},
        {"method": "full", "checkpointing": "non_reentrant", "checkpoint_every": 2},
        {"method": "full", "autocast": "bfloat16"},
        {"method": "lora", "attention": "eager"},
        {"method": "lora", "attention": "flash_attention_2"},
        {"method": "lora", "attention": "sdpa-math"},
        {"method": "lora", "gpu": "t4", "weight_dtype": "float16"},
        {"method": "lora", "gpu": "h100-80gb"},
        {"method": "lora", "recipe": "hf"},
        {"method": "qlora", "recipe": "trl"},
        {"method": "qlora", "recipe": "axolotl"},
        {"method": "full", "recipe": "llamafactory"},
        {"method": "lora", "packed_documents": 4},
        {"method": "lora", "allocator": "expandable"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_every_setting_runs_and_adds_up(fields: dict[str, Any]) -> None:
    found = trace(SMALL, setup_of(**fields))
    assert found.peak.allocated_bytes >= max(moment.allocated_bytes for moment in found.moments) > 0
    assert found.peak.reserved_bytes >= found.peak.allocated_bytes
    assert (
        found.smallest_capacity_bytes is not None and found.smallest_capacity_bytes <= found.peak.device_bytes
    )


@pytest.mark.parametrize("micro_steps", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora", "recipe": "hf", "checkpointing": "reentrant"},
        {"method": "full", "recipe": "raw", "retain_outputs": True, "zero_grad": "after_step"},
        {"method": "adalora", "recipe": "hf", "init_rank": 4, "target_rank": 2, "loss": "chunked"},
    ],
    ids=lambda fields: fields["method"],
)
def test_two_micro_steps_hold_what_all_of_them_hold(fields: dict[str, Any], micro_steps: int) -> None:
    """Every moment's bytes by component, both peaks, what is reserved, and the smallest card: equal."""
    setup = setup_of(**fields, gradient_accumulation=micro_steps)
    quick, whole = trace(SMALL, setup), trace(SMALL, setup, full=True)
    for moment in whole.moments:
        mine = quick.moment(moment.moment)
        assert (mine.allocated_bytes, mine.components) == (moment.allocated_bytes, moment.components)
    assert (quick.peak, quick.step_peak) == (whole.peak, whole.step_peak)
    assert quick.smallest_capacity_bytes == whole.smallest_capacity_bytes


def test_the_events_of_further_micro_steps_are_the_seconds() -> None:
    """What a measurement of the whole step is laid beside, event by event."""
    setup = setup_of(method="lora", recipe="hf", gradient_accumulation=5)
    quick, whole = (record(SMALL, setup, target_of(setup), full=full)[0] for full in (False, True))
    assert len(whole.events) > 1.5 * len(quick.events), "all five are run"
    assert predicted_step(quick, 5) == predicted_step(whole, 5)
    asked = setup_of(method="inference")
    log, _ = record(SMALL, asked, target_of(asked))
    assert predicted_step(log, 1) == predicted_step(log)


def test_retained_outputs_live_through_the_next_forward() -> None:
    logits = 2 * 64 * 1024 * 2
    plain, kept = (
        trace(SMALL, setup_of(method="full", retain_outputs=keep)).moment("forward").allocated_bytes
        for keep in (False, True)
    )
    assert kept - plain >= logits


def test_paged_states_are_the_hosts() -> None:
    wide = {**SMALL, "hidden_size": 512}
    plain, paged = (
        trace(wide, setup_of(method="full", optimizer=name))
        for name in ("adamw_bnb_8bit", "paged_adamw_8bit")
    )
    assert plain.host_bytes == 0 < paged.host_bytes
    assert (
        paged.moment("optimizer_step").components["optimizer_states"]
        < plain.moment("optimizer_step").components["optimizer_states"]
    )


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ({"model_type": "lama"}, {}, r"transformers knows no model_type 'lama': did you mean llama"),
        (
            {"model_type": "my_own", "auto_map": {"AutoConfig": "x.Y"}},
            {},
            "a repository's own code is never run|did you mean",
        ),
        ({**SMALL, "hidden_act": "nope"}, {}, "transformers (rejects|cannot build)"),
        (
            {**SMALL, "rope_theta": "fast"},
            {},
            r"cannot build .*\(rope_theta is 'fast', by default 10000\.0\)",
        ),
        (
            {**SMALL, "hidden_size": 250},
            {},
            "transformers (rejects|cannot build|cannot run)|LlamaForCausalLM cannot run",
        ),
        ({"model_type": "vit"}, {}, "transformers has no causal language model for model_type 'vit'"),
        (
            SMALL,
            {"method": "lora", "targets": "nothing_like_it"},
            "peft cannot add LORA to LlamaForCausalLM: .*nothing_like_it",
        ),
    ],
)
def test_bad_input_is_one_readable_line(config: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trace(config, setup_of(**fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from memplan.planner.run import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(UsageError, match=r"peft not installed: .*pip install 'memplan\[trace\]'"):
        trace(SMALL, setup_of())
