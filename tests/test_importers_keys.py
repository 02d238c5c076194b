"""The tables know every key of the installed stacks, and a key said to move no memory moves none."""

import dataclasses
import json

import pytest

from memplan.planner.importers import hf, peft, trl
from memplan.planner.importers.files import FORMATS, read_document, read_training_file
from memplan.planner.importers.launch import read_launch
from memplan.planner.importers.rules import find_rule
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve

LEAST = {
    "axolotl": {
        "base_model": "openai-community/gpt2",
        "datasets": [],
        "adapter": "lora",
        "lora_target_linear": True,
    },
    "llamafactory": {"model_name_or_path": "openai-community/gpt2", "stage": "sft"},
    "llamafactory-v1": {
        "model": "openai-community/gpt2",
        "train_dataset": "x",
        "peft_config": {"name": "lora"},
    },
    "trl": {"model_name_or_path": "openai-community/gpt2", "dataset_name": "x", "use_peft": True},
    "hf": {"output_dir": "x"},
    "torchtune": {
        "model": {"_component_": "torchtune.models.llama2.llama2_7b"},
        "optimizer": {"_component_": "torch.optim.AdamW"},
    },
    "peft": {"peft_type": "LORA", "r": 8},
    "accelerate": {"distributed_type": "NO", "compute_environment": "LOCAL_MACHINE"},
    "deepspeed": {"zero_optimization": {"stage": 2}},
}
VALUES = (True, False, 1, 7, 0.5, "yes", "no", [], ["x"], {}, {"a": 1}, "hf_notARealToken")


@pytest.mark.parametrize("name", LEAST)
def test_an_ignored_key_changes_no_setting_whatever_its_value(name):
    row, base = FORMATS[name], LEAST[name]
    plain = read_document(base, row, name)
    keys = [key for key, rule in row.rules.items() if rule.status == "ignored" and key not in base]
    assert keys
    for key in keys:
        for value in VALUES:
            changed = read_document({**base, key.replace("*", "x"): value}, row, name)
            assert changed.fields == plain.fields, (key, value)
            assert not changed.by_status("unknown") and not changed.by_status("not_modelled"), (key, value)


@pytest.mark.parametrize("name", LEAST)
def test_every_ignored_key_says_why(name):
    assert all(
        rule.why for rule in FORMATS[name].rules.values() if rule.status in ("ignored", "not_modelled")
    )


def test_used_keys_move_a_setting_and_the_prediction_follows():
    from memplan.planner.formula.engine import plan

    spec = find("gpt2").spec()
    base = read_document(LEAST["axolotl"], FORMATS["axolotl"], "a")
    ignored = read_document(
        {**LEAST["axolotl"], "learning_rate": 1, "wandb_project": "x", "save_steps": 3},
        FORMATS["axolotl"],
        "a",
    )
    used = read_document({**LEAST["axolotl"], "micro_batch_size": 4}, FORMATS["axolotl"], "a")
    peaks = [
        plan(spec, resolve(imported=imported.fields)).peak.allocated_bytes
        for imported in (base, ignored, used)
    ]
    assert peaks[0] == peaks[1] < peaks[2]


def missing(cls, table):
    return [field.name for field in dataclasses.fields(cls) if find_rule(table, field.name) is None]


def test_every_training_argument_of_the_installed_transformers_is_known():
    transformers = pytest.importorskip("transformers")
    assert missing(transformers.TrainingArguments, hf.RULES) == []


def test_every_field_of_the_installed_peft_configurations_is_known():
    library = pytest.importorskip("peft")
    assert missing(library.LoraConfig, peft.LORA) == [] and missing(library.AdaLoraConfig, peft.LORA) == []


def test_every_field_of_the_installed_trl_is_known():
    library = pytest.importorskip("trl")
    for cls in (library.SFTConfig, library.ModelConfig, library.ScriptArguments):
        assert missing(cls, trl.RULES) == [], cls


def test_every_bitsandbytes_setting_of_the_installed_transformers_is_known():
    pytest.importorskip("transformers")
    import inspect

    from transformers import BitsAndBytesConfig

    from memplan.planner.importers.snippet_rules import QUANTIZATION

    parameters = [
        name
        for name in inspect.signature(BitsAndBytesConfig.__init__).parameters
        if name not in ("self", "kwargs")
    ]
    assert [name for name in parameters if find_rule(QUANTIZATION, name) is None] == []


