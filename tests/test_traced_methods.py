"""Methods and choices that the trace alone knows: plan answers with it, and what is trained is arithmetic's.
tests/test_dryrun_methods.py compares every moment with a dry run.
"""

from __future__ import annotations

from typing import Any

import pytest

import memplan
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

pytest.importorskip("peft")

H, INNER, LAYERS, KV = 256, 512, 3, 128
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
LINEARS = ((H, H), (KV, H), (KV, H), (H, H), (INNER, H), (INNER, H), (H, INNER))  # outputs, inputs
RANK = 8


def planned(method: str, **fields: Any) -> Any:
    return memplan.plan(CONFIG, method=method, micro_batch=2, sequence_length=64, **fields)


@pytest.mark.trace
@pytest.mark.parametrize(
    ("method", "fields", "trained"),
    [
        ("p-tuning", {"virtual_tokens": 10}, 10 * H + 3 * (H * H + H)),
        ("vera", {"rank": RANK}, LAYERS * sum(RANK + n for n, _ in LINEARS)),
        ("oft", {}, LAYERS * sum(k // 32 * (32 * 31 // 2) for _, k in LINEARS)),
        ("bitfit", {}, LAYERS * (H + 2 * KV)),
        ("lora", {"rank": RANK, "layers_to_transform": "1-2"}, 2 * RANK * sum(n + k for n, k in LINEARS)),
        ("full", {"trained_parameters": "model.layers.1.mlp,model.norm.weight$[:8]"}, 3 * H * INNER + H),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_trace_answers(method: str, fields: dict[str, Any], trained: int) -> None:
    found = planned(method, **fields)
    assert (found.engine, found.trainable_parameters) == ("trace", trained)
    assert found.assumptions[0].startswith("traced: the formula has no rule for ")
    states = found.moment("optimizer_step").components["optimizer_states"]
    width = 2 if method in ("bitfit", "full") else 4  # what the model has is 16-bit as it, an adapter fp32
    assert 2 * width * trained <= states <= 2 * (width * trained + 512 * 2 * LAYERS * len(LINEARS))
    with pytest.raises(UsageError, match="use --engine trace"):
        planned(method, engine="formula", **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "full", "layers_to_transform": "1"}, "use --method lora"),
        ({"method": "lora", "layers_to_transform": "x"}, "numbers of layers from 0, such as 0,1,2 or 8-15"),
        (
            {"method": "lora", "trained_parameters": "lm_head"},
            "applies to full fine-tuning only, not to method 'lora'",
        ),
        (
            {"method": "dora", "target_parameters": "experts.down_proj"},
            "adapts modules only: use --method lora",
        ),
        (
            {"method": "lora", "target_parameters": "experts.down_proj", "dropout": 0.1},
            "dropout 0.1: PEFT has dropout for modules only",
        ),
        (
            {"method": "qlora", "target_parameters": "experts.down_proj", "quantize_experts": True},
            "peft 0.21 leaves its update on them",
        ),
    ],
)
def test_layers_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(fields)


@pytest.mark.trace
def test_what_a_model_lacks() -> None:
    with pytest.raises(UsageError, match="layers_to_transform 9: Qwen2ForCausalLM has layers 0 to 2"):
        planned("lora", layers_to_transform="9")
    with pytest.raises(UsageError, match="no parameter of Qwen2ForCausalLM is called 'experts.up'"):
        planned("lora", target_parameters="experts.up")
    with pytest.raises(UsageError, match="without repeated repetitions"):
        planned("full", trained_parameters="(a+)+")
    with pytest.raises(UsageError, match="which has no biases: use --method lora"):
        memplan.plan(
            {**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}, method="bitfit"
        )


@pytest.mark.trace
def test_fit_traces_the_method_that_is_asked_for_alone():
    found = memplan.fit(CONFIG, gpu="rtx-3060", method="vera", micro_batch=2, sequence_length=64)
    assert [each.method for each in found.methods] == ["vera"]
    assert found.asked.holds and found.asked.largest_batch > 2
    assert planned("vera", gpu="rtx-3060").gpus[0].verdict == "fits"
