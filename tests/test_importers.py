"""Training files: every key of every example is accounted for, the settings that move memory arrive, and nothing is executed or echoed."""

import json
from pathlib import Path

import pytest

from planner.errors import UsageError
from planner.importers.files import FORMATS, read_training_file
from planner.importers.snippet import FENCE, read_snippet
from planner.setup import resolve

DATA = Path(__file__).parent / "data" / "importers"
EXAMPLES = sorted(path for path in DATA.rglob("*") if path.is_file())

EXPECTED = {
    "setup_qlora.yaml": ("llama-3.1-8b", {"method": "qlora", "rank": 8, "sequence_length": 1024, "recipe": "hf"}),
    "setup_full.json": ("gpt2", {"method": "full", "recipe": "raw", "micro_batch": 4, "targets": ("c_attn",)}),
    "prediction.json": ("gpt2", {"method": "lora", "rank": 4, "micro_batch": 2}),
    "axolotl_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "recipe": "axolotl",
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": True,
            "quant_storage": "bfloat16",
            "rank": 32,
            "alpha": 16,
            "dropout": 0.05,
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 4096,
            "packed_documents": 2,
            "gradient_accumulation": 4,
            "optimizer": "paged_adamw_8bit",
            "checkpointing": "non_reentrant",
            "attention": "flash_attention_2",
            "allocator": "expandable",
            "kbit_prepare": False,
        },
    ),
    "axolotl_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "method": "full",
            "micro_batch": 4,
            "sequence_length": 2048,
            "loss": "fused",
            "attention": "sdpa",
            "weight_dtype": "bfloat16",
            "upcast_modules": "norms_and_embeddings",
        },
    ),
    "axolotl_fsdp_lora.yaml": (
        "meta-llama/Llama-3.1-70B",
        {
            "method": "lora",
            "quant_type": "int8",
            "parallel": "fsdp",
            "gpus": 8,
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "sequence_length": 1024,
            "optimizer": "adamw_torch",
        },
    ),
    "llamafactory_v1_lora.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {"recipe": "raw", "method": "lora", "rank": 16, "alpha": 32, "targets": ("all-linear",), "micro_batch": 2, "sequence_length": 4096,
         "parallel": "fsdp", "checkpointing": "non_reentrant", "optimizer": "adamw_torch", "autocast": "none", "weight_dtype": "bfloat16"},
    ),
    "llamafactory_v1_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {"method": "qlora", "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16", "quant_storage": "bfloat16", "rank": 64,
         "targets": ("q_proj", "v_proj"), "kbit_prepare": False, "packed_documents": 2, "attention": "flash_attention_2",
         "sequence_length": 2048, "dropout": 0.05},
    ),
    "llamafactory_v1_full.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {"method": "full", "weight_dtype": "float32", "parallel": "zero2", "micro_batch": 4, "optimizer": "adamw_torch"},
    ),
    "llamafactory_lora.yaml": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {
            "recipe": "llamafactory",
            "method": "lora",
            "rank": 8,
            "alpha": 16,
            "micro_batch": 1,
            "gradient_accumulation": 8,
            "sequence_length": 2048,
            "checkpointing": "reentrant",
            "autocast": "bfloat16",
            "trainable_dtype": "float32",
        },
    ),
    "llamafactory_qlora.yaml": (
        "Qwen/Qwen2.5-7B",
        {
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": True,
            "rank": 64,
            "targets": ("q_proj", "v_proj"),
            "upcast_modules": "norms",
            "attention": "flash_attention_2",
            "sequence_length": 8192,
            "micro_batch": 2,
            "packed_documents": 2,
            "optimizer": "paged_adamw_8bit",
        },
    ),
    "llamafactory_full_ds.yaml": (
        "mistralai/Mistral-7B-v0.1",
        {
            "method": "full",
            "trainable_dtype": "weight",
            "autocast": "none",
            "parallel": "zero3",
            "checkpointing": "non_reentrant",
            "loss": "fused",
            "sequence_length": 4096,
        },
    ),
    "trl_sft.yaml": (
        "Qwen/Qwen2.5-0.5B",
        {
            "recipe": "trl",
            "method": "full",
            "weight_dtype": "bfloat16",
            "sequence_length": 1024,
            "micro_batch": 2,
            "packed_documents": 2,
            "loss": "chunked",
            "attention": "flash_attention_2",
            "checkpointing": "non_reentrant",
        },
    ),
    "trl_lora.yaml": (
        "meta-llama/Llama-3.2-1B",
        {"method": "lora", "weight_dtype": "float32", "rank": 32, "alpha": 16, "dropout": 0.05, "sequence_length": 2048, "micro_batch": 4},
    ),
    "trl_qlora.yaml": (
        "meta-llama/Llama-3.1-8B",
        {
            "method": "qlora",
            "double_quant": True,
            "compute_dtype": "bfloat16",
            "adapter_dtype": "bfloat16",
            "targets": ("peft-default",),
            "modules_to_save": ("lm_head",),
            "optimizer": "paged_adamw_32bit",
            "kbit_prepare": False,
        },
    ),
    "hf_bf16.json": (None, {"recipe": "hf", "micro_batch": 4, "autocast": "bfloat16", "checkpointing": "non_reentrant"}),
    "hf_fsdp.json": (None, {"optimizer": "adafactor", "parallel": "fsdp", "checkpointing": "non_reentrant", "micro_batch": 2}),
    "hf_fp16.json": (
        None,
        {"autocast": "float16", "optimizer": "adamw_bnb_8bit", "checkpointing": "reentrant", "checkpoint_every": 2, "micro_batch": 8},
    ),
    "torchtune_qlora.yaml": (
        "llama-3.1-8b",
        {
            "recipe": "raw",
            "method": "qlora",
            "adapter_dtype": "bfloat16",
            "autocast": "none",
            "optimizer": "adamw_torch_fused",
            "rank": 8,
            "targets": ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            "sequence_length": 4096,
            "kbit_prepare": False,
        },
    ),
    "torchtune_full.yaml": ("llama-2-7b", {"method": "full", "optimizer": "paged_adamw_32bit", "packed_documents": 2}),
    "torchtune_lora.yaml": (
        "mistral-7b",
        {"method": "lora", "weight_dtype": "float32", "rank": 64, "checkpointing": "none", "attention": "sdpa-efficient"},
    ),
    "lora/adapter_config.json": (
        "meta-llama/Llama-2-7b-hf",
        {"method": "rslora", "rank": 64, "alpha": 16, "targets": ("q_proj", "v_proj")},
    ),
    "adalora/adapter_config.json": ("huggyllama/llama-7b", {"method": "adalora", "init_rank": 12, "target_rank": 4}),
    "ia3/adapter_config.json": ("bigscience/bloom-560m", {"method": "ia3"}),
    "accelerate_fsdp2.yaml": (None, {"parallel": "fsdp", "gpus": 8, "autocast": "bfloat16"}),
    "accelerate_zero3.yaml": (None, {"parallel": "zero3", "gpus": 4}),
    "accelerate_ddp.yaml": (None, {"parallel": "ddp", "gpus": 2, "autocast": "float16"}),
    "ds_z3_config.json": (None, {"parallel": "zero3"}),
    "deepspeed_zero2.json": (None, {"parallel": "zero2", "micro_batch": 4, "autocast": "bfloat16"}),
    "deepspeed_zero1.json": (None, {"parallel": "zero1", "autocast": "float16"}),
    "snippet_qlora.py": (
        "mistralai/Mistral-7B-v0.1",
        {
            "recipe": "raw",
            "method": "qlora",
            "quant_type": "nf4",
            "double_quant": False,
            "compute_dtype": "bfloat16",
            "kbit_prepare": True,
            "checkpointing": "non_reentrant",
            "rank": 8,
            "alpha": 16,
            "optimizer": "adamw_torch_fused",
        },
    ),
    "snippet_trainer.py": (
        "Qwen/Qwen2.5-1.5B",
        {
            "recipe": "trl",
            "method": "lora",
            "weight_dtype": "bfloat16",
            "checkpointing": "none",
            "targets": ("all-linear",),
            "micro_batch": 2,
            "sequence_length": 2048,
        },
    ),
    "snippet_markdown.md": ("HuggingFaceTB/SmolLM2-360M", {"recipe": "hf", "method": "full", "optimizer": "adafactor", "micro_batch": 4}),
}


