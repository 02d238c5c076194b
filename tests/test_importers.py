"""What an importer says beside the settings: unknown keys, what is not followed and which way that errs, what
was assumed.
"""

from pathlib import Path

import pytest

from memplan.planner.importers.changed import applied
from memplan.planner.importers.emit import emit_config
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"


def test_an_unknown_key_is_a_warning_and_a_known_one_never(tmp_path):
    path = tmp_path / "axolotl.yaml"
    path.write_text((DATA / "axolotl_qlora.yaml").read_text() + "lora_quantum_rank: 3\n")
    imported = read_training_file(path)
    assert [report.key for report in imported.by_status("unknown")] == ["lora_quantum_rank"]
    assert any("lora_quantum_rank" in warning for warning in imported.warnings)


def test_a_key_that_moves_memory_and_is_not_followed_says_so(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text((DATA / "axolotl_qlora.yaml").read_text() + "tiled_mlp: true\nlora_mlp_kernel: false\n")
    imported = read_training_file(path)
    assert [report.key for report in imported.by_status("not_modelled")] == ["tiled_mlp"]


def test_sharding_files_beside_a_training_file():
    imported = read_training_file(DATA / "axolotl_full.yaml", beside=(DATA / "accelerate_fsdp2.yaml",))
    assert (imported.fields["parallel"], imported.fields["gpus"], imported.fields["micro_batch"]) == (
        "fsdp",
        8,
        4,
    )


def test_a_deepspeed_file_that_is_not_there_is_said(tmp_path):
    path = tmp_path / "lf.yaml"
    path.write_text((DATA / "llamafactory_full_ds.yaml").read_text())
    imported = read_training_file(path)
    assert imported.fields["parallel"] == "zero3" and any(
        "not beside" in warning for warning in imported.warnings
    )
    path.write_text("model_name_or_path: a\nstage: sft\ndeepspeed: ../../../etc/passwd\n")
    assert "passwd is not beside" in read_training_file(path).warnings[-1]


@pytest.mark.parametrize(
    ("lines", "loss", "words"),
    [
        ("liger_fused_linear_cross_entropy: true", "fused", None),
        (
            "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]",
            "fused",
            "cut cross-entropy",
        ),
        (
            "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\ncut_cross_entropy: "
            "false",
            "full",
            None,
        ),
        ("chunked_cross_entropy: true", "axolotl-chunked", None),
        ("plugins: [axolotl.integrations.spectrum.SpectrumPlugin]", "full", "a plugin other than"),
    ],
)
def test_axolotls_losses(tmp_path, lines, loss, words):
    path = tmp_path / "a.yaml"
    path.write_text(f"base_model: a\nmicro_batch_size: 1\n{lines}\n")
    imported = read_training_file(path)
    assert resolve(imported=imported.fields).loss == loss
    assert any(words in warning for warning in imported.warnings) if words else not imported.warnings


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("tiled_mlp: true", "on the high side"),
        ("liger_rms_norm_gated: true", "saves fewer tensors, so the prediction errs on the high side"),
        ("qat: true", "on the low side"),
        (
            "optimizer: q_galore_adamw8bit",
            "is not modeled: assuming the states of adamw_torch_fused, so the prediction errs on the high "
            "side",
        ),
        ("cut_cross_entropy: true", "on the high side"),
        (
            "context_parapllel_size: 2",
            "unknown key context_parapllel_size (did you mean context_parallel_size?)",
        ),
    ],
)
def test_a_warning_says_which_way_the_number_errs_or_what_was_meant(tmp_path, lines, words):
    path = tmp_path / "a.yaml"
    path.write_text(f"base_model: a\nmicro_batch_size: 1\n{lines}\n")
    assert any(words in warning for warning in read_training_file(path).warnings), read_training_file(
        path
    ).warnings


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("micro_batch_sizes", "micro_batch_size"),
        ("sequence_lne", "sequence_len"),
        ("lora_rr", "lora_r"),
        ("lora_rank_of_mine", None),
        ("embedding_size", None),
    ],
)
def test_a_key_is_only_meant_within_one_edit(tmp_path, key, meant):
    path = tmp_path / "a.yaml"
    path.write_text(f"base_model: a\nmicro_batch_size: 1\n{key}: 2\n")
    (warning,) = (w for w in read_training_file(path).warnings if w.startswith("unknown key"))
    assert ("did you mean" in warning) == (meant is not None)
    assert meant is None or f"(did you mean {meant}?)" in warning


