"""Pictures in the trace: every processor's tensors reach the real class's tower, whose weights, gradients and
adapters are counted; a picture that is read as text fails here.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")

from test_towers import CONFIGS, SQUARES, TEXT
from test_trace_more_pictures import MORE

import memplan
from memplan import api
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.pictures import length_of
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.pictures import PICTURES
from memplan.planner.trace.engine import trace

pytestmark = pytest.mark.trace

ALL: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "llava_next": {
        "model_type": "llava_next",
        "image_token_index": 300,
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**SQUARES, "model_type": "clip_vision_model", "projection_dim": 32},
    },
    "internvl": {
        "model_type": "internvl",
        "image_token_id": 300,
        "downsample_ratio": 0.5,
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {
            **SQUARES,
            "model_type": "internvl_vision",
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
    },
}
SIZE = "1@112x84"


def setup_of(**fields: Any) -> Setup:
    base = {"method": "full", "recipe": "hf", "micro_batch": 2, "sequence_length": 1280, "gpu": "a100-80gb"}
    return resolve({**base, "load": "random", "images": (SIZE,), **fields})


def states(found: Prediction) -> int:
    return found.moment("optimizer_step").components["optimizer_states"]


def tower_parameters(name: str) -> int:
    return sum(extra.shape[0] for extra in read_config(CONFIGS[name]).extras if "tower" in extra.kind)


@pytest.fixture(scope="module")
def qwen() -> dict[str, Prediction]:
    """Qwen2.5-VL trained with a picture, as text alone, and with its tower frozen."""
    setups = {
        "pictures": setup_of(),
        "text": setup_of(images=("none",)),
        "frozen": setup_of(vision_tower="frozen"),
        "both frozen": setup_of(vision_tower="frozen", projector="frozen"),
    }
    return {name: trace(CONFIGS["qwen2_5_vl"], setup) for name, setup in setups.items()}


@pytest.mark.parametrize("name", ALL)
def test_every_processors_tensors_train_the_tower(name: str) -> None:
    """AdamW has two states of every weight that a picture went through: of all, but for what LLaVA leaves out
    behind the tower's layer before the last.
    """
    found = trace(ALL[name], setup_of())
    assert found.not_modelled == () and found.assumptions[0].startswith(f"pictures {SIZE}: ")
    hidden, inner = SQUARES["hidden_size"], SQUARES["intermediate_size"]
    last = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden + 2 * hidden
    unused = last if name.startswith("llava") else 0
    least = 2 * 2 * (found.model.parameters - unused)
    blocks = 512 * 2 * 200
    assert least <= states(found) <= least + blocks


def test_a_picture_is_not_text(qwen: dict[str, Prediction]) -> None:
    """The same rows of tokens: what the tower saves and its gradients are beside them."""
    pictures, text = qwen["pictures"], qwen["text"]
    assert pictures.model.parameters == text.model.parameters == read_config(CONFIGS["qwen2_5_vl"]).parameters
    patches, hidden, blocks = 2 * 8 * 6, 48, 3
    saved = [found.moment("forward").components["activations"] for found in (pictures, text)]
    assert saved[0] - saved[1] > 2 * blocks * 8 * patches * hidden, "each block saves more than eight such"
    weights = [found.moment("load").components["weights"] for found in (pictures, text)]
    assert weights[0] == weights[1], "the tower is loaded either way"


def test_a_frozen_tower_has_no_gradients(qwen: dict[str, Prediction]) -> None:
    merged, text = 4 * 48, 64
    projector = 48 + merged * merged + merged + merged * text + text
    whole = qwen["pictures"].trainable_parameters
    tower = tower_parameters("qwen2_5_vl")
    assert whole - qwen["frozen"].trainable_parameters == tower - projector
    assert whole - qwen["both frozen"].trainable_parameters == tower
    saved = [qwen[name].moment("forward").components["activations"] for name in ("pictures", "frozen")]
    assert saved[1] < saved[0], "a frozen tower saves nothing for backward"


def test_all_linear_reaches_into_the_tower() -> None:
    """PEFT targets the tower's linear layers too, unless it is frozen."""
    rank, config = 4, CONFIGS["qwen2_5_vl"]
    lora = {"method": "lora", "rank": rank, "targets": ("all-linear",)}
    inside, outside = (
        trace(config, setup_of(**lora, vision_tower=state, projector=state))
        for state in ("trained", "frozen")
    )
    block = [(48, 144), (48, 48), (48, 80), (48, 80), (80, 48)]
    merger = [(192, 192), (192, 64)]
    extra = rank * (3 * sum(map(sum, block)) + sum(map(sum, merger)))
    assert inside.trainable_parameters - outside.trainable_parameters == extra