def test_every_example_is_in_the_table_and_every_format_has_three():
    assert {str(path.relative_to(DATA)) for path in EXAMPLES} == set(EXPECTED)
    formats = [read_training_file(path).format for path in EXAMPLES]
    assert all(formats.count(name) >= 3 for name in (*FORMATS, "python")), formats


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name):
    model, expected = EXPECTED[name]
    imported = read_training_file(DATA / name)
    assert imported.model == model
    assert [report.key for report in imported.by_status("unknown")] == []
    setup = resolve(imported=imported.fields)
    assert {key: getattr(setup, key) for key in expected} == expected
    json.dumps(imported.to_document())


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.suffix in (".yaml", ".json")], ids=lambda path: path.name)
def test_every_key_of_an_example_is_reported_once(path):
    imported = read_training_file(path)
    document = json.loads(path.read_text()) if path.suffix == ".json" else __import__("yaml").safe_load(path.read_text())
    reported = [report.key.split(".")[0] for report in imported.keys]
    document = document.get("setup", document)  # of a prediction, its setup: a later version's fields are the reader's to drop
    assert set(document) - {"a_field_of_a_later_version"} <= set(reported)


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


@pytest.mark.parametrize(("text", "message"), [
    ("base_model: a\nmicro_batch_size: two\n", "micro_batch_size is 'two': expected a whole number"),
    ("base_model: a\nmicro_batch_size: 0\n", "micro_batch_size is 0"),
    ("base_model: a\ndatasets: []\nadapter: mixlora\n", "adapter 'mixlora' has no row"),
    ("base_model: a\ndatasets: []\noptimizer: adamv\n", "did you mean"),
    ("base_model: a\ndatasets: []\nattn_implementation: flsh\n", "unknown attention implementation"),
    ("base_model: a\ndatasets: []\nbf16: maybe\n", "expected true, false, auto or full"),
    ("model_name_or_path: a\nfinetuning_type: lorra\n", "expected one of lora, full, freeze, oft"),
    ("model_name_or_path: a\nstage: sft\nfinetuning_type: oft\n", "adapter_config.json"),
    ("hello: world\n", "no training file that memplan knows"),
    ("- a\n- b\n", "not a mapping"),
    ("", "is empty"),
    ("a: 1\na: 2\n", "twice (line 2)"),
    ("a: !!python/object/apply:os.system ['ls']\n", "a tag (line 1)"),
    ("a: &a [*a]\n", "nested more than"),
    ("{" * 3000, "nested more than"),
    ("a: b: c\n", "not valid YAML, line 1"),
    ("a: 1\n---\nb: 2\n", "another document"),
    ("? [a]\n: 1\n", "list or a mapping"),
])  # fmt: skip
def test_bad_files_get_one_message(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"(?s)^.{1,400}$") as caught:
        read_training_file(path)
    assert message in str(caught.value)


