"""Recipes: every default resolves, has a source, and equals what the installed stack says of itself."""

from pathlib import Path

import pytest

from memplan.planner.inputs.setup import FIELDS, resolve
from memplan.planner.tables.defaults import BASE, BASE_SOURCES
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.recipes import RECIPES
from memplan.render import recipe_docs

DOCS = Path(__file__).parent.parent / "docs" / "recipes.md"


def test_documentation_is_not_stale():
    assert DOCS.read_text() == recipe_docs.page(), (
        "run: python -m memplan.render.recipe_docs > docs/recipes.md"
    )


def test_defaults_that_are_not_checked_at_run_time_would_pass_the_check():
    for recipe, row in RECIPES.items():
        for method in row.only or METHODS:
            setup = resolve({"method": method, "recipe": recipe})
            assert setup.replaced() == setup


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_method_resolves_in_every_recipe(recipe):
    for method in RECIPES[recipe].only or METHODS:
        setup = resolve({"recipe": recipe, "method": method})
        assert (setup.recipe, setup.method) == (recipe, method)
        assert set(setup.origins) == set(FIELDS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe_is_a_setting_and_sources_name_settings(recipe):
    row = RECIPES[recipe]
    keys = {
        key
        for layer in (row.defaults, *row.methods.values(), *(changes for _, changes in row.when))
        for key in layer
    }
    assert keys <= set(FIELDS)
    assert set(row.sources) <= set(FIELDS) and set(BASE_SOURCES) <= set(BASE)
    assert set(row.methods) <= {*METHODS, "adapters", "quantized"}


@pytest.mark.parametrize("recipe", ["trl", "axolotl", "llamafactory", "hf"])
def test_what_a_recipe_changes_has_a_source_or_is_called_memplans_own(recipe):
    row = RECIPES[recipe]
    changed = {
        k for layer in (row.defaults, *row.methods.values()) for k, v in layer.items() if BASE.get(k) != v
    }
    ours = " ".join(text for _, text in row.notes)
    for key in changed - set(row.sources):
        assert "memplan default" in ours, f"{recipe}: {key} has neither a source nor a note"


HEADLINE = [  # the contract's table
    (
        "raw",
        "lora",
        {
            "weight_dtype": "bfloat16",
            "autocast": "none",
            "adapter_dtype": "float32",
            "checkpointing": "none",
            "optimizer": "adamw_torch",
            "optimizer_mode": "foreach",
            "rank": 16,
            "alpha": 32,
            "targets": ("all-linear",),
        },
    ),
    (
        "raw",
        "qlora",
        {
            "quant_type": "nf4",
            "double_quant": True,
            "compute_dtype": "bfloat16",
            "kbit_prepare": True,
            "checkpointing": "reentrant",
        },
    ),
    (
        "hf",
        "full",
        {
            "weight_dtype": "bfloat16",
            "autocast": "bfloat16",
            "optimizer": "adamw_torch_fused",
            "checkpointing": "none",
            "outputs_fp32": True,
        },
    ),
    (
        "hf",
        "qlora",
        {"quant_type": "nf4", "double_quant": True, "kbit_prepare": True, "checkpointing": "non_reentrant"},
    ),
    (
        "paper",
        "qlora",
        {
            "kbit_prepare": False,
            "adapter_dtype": "bfloat16",
            "optimizer": "paged_adamw_32bit",
            "rank": 64,
            "checkpointing": "non_reentrant",
        },
    ),
    (
        "trl",
        "full",
        {
            "weight_dtype": "float32",
            "autocast": "bfloat16",
            "checkpointing": "non_reentrant",
            "loss": "chunked",
        },
    ),
    (
        "trl",
        "qlora",
        {
            "double_quant": False,
            "compute_dtype": "float32",
            "adapter_dtype": "bfloat16",
            "kbit_prepare": False,
            "targets": ("peft-default",),
        },
    ),
    (
        "axolotl",
        "qlora",
        {
            "double_quant": True,
            "quant_storage": "bfloat16",
            "kbit_prepare": False,
            "allocator": "expandable",
            "checkpointing": "none",
            "adapter_dtype": "float32",
        },
    ),
    ("axolotl", "full", {"upcast_modules": "norms_and_embeddings", "trainable_dtype": "weight"}),
    ("axolotl", "lora", {"upcast_modules": "routers"}),
    ("llamafactory", "full", {"trainable_dtype": "float32", "checkpointing": "reentrant"}),
    (
        "llamafactory",
        "qlora",
        {"rank": 8, "double_quant": True, "quant_storage": "bfloat16", "kbit_prepare": False},
    ),
]


@pytest.mark.parametrize(("recipe", "method", "expected"), HEADLINE)
def test_headline_defaults(recipe, method, expected):
    setup = resolve({"recipe": recipe, "method": method})
    assert {key: getattr(setup, key) for key in expected} == expected


def test_a_condition_changes_a_default_but_never_what_the_user_said():
    flash = {"recipe": "axolotl", "method": "full", "attention": "flash_attention_2"}
    assert resolve(flash).upcast_modules == "routers"
    assert resolve(flash).origins["upcast_modules"] == "recipe axolotl with attention flash_attention_2"
    assert resolve({**flash, "upcast_modules": "norms"}).upcast_modules == "norms"
    sharded = {"recipe": "llamafactory", "gpus": 2, "parallel": "fsdp"}
    assert resolve(sharded).checkpointing == "non_reentrant"
    assert resolve({**sharded, "checkpointing": "none"}).checkpointing == "none"


def test_quantized_defaults_apply_to_a_quantized_dora_too():
    assert resolve({"recipe": "trl", "method": "dora", "quant_type": "nf4"}).adapter_dtype == "bfloat16"
    assert resolve({"recipe": "trl", "method": "dora"}).adapter_dtype == "float32"


def test_trl_rows_equal_the_installed_trl():
    pytest.importorskip("trl")
    from trl.trainer.base_config import _BaseConfig
    from trl.trainer.model_config import ModelConfig

    theirs, full, quantized = (
        ModelConfig(),
        resolve({"recipe": "trl", "method": "lora"}),
        resolve({"recipe": "trl", "method": "qlora"}),
    )
    assert theirs.dtype == full.weight_dtype == quantized.compute_dtype
    assert (theirs.lora_r, theirs.lora_alpha, theirs.lora_dropout) == (full.rank, full.alpha, full.dropout)
    assert theirs.lora_target_modules is None and full.targets == ("peft-default",)
    assert (
        theirs.bnb_4bit_quant_type == quantized.quant_type
        and theirs.use_bnb_nested_quant is quantized.double_quant
    )
    fields = _BaseConfig.__dataclass_fields__
    assert fields["gradient_checkpointing"].default is True and full.checkpointing != "none"
    assert fields["bf16"].default is None and full.autocast == "bfloat16"  # None: on unless fp16 is


def test_hf_rows_equal_the_installed_trainer_and_peft():
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    import inspect

    from peft import AdaLoraConfig
    from peft.utils.other import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, TrainingArguments

    assert TrainingArguments.__dataclass_fields__["optim"].default == resolve({"recipe": "hf"}).optimizer
    ada, ours = AdaLoraConfig(peft_type="ADALORA", total_step=1), resolve({"method": "adalora"})
    assert (ada.init_r, ada.target_r) == (ours.init_rank, ours.target_rank)
    bare = BitsAndBytesConfig(load_in_4bit=True)  # what the note says of the library's bare defaults
    assert (bare.bnb_4bit_quant_type, bare.bnb_4bit_use_double_quant) == ("fp4", False)
    assert str(bare.bnb_4bit_compute_dtype) == "torch.float32"
    assert "gradient_checkpointing_kwargs = {}" in inspect.getsource(prepare_model_for_kbit_training)


def test_peft_default_targets_equal_the_installed_peft():
    pytest.importorskip("peft")
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as THEIRS

    from memplan.planner.tables.peft_targets import PEFT_TARGETS

    assert {name: tuple(THEIRS[name]) for name in PEFT_TARGETS} == PEFT_TARGETS


def test_adalora_and_ia3_have_tables_of_their_own():
    constants = pytest.importorskip("peft.utils.constants")
    from memplan.planner.tables.peft_targets import ADALORA_TARGETS, IA3_TARGETS, ia3_feedforward

    adalora = constants.TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING
    ia3 = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    forward = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    assert {name: tuple(adalora[name]) for name in ADALORA_TARGETS} == ADALORA_TARGETS
    ours = {"mistral", "mixtral", "falcon", "phi", "stablelm", "phi3", "olmo2"}
    assert not ours & set(adalora), "the formula refuses what PEFT refuses"

    def leaf(names):
        return sorted(name.rpartition(".")[2] for name in names)

    apart = {"gpt_neox", "mixtral"}  # gpt_neox: as its layers are named; mixtral: has no w2 any more
    for name in set(IA3_TARGETS) - apart:
        assert leaf(IA3_TARGETS[name]) == leaf(ia3[name]), name
        assert leaf(ia3_feedforward(name)) == leaf(forward[name]), name
