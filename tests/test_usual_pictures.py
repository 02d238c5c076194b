"""Training files that train on pictures and say no sizes: the picture that is assumed, where it comes
from, and what stays a lower bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memplan import api
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.pictures import length_of, said_of, uncounted
from memplan.planner.inputs.usual_pictures import is_assumed

AXOLOTL = "base_model: {}\nadapter: lora\nlora_r: 8\nlora_target_modules: [q_proj]\nsequence_len: {}\n"
PICTURES = "processor_type: AutoProcessor\n"
FACTORY = (
    "model_name_or_path: {}\nstage: sft\ndo_train: true\nfinetuning_type: lora\ntemplate: qwen3_vl\n"
    "image_max_pixels: 262144\n"
)


def asked(folder: Path, text: str, **fields: Any) -> tuple[Any, Any, Any]:
    """What a file says, and the model and setup that it asks for."""
    (path := folder / "run.yaml").write_text(text)
    imported = read_training_file(path)
    return imported, *api.request(imported.model, imported=imported.fields, **fields)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llava-hf/llava-1.5-7b-hf", "1@336x336"),  # vision_config.image_size
        ("google/gemma-3-4b-it", "1@896x896"),  # the entry with the tower
        ("Qwen/Qwen2.5-VL-7B-Instruct", "1@1024x1024"),  # its class has no such number: as the data has it
    ],
)
def test_axolotls_picture_is_the_models_square(tmp_path: Path, name: str, size: str) -> None:
    imported, model, setup = asked(tmp_path, AXOLOTL.format(name, 4096) + PICTURES)
    assert setup.images == (size,) and is_assumed(setup)
    assert imported.not_modelled() == [] and uncounted(model.config, setup) == ()
    assert said_of(model.config, setup).startswith(f"nobody says which pictures: one of {size[2:]} ")


def test_a_size_that_the_file_says_is_taken(tmp_path: Path) -> None:
    for said, size in (("512", "1@512x512"), ("[640, 480]", "1@640x480")):
        _, _, setup = asked(
            tmp_path, AXOLOTL.format("qwen2.5-vl-7b", 4096) + PICTURES + f"image_size: {said}\n"
        )
        assert setup.images == (size,) and not is_assumed(setup)


def test_the_command_line_says_others(tmp_path: Path) -> None:
    _, _, setup = asked(tmp_path, AXOLOTL.format("qwen2.5-vl-7b", 4096) + PICTURES, images=("2@640x480",))
    assert setup.images == ("2@640x480",) and not is_assumed(setup)


def test_without_a_processor_every_row_is_text(tmp_path: Path) -> None:
    """axolotl 0.19 core/builders/causal.py: its collator of pictures is for files with processor_type."""
    for more in ("", PICTURES + "sample_packing: true\n"):
        _, model, setup = asked(tmp_path, AXOLOTL.format("qwen2.5-vl-7b", 4096) + more)
        assert setup.images == ("none",) and uncounted(model.config, setup) == ()


def test_rows_grow_where_the_picture_is_longer(tmp_path: Path) -> None:
    """axolotl cuts no row of pictures: 1,369 tokens in rows of 512."""
    _, model, setup = asked(tmp_path, AXOLOTL.format("qwen2.5-vl-7b", 512) + PICTURES)
    assert setup.sequence_length == length_of(model.config, setup) + 512


def test_frozen_parts_are_axolotls(tmp_path: Path) -> None:
    text = AXOLOTL.format("qwen2.5-vl-7b", 4096) + PICTURES + "freeze_mm_modules: true\n"
    _, _, setup = asked(tmp_path, text)
    assert (setup.vision_tower, setup.projector) == ("frozen", "frozen")
    _, _, other = asked(tmp_path, text.replace("qwen2.5-vl-7b", "lfm2-vl-450m"))
    assert other.vision_tower == "trained", "no names of its parts are known"


def test_a_limit_of_pixels_is_a_run_on_pictures(tmp_path: Path) -> None:
    _, model, setup = asked(tmp_path, FACTORY.format("Qwen/Qwen3-VL-8B-Instruct"))
    assert setup.images == ("1@1024x1024",) and is_assumed(setup)
    assert length_of(model.config, setup) == 16 * 16 + 2, "scaled to 512 x 512 first"


@pytest.mark.parametrize("name", ["Qwen/Qwen3.5-9B", "LiquidAI/LFM2-VL-450M"])
def test_pictures_without_a_rule_are_a_lower_bound(tmp_path: Path, name: str) -> None:
    """A config.json of the language part alone; a processor that has no row."""
    _, model, setup = asked(tmp_path, AXOLOTL.format(name, 4096) + PICTURES)
    assert setup.images == () and len(uncounted(model.config, setup)) == 1