def test_anchors_that_explode_are_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="anchors may not multiply"):
        read_training_file(path)


def test_an_honest_anchor_and_a_merge_key_work(tmp_path):
    path = tmp_path / "ok.yaml"
    path.write_text("common: &c\n  sequence_len: 64\n<<: *c\nbase_model: a\nmicro_batch_size: 3\n")
    imported = read_training_file(path)
    assert imported.fields["sequence_length"] == 64 and imported.fields["micro_batch"] == 3


def test_a_file_of_100_mb_is_refused_without_being_read(tmp_path):
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(UsageError, match="104,857,600 bytes"):
        read_training_file(path)


SECRET = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm"


@pytest.mark.parametrize("text", [
    f"base_model: a\nmicro_batch_size: {SECRET}\n",
    f"base_model: a\ndatasets: []\nattn_implementation: {SECRET}\n",
    f"base_model: a\ndatasets: []\noptimizer: {SECRET}\n",
    f"base_model: a\ndatasets: []\nhub_token: {SECRET}\nwandb_api_key: {SECRET}\nmy_own_token: {SECRET}\n{SECRET}: 1\n",
    f"base_model: a\nx: [1, {SECRET}\n",
    f"base_model: a\nx: *{SECRET}\n",
])  # fmt: skip
def test_secrets_are_never_echoed(tmp_path, text):
    path = tmp_path / "secret.yaml"
    path.write_text(text)
    try:
        shown = json.dumps(read_training_file(path).to_document())
    except UsageError as error:
        shown = str(error)
    assert SECRET not in shown and SECRET[5:] not in shown