def test_the_page_of_formats_is_not_stale():
    from pathlib import Path

    from memplan.render import format_docs

    page = Path(__file__).parent.parent / "docs" / "formats.md"
    assert page.read_text() == format_docs.page(), (
        "run: python -m memplan.render.format_docs > docs/formats.md"
    )


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (
            "model_name_or_path: Qwen/Qwen3-VL-8B-Instruct\nstage: sft\ndo_train: true\n"
            "finetuning_type: lora\ntemplate: qwen3_vl\nimage_max_pixels: 262144\n"
            "freeze_vision_tower: false\nvideo_max_pixels: 16384\nvideo_maxlen: 16\nvideo_fps: 1.0\n",
            ["image_max_pixels", "freeze_vision_tower", "video_max_pixels", "video_maxlen", "video_fps"],
        ),
    ],
)
def test_a_run_on_pictures_is_a_lower_bound(tmp_path, text, keys):
    (path := tmp_path / "run.yaml").write_text(text)
    imported = read_training_file(path)
    for key in keys:
        assert any(key in missing for missing in imported.not_modelled()), key


def test_variables_before_swift_are_read():
    """ms-swift and qwen-vl-utils read them; another program's are its own."""
    line = (
        "MAX_PIXELS=602112 VIDEO_MAX_PIXELS=50176 FPS_MAX_FRAMES=12 swift sft --model a/b --max_length 2048"
    )
    imported = read_launch(line.split())
    said = {"image_scaled_to": 602112, "video_scaled_to": 50176, "video_frames": 12}
    assert said.items() <= imported.fields.items()
    assert any("video_max_pixels" in missing for missing in imported.not_modelled())
    other = read_launch(["VIDEO_MAX_PIXELS=50176", "trl", "sft", "--model_name_or_path", "a"])
    assert "video_scaled_to" not in other.fields


AXOLOTL = "base_model: a\nmicro_batch_size: 1\nadapter: lora\nlora_r: 8\nlora_target_modules: [q_proj]\n"
TRL = "model_name_or_path: a\ndataset_name: x\nuse_peft: true\n"


@pytest.mark.parametrize(
    ("text", "key", "bound"),
    [
        (f"{AXOLOTL}layer_offloading: true\n", "layer_offloading", False),  # errs on the high side
        (f"{AXOLOTL}layer_offloading: false\n", "layer_offloading", None),
        (f"{TRL}neftune_noise_alpha: 5\n", "neftune_noise_alpha", True),
    ],
)
def test_noise_is_a_lower_bound_and_offloaded_layers_an_upper_one(tmp_path, text, key, bound):
    """A key that is off says nothing."""
    (path := tmp_path / "run.yaml").write_text(text)
    imported = read_training_file(path)
    warned = [warning for warning in imported.warnings if f"{key} is not modeled" in warning]
    assert bool(warned) == (bound is not None)
    assert any(key in missing for missing in imported.not_modelled()) == bool(bound)


def test_a_frozen_tower_and_no_pictures_lack_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: Qwen/Qwen3-8B\nstage: sft\ndo_train: true\nfinetuning_type: lora\n"
        "template: qwen3\nfreeze_vision_tower: true\n"
    )
    assert read_training_file(path).not_modelled() == []


@pytest.mark.parametrize(
    ("key", "name", "bound"),
    [
        ("optim", "stable_adamw", False),  # a row of its own
        ("optim", "grokadamw", False),
        ("optim", "adamw_anyprecision", False),
        ("optimizer", "optimi_adamw", False),
        ("optimizer", "dion", True),  # states that nobody read: not known to be smaller
        ("optim", "galore_adamw", False),
        ("optim", "apollo_adamw", False),
        ("optim", "lomo", False),
        ("optim", "adamw_torch", False),
    ],
)
def test_an_optimizer_whose_states_may_be_larger_than_assumed_is_a_lower_bound(tmp_path, key, name, bound):
    head = (
        "base_model: a\nmicro_batch_size: 1\n"
        if key == "optimizer"
        else ("model_name_or_path: a\nstage: sft\ndo_train: true\nfinetuning_type: full\n")
    )
    (path := tmp_path / "run.yaml").write_text(f"{head}{key}: {name}\n")
    missing = read_training_file(path).not_modelled()
    assert any(f"optimizer {name}" in entry for entry in missing) == bound


@pytest.mark.parametrize(
    "value, counted",
    [
        ("weight_decay=0.1, lr=1e-4", True),
        ({"beta1": 0.9, "beta3": 0.95}, True),
        ("amsgrad=True", False),
        ({"use_kahan_summation": True}, False),
        ("lr=1e-4,momentum_dtype=bfloat16", False),
        (True, False),
    ],
)
def test_an_optimizers_arguments_are_numbers_or_make_a_lower_bound(tmp_path, value, counted):
    path = tmp_path / "args.json"
    path.write_text(json.dumps(LEAST["trl"] | {"learning_rate": 1e-4, "optim_args": value}))
    assert (read_training_file(path).not_modelled() == []) == counted