def test_a_handbook_file_of_preference_training_is_trls_and_says_what_it_lacks(tmp_path):
    path = tmp_path / "dpo.yaml"
    path.write_text(
        "model_name_or_path: a\ndataset_mixture: {x: 1}\ntorch_dtype: bfloat16\nbeta: "
        "0.1\nmax_prompt_length: 512\n"
    )
    imported = read_training_file(path)
    assert imported.format == "trl" and not imported.by_status("unknown")
    assert any("reference model" in warning and "low side" in warning for warning in imported.warnings)


def test_llamafactorys_v1_says_what_it_assumed():
    warnings = read_training_file(DATA / "llamafactory_v1_full.yaml").warnings
    assert any("optim_config.name" in warning for warning in warnings) and any(
        "global_batch_size" in warning for warning in warnings
    )
    warnings = read_training_file(DATA / "llamafactory_v1_qlora.yaml").warnings
    assert any("kernels" in warning and "high side" in warning for warning in warnings)


def test_a_torchtune_file_that_generates_is_refused(tmp_path):
    path = tmp_path / "generation.yaml"
    path.write_text("model: {_component_: torchtune.models.llama2.llama2_7b}\nprompt: {user: hi}\ntop_k: 3\n")
    with pytest.raises(UsageError, match="trains nothing"):
        read_training_file(path)


def test_every_torchtune_builder_names_an_entry_of_the_catalog():
    from memplan.planner.importers.torchtune import MODELS
    from memplan.planner.inputs.models import names

    assert set(MODELS.values()) <= set(names())