def test_a_snippet_is_not_run_and_what_is_not_literal_is_reported(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("import sys; sys.exit(1)\nimport nowhere\nm = AutoModelForCausalLM.from_pretrained(argv[1], dtype=pick())\n"
                    "c = LoraConfig(r=argv[2], lora_alpha=4, target_modules=[f'{x}_proj' for x in 'qv'])\n")  # fmt: skip
    imported = read_training_file(path)
    assert imported.model is None and imported.fields["alpha"] == 4
    assert {report.key for report in imported.by_status("unknown")} == {
        "from_pretrained(dtype)",
        "LoraConfig(r)",
        "LoraConfig(target_modules)",
    }


@pytest.mark.parametrize(("text", "message"), [("x = (", "not Python that can be read"), ("print(1)\n", "no call that memplan knows"),
                                               ("x" * (10**6 + 1), "characters of code"), ("(" * 4000, "not Python")])  # fmt: skip
def test_bad_snippets(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_training_file(path)


def test_a_notebook_is_read_through_its_cells(tmp_path):
    source = [line + "\n" for line in (DATA / "snippet_qlora.py").read_text().splitlines()]
    path = tmp_path / "train.ipynb"
    path.write_text(
        json.dumps(
            {"cells": [{"cell_type": "markdown", "source": ["# hi"]}, {"cell_type": "code", "source": ["%pip install x\n", *source]}]}
        )
    )
    assert read_training_file(path).fields["method"] == "qlora"


def test_the_documents_own_snippets():
    seeds = Path(__file__).parent.parent.parent / "shared" / "seeds"
    files = sorted(seeds.glob("001_*.txt"))
    if not files:
        pytest.skip("the documents are not beside this checkout")
    lora, qlora = (read_snippet(piece, "001") for piece in FENCE.findall(files[0].read_text()) if "Config(" in piece)
    assert (lora.model, lora.fields["method"], lora.fields["rank"], lora.fields["targets"]) == (
        "facebook/opt-350m",
        "lora",
        8,
        ("q_proj", "v_proj"),
    )
    assert qlora.model == "meta-llama/Llama-2-7b-hf"
    setup = resolve(imported=qlora.fields)
    assert (setup.method, setup.quant_type, setup.double_quant, setup.compute_dtype) == ("qlora", "nf4", True, "bfloat16")
    assert setup.kbit_prepare and setup.checkpointing == "reentrant" and len(setup.targets) == 7 and setup.rank == 16
    assert not qlora.by_status("unknown") and not lora.by_status("unknown")


def test_sharding_files_beside_a_training_file():
    imported = read_training_file(DATA / "axolotl_full.yaml", beside=(DATA / "accelerate_fsdp2.yaml",))
    assert (imported.fields["parallel"], imported.fields["gpus"], imported.fields["micro_batch"]) == ("fsdp", 8, 4)


def test_a_deepspeed_file_that_is_not_there_is_said(tmp_path):
    path = tmp_path / "lf.yaml"
    path.write_text((DATA / "llamafactory_full_ds.yaml").read_text())
    imported = read_training_file(path)
    assert imported.fields["parallel"] == "zero3" and any("not beside" in warning for warning in imported.warnings)
    path.write_text("model_name_or_path: a\nstage: sft\ndeepspeed: ../../../etc/passwd\n")
    assert "passwd is not beside" in read_training_file(path).warnings[-1]


@pytest.mark.parametrize(("lines", "loss", "words"), [
    ("liger_fused_linear_cross_entropy: true", "fused", None),
    ("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]", "fused", "cut cross-entropy"),
    ("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\ncut_cross_entropy: false", "full", None),
    ("chunked_cross_entropy: true", "chunked", None),
    ("plugins: [axolotl.integrations.spectrum.SpectrumPlugin]", "full", "a plugin other than"),
])  # fmt: skip
def test_axolotls_losses(tmp_path, lines, loss, words):
    path = tmp_path / "a.yaml"
    path.write_text(f"base_model: a\nmicro_batch_size: 1\n{lines}\n")
    imported = read_training_file(path)
    assert resolve(imported=imported.fields).loss == loss
    assert any(words in warning for warning in imported.warnings) if words else not imported.warnings


@pytest.mark.parametrize(("lines", "words"), [
    ("tiled_mlp: true", "on the high side"),
    ("lora_mlp_kernel: true", "saves fewer tensors, so the prediction is on the high side"),
    ("liger_rms_norm: true", "on the high side"),
    ("rl: dpo", "on the low side"),
    ("optimizer: adamw_torch_8bit", "has no row: adamw_torch_fused's states are assumed, so the prediction is on the high side"),
    ("optimizer: grokadamw", "on the low side"),
    ("cut_cross_entropy: true", "on the high side"),
    ("context_parapllel_size: 2", "unknown key context_parapllel_size (did you mean context_parallel_size?)"),
])  # fmt: skip
def test_a_warning_says_which_way_the_number_errs_or_what_was_meant(tmp_path, lines, words):
    path = tmp_path / "a.yaml"
    path.write_text(f"base_model: a\nmicro_batch_size: 1\n{lines}\n")
    assert any(words in warning for warning in read_training_file(path).warnings), read_training_file(path).warnings


def test_a_handbook_file_of_preference_training_is_trls_and_says_what_it_lacks(tmp_path):
    path = tmp_path / "dpo.yaml"
    path.write_text("model_name_or_path: a\ndataset_mixture: {x: 1}\ntorch_dtype: bfloat16\nbeta: 0.1\nmax_prompt_length: 512\n")
    imported = read_training_file(path)
    assert imported.format == "trl" and not imported.by_status("unknown")
    assert any("reference model" in warning and "low side" in warning for warning in imported.warnings)


def test_llamafactorys_v1_says_what_it_assumed():
    warnings = read_training_file(DATA / "llamafactory_v1_full.yaml").warnings
    assert any("optim_config.name" in warning for warning in warnings) and any("global_batch_size" in warning for warning in warnings)
    warnings = read_training_file(DATA / "llamafactory_v1_qlora.yaml").warnings
    assert any("kernels" in warning and "high side" in warning for warning in warnings)


def test_a_torchtune_file_that_generates_is_refused(tmp_path):
    path = tmp_path / "generation.yaml"
    path.write_text("model: {_component_: torchtune.models.llama2.llama2_7b}\nprompt: {user: hi}\ntop_k: 3\n")
    with pytest.raises(UsageError, match="trains nothing"):
        read_training_file(path)


def test_every_torchtune_builder_names_an_entry_of_the_catalogue():
    from planner.importers.torchtune import MODELS
    from planner.models import names

    assert set(MODELS.values()) <= set(names())


@pytest.mark.parametrize(("pattern", "targets"), [
    (r"model.language_model.layers.[\\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj",
     {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    (r".*\\.self_attn\\.(q|v)_proj", {"q_proj", "v_proj"}),
])  # fmt: skip
def test_a_pattern_of_targets_is_read_as_the_modules_that_it_means(tmp_path, pattern, targets):
    path = tmp_path / "a.yaml"
    path.write_text(f'base_model: a\nmicro_batch_size: 1\nadapter: lora\nlora_target_modules: "{pattern}"\n')
    imported = read_training_file(path)
    assert set(imported.fields["targets"]) == targets and any("pattern" in warning for warning in imported.warnings)


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*(x|y", "vision_tower.*"])
def test_a_pattern_that_means_nothing_here_is_refused(tmp_path, pattern):
    path = tmp_path / "a.yaml"
    path.write_text(f'base_model: a\nmicro_batch_size: 1\nadapter: lora\nlora_target_modules: "{pattern}"\n')
    with pytest.raises(UsageError, match="lora_target_modules"):
        read_training_file(path)