def test_checkpoints_reach_the_towers_blocks() -> None:
    config = CONFIGS["gemma3"]
    none, kept = (
        trace(config, setup_of(checkpointing=how, images=("4@56x56",), sequence_length=128))
        for how in ("none", "non_reentrant")
    )
    saved = [found.moment("forward").components["activations"] for found in (none, kept)]
    squares, patches = 8, 16
    assert saved[0] - saved[1] > 2 * 3 * 6 * squares * patches * 48


DEEP = {
    **CONFIGS["smolvlm"],
    "text_config": {**CONFIGS["smolvlm"]["text_config"], "num_hidden_layers": 9},
    "vision_config": {**CONFIGS["smolvlm"]["vision_config"], "num_hidden_layers": 9},
}
"""Three decoder layers have fewer parameters than the tower, which has as many layers as the decoder."""


def test_a_cut_decoder_stays_the_one_whose_layers_repeat() -> None:
    from memplan.planner.run.model import layer_list, skeleton
    from memplan.planner.trace.events import layer_extrapolation
    from memplan.planner.trace.events.record import _cut

    model = skeleton(DEEP, "bfloat16", "sdpa")
    path, layers = layer_list(model) or ("", [])
    assert path == "model.text_model.layers" and len(layers) == 9
    _cut(model, layer_extrapolation.runs([0] * 9), None)
    path, layers = layer_list(model) or ("", [])
    assert path == "model.text_model.layers" and len(layers) == 3
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.num_hidden_layers, text.num_hidden_layers) == (9, 3)


@pytest.mark.slow
def test_a_deep_decoder_is_synthesized_also_beside_a_larger_tower() -> None:
    config = DEEP
    setup = setup_of(images=("1@56x56",), micro_batch=1, sequence_length=128, image_tiles=1)
    quick, full = trace(config, setup), trace(config, setup, full=True)
    assert quick.extra["traced_layers"] is not None and full.extra["traced_layers"] is None
    assert quick.peak == full.peak and quick.model.parameters == full.model.parameters


def test_without_a_size_there_is_no_verdict_of_fits() -> None:
    """The answer says so, with the tokens of a picture of a usual size."""
    config = CONFIGS["qwen2_5_vl"]
    fields = {"gpu": "a100-80gb", "sequence_length": 128, "method": "lora", "load": "random"}
    open_, text = memplan.plan(config, **fields), memplan.plan(config, images="none", **fields)
    assert open_.engine == text.engine == "trace"
    assert open_.gpus[0].verdict is None and text.gpus[0].verdict == "fits"
    tokens = length_of(config, setup_of(images=("1@1024x1024",)))
    assert f"one of 1024x1024 is {tokens:,} tokens" in open_.not_modelled[0]


def test_the_sequence_is_text_and_pictures() -> None:
    config = CONFIGS["qwen2_5_vl"]
    pictures = length_of(config, setup_of())
    found, setup = api.request(config, images=SIZE, text_length=100)
    assert setup.sequence_length == pictures + 100
    _, setup = api.request(found, images="2@1920x1080")
    assert setup.sequence_length == 2 * 2693 + 512, "the default has no room for them"
    with pytest.raises(UsageError, match="2,693 tokens of it; use --seq 3205"):
        api.request(config, images="1@1920x1080", seq=2048)


def test_what_pictures_exclude() -> None:
    for fields, said in (
        ({"packed_documents": 4}, "contradicts images"),
        ({"task": "reward"}, "task 'reward' has no pictures, whose trainer's collator takes text alone"),
        ({"task": "orpo"}, "use another --task .sft, classify, dpo, dpo_logits, kto, grpo, rloo."),
        ({"images": ("1@0x5",)}, "expected N@WxH"),
    ):
        with pytest.raises(UsageError, match=said):
            setup_of(**fields)
    with pytest.raises(UsageError, match="fit varies the sequence"):
        found, setup = api.request(CONFIGS["gemma3"], images="1@56x56", gpu="t4")
        api.fit_by_trace(found, setup, find_gpu("t4"))
    with pytest.raises(UsageError, match="takes no pictures"):
        trace(read_config(CONFIGS["gemma3"]).config, setup_of())


def test_every_processor_is_traced() -> None:
    """But Llama 4's, whose routed experts the trace has elsewhere, and Qwen3-VL's of experts."""
    assert {*ALL, *MORE, "llama4", "qwen3_vl_moe", "qwen3_5_moe"} == set(PICTURES)