@pytest.mark.parametrize(
    ("pattern", "targets"),
    [
        (
            r"model.language_model.layers.[\\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        (r".*\\.self_attn\\.(q|v)_proj", {"q_proj", "v_proj"}),
    ],
)
def test_a_pattern_of_targets_is_read_as_the_modules_that_it_means(tmp_path, pattern, targets):
    path = tmp_path / "a.yaml"
    path.write_text(f'base_model: a\nmicro_batch_size: 1\nadapter: lora\nlora_target_modules: "{pattern}"\n')
    imported = read_training_file(path)
    assert set(imported.fields["targets"]) == targets and any(
        "pattern" in warning for warning in imported.warnings
    )


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*(x|y", "vision_tower.*"])
def test_a_pattern_that_means_nothing_here_is_refused(tmp_path, pattern):
    path = tmp_path / "a.yaml"
    path.write_text(f'base_model: a\nmicro_batch_size: 1\nadapter: lora\nlora_target_modules: "{pattern}"\n')
    with pytest.raises(UsageError, match="lora_target_modules"):
        read_training_file(path)


GPT_OSS = "base_model: openai/gpt-oss-20b\nadapter: lora\nlora_r: 8\nlora_target_modules: [q_proj]\n"


@pytest.mark.parametrize(
    ("kernel", "model", "attention"),
    [
        ("kernels-community/vllm-flash-attn3", "openai/gpt-oss-20b", "eager"),  # sinks
        ("flash_attention_3", "tiiuae/falcon-rw-1b", "eager"),  # ALiBi
        ("xformers", "tiiuae/falcon-rw-1b", "sdpa-efficient"),
        ("kernels-community/flash-attn3", "Qwen/Qwen3-8B", "flash_attention_2"),
    ],
)
def test_the_attention_in_place_of_an_unmodeled_kernel_is_one_that_runs(tmp_path, kernel, model, attention):
    from memplan import api
    from memplan.cli.subject import read_subject

    path = tmp_path / "train.yaml"
    path.write_text(
        f"base_model: {model}\nadapter: lora\nlora_r: 8\nlora_target_linear: true\nsequence_len: 512\n"
        f"micro_batch_size: 1\nbf16: true\nattn_implementation: {kernel}\n"
    )
    subject = read_subject(str(path), {})
    (warning,) = (w for w in subject.imported.warnings if w.startswith(f"attention {kernel} is not modeled"))
    assert subject.setup.attention == attention and attention in warning
    assert ("high side" in warning) == (attention == "eager")
    assert api.predict(subject.model, subject.setup).peak.device_bytes > 0


def test_an_attention_that_the_file_names_itself_is_not_replaced(tmp_path):
    from memplan import api
    from memplan.cli.subject import read_subject

    path = tmp_path / "train.yaml"
    path.write_text(GPT_OSS + "micro_batch_size: 1\nattn_implementation: flash_attention_2\n")
    subject = read_subject(str(path), {})
    with pytest.raises(UsageError, match="no flash_attention_2 with sinks"):
        api.predict(subject.model, subject.setup)


@pytest.mark.parametrize(
    ("loss", "field"),
    [
        ("torchtune.modules.loss.LinearCrossEntropyLoss", "torchtune"),
        ("torchtune.modules.loss.CEWithChunkedOutputLoss", "torchtune-0.6"),
        ("torchtune.modules.loss.LigerFusedCrossEntropyLoss", "fused"),
        ("torch.nn.CrossEntropyLoss", None),
    ],
)
def test_a_torchtune_loss_is_what_it_keeps(tmp_path, loss, field):
    """torchtune's loops over chunks recompute nothing: each is its own."""
    path = tmp_path / "full.yaml"
    path.write_text(
        "model: {_component_: torchtune.models.llama3_1.llama3_1_8b}\n"
        "optimizer: {_component_: torch.optim.AdamW}\n"
        f"loss: {{_component_: {loss}}}\nbatch_size: 2\ndtype: bf16\n"
    )
    imported = read_training_file(path)
    assert imported.fields.get("loss") == field
    assert not any(loss.rpartition(".")[2] in warning for warning in imported.warnings)


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        (
            "adapter: lora\nlora_r: 8\nlora_target_parameters: [mlp.experts.down_proj]\n",
            {"method": "lora", "target_parameters": ("mlp.experts.down_proj",), "targets": ()},
        ),
        (
            "adapter: lora\nlora_r: 8\nlora_target_linear: true\npeft_layers_to_transform: [3, 4]\n",
            {"layers_to_transform": (3, 4), "targets": ("linear-modules",)},
        ),
        (
            "unfrozen_parameters: ['^model.layers.1[0-9].mlp', 'lm_head']\n",
            {"method": "full", "trained_parameters": ("^model.layers.1[0-9].mlp", "lm_head")},
        ),
    ],
)
def test_what_of_a_model_trains(lines, fields, tmp_path):
    path = tmp_path / "axolotl.yaml"
    path.write_text(f"base_model: Qwen/Qwen3-30B-A3B\nsequence_len: 64\n{lines}")
    imported = read_training_file(path)
    model = applied(imported, find("qwen3-30b-a3b"))
    setup = resolve(imported=imported.fields)
    assert {name: getattr(setup, name) for name in fields} == fields
    assert imported.not_modelled() == []
    assert emit_config("axolotl", model, setup).differs == ()


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("model.layers.1", False),
        ("^lm_head.*", False),
        ("base_model.model.lm_head", True),
        ("b*.model", True),
        ("(model|base)", True),
        ("[a-z_]+.model", True),
    ],
)
def test_what_trains_beside_an_adapter_is_what_begins_with_its_names(tmp_path, pattern, named):
    """axolotl 0.19 train.py freezes after the adapter is there: names begin with base_model, and what no
    pattern names is frozen.
    """
    path = tmp_path / "axolotl.yaml"
    path.write_text(f"base_model: a/b\nadapter: lora\nlora_r: 8\nunfrozen_parameters: ['{pattern}']\n")
    imported = read_training_file(path)
    lacks = ["unfrozen_parameters (names of an adapted model's parameters)"] if named else []
    assert imported.not_modelled() == lacks and "trained_parameters" not in imported.fields
    assert any("trains nothing" in text for text in imported.warnings) == (not named)


def test_a_script_that_adapts_experts(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        "from peft import LoraConfig\nfrom trl import SFTConfig, SFTTrainer\n"
        "peft = LoraConfig(r=8, target_modules=[], target_parameters=['mlp.experts.down_proj'])\n"
        "SFTTrainer(model='openai/gpt-oss-20b', args=SFTConfig(max_length=512), peft_config=peft).train()\n"
    )
    fields = read_training_file(path).fields
    assert (fields["targets"], fields["target_parameters"]) == ((), ("mlp.experts.down_proj",))
