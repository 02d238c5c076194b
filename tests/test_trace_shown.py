"""Videos in the trace, and pictures beside preferences and sampled completions: the batches are those of
TRL's own collators, and the tower runs as often as the trainer runs the model.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
pytest.importorskip("accelerate")
pytest.importorskip("trl")
pytest.importorskip("PIL")

import torch
from PIL import Image
from test_towers import CONFIGS
from test_trace_pictures import ALL, setup_of, states

from memplan.planner.inputs.pictures import length_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.run import batches
from memplan.planner.run.model import read_config
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.videos import VIDEOS
from memplan.planner.trace.engine import trace

pytestmark = pytest.mark.trace

VIDEO = "1@112x84x5"
SLOWLY = ("qwen2_vl", "internvl")
LORA = {"method": "lora", "rank": 4, "targets": ("all-linear",), "recipe": "trl", "sequence_length": 256}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOWLY else [])
        for name in VIDEOS
        if name in ALL
    ],
)
def test_every_video_trains_the_tower(name: str) -> None:
    found = trace(ALL[name], setup_of(images=(VIDEO,)))
    assert found.not_modelled == () and found.assumptions[0].startswith(f"videos {VIDEO}: ")
    least = 2 * 2 * found.model.parameters
    assert least <= states(found) <= least + 512 * 2 * 200


def shapes(batch: Any) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Of each tensor but the labels of rows, which are a word of the collator's."""
    return {
        name.removesuffix("_logps"): (tensor.dtype, tuple(tensor.shape))
        for name, tensor in batch.items()
        if isinstance(tensor, torch.Tensor) and name not in ("label", "labels")
    }


def gemma_processor() -> Any:
    """Gemma 3's processor, with squares of 56 pixels, around a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    special = {"image_token": "<soft>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, **{w: 4 + n for n, w in enumerate(special.values())}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return Gemma3Processor(pixels, tokenizer, image_seq_length=CONFIGS["gemma3"]["mm_tokens_per_image"])


def collated(task: str, setup: Setup) -> Any:
    """What TRL's own collator makes of rows with a picture and text up to the setup's length."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from trl.trainer.kto_trainer import DataCollatorForVisionUnpairedPreference

    processor, picture = gemma_processor(), Image.new("RGB", (112, 84))
    prompt = {"prompt": "<boi>", "images": [picture]}
    around = processor(images=[[picture]], text=["<boi>"], return_tensors="pt")["input_ids"].shape[1]
    text = " a" * (setup.sequence_length - around)
    if task == "dpo":
        row = prompt | {"chosen": text, "rejected": text}
        return DataCollatorForVisionPreference(processor)([dict(row) for _ in range(setup.micro_batch)])
    row = prompt | {"completion": text, "label": True}
    return DataCollatorForVisionUnpairedPreference(processor)([dict(row) for _ in range(setup.micro_batch)])


@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_the_batch_is_that_of_trls_collator(task: str) -> None:
    setup = setup_of(**LORA, task=task)
    batch = batches.make(read_config(CONFIGS["gemma3"]), setup, torch.device("cpu"))
    assert shapes(batch) == shapes(collated(task, setup))
    scored = batch["completion_mask"].sum().item()
    shown = length_of(CONFIGS["gemma3"], setup)
    assert scored == len(batch["input_ids"]) * (setup.sequence_length - shown), "pictures are not scored"


def test_both_rows_of_a_pair_are_seen() -> None:
    """The tower saves what it makes of the picture of each row."""
    config = CONFIGS["gemma3"]
    pictures, text = (
        trace(config, setup_of(**LORA, task="dpo", images=(what,))) for what in ("1@56x56", "none")
    )
    rows, patches, hidden, blocks = 2 * 2, 16, 48, 3
    saved = [found.moment("forward").components["activations"] for found in (pictures, text)]
    assert saved[0] - saved[1] > 2 * blocks * 8 * rows * patches * hidden
    assert pictures.not_modelled == ()


def test_prompts_with_pictures_are_sampled_and_scored() -> None:
    """The first token reads pixels; the scored rows and the step read them again. The model is smaller."""
    own = {"completion_length": 16, "micro_batch": 4, "sequence_length": 640}
    found = trace(CONFIGS["qwen3_vl"], setup_of(**{**LORA, **own}, task="grpo", images=("1@512x512",)))
    pixels = 4 * (4 * 32 * 32) * (3 * 2 * 16 * 16)
    for moment in ("generate", "forward"):
        more = found.moment(moment).allocated_bytes - found.moment("load").allocated_bytes
        assert more > pixels > 10 * found.model.parameters, f"{moment}: fp32 pixels of four rows"


def test_a_prompt_has_room_for_its_pictures() -> None:
    from memplan import api

    own = {"task": "grpo", "recipe": "trl", "completion_length": 100, "gpu": "t4"}
    config = CONFIGS["qwen2_5_vl"]
    with pytest.raises(UsageError, match="100 are sampled; use --seq 758"):
        api.request(config, images="1@336x336", seq=200, **own)
    _, setup = api.request(config, images="1@1920x1080", **own)
    assert setup.sequence_length == 2693 + 100 + 512
