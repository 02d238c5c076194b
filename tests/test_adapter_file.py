"""--adapter FILE: what the file says is the Setup, nothing beside it may contradict, and the trace is for
what the formula lacks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memplan
from memplan import api
from memplan.cli.main import run
from memplan.planner.importers import peft
from memplan.planner.inputs.models import find
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"
RSLORA = {
    "peft_type": "LORA",
    "r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "use_rslora": True,
    "target_modules": ["q_proj", "v_proj"],
}
IA3 = {
    "peft_type": "IA3",
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}

PROMPTS = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": 7,
    "prompt_tuning_init": "RANDOM",
    "task_type": "CAUSAL_LM",
}
PREFIX = {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": 30,
    "prefix_projection": False,
    "num_layers": 32,
    "token_dim": 4096,
    "num_attention_heads": 32,
    "encoder_hidden_size": 4096,
    "num_transformer_submodules": 1,
}


def settings(
    document: dict, said: dict | None = None, under: dict | None = None, model: str = "llama-7b"
) -> dict:
    return peft.settings(document, said or {}, under or {}, find(model).spec())


def test_the_documents_setup_is_what_the_file_says(capsys: pytest.CaptureFixture[str]):
    args = ["llama-7b", "--adapter", str(DATA / "lora" / "adapter_config.json"), "--json"]
    assert run(args) == 0
    document = json.loads(capsys.readouterr().out)
    said = {
        name: document["setup"][name] for name in ("method", "rank", "alpha", "dropout", "targets", "adapter")
    }
    assert said == {
        "method": "rslora",
        "rank": 64,
        "alpha": 16,
        "dropout": 0.1,
        "targets": ["q_proj", "v_proj"],
        "adapter": None,
    }
    assert document["engine"] == "formula"
    assert document["trainable_parameters"] == 32 * 2 * 64 * (4096 + 4096)


@pytest.mark.parametrize(
    ("document", "model"),
    [
        (RSLORA, "llama-7b"),
        ({"peft_type": "LORA"}, "gpt2"),
        (
            {
                **RSLORA,
                "use_rslora": False,
                "use_dora": True,
                "rank_pattern": {},
                "layers_to_transform": None,
                "lora_bias": False,
            },
            "llama-7b",
        ),
        (json.loads((DATA / "adalora" / "adapter_config.json").read_text()), "llama-7b"),
        (json.loads((DATA / "ia3" / "adapter_config.json").read_text()), "bloom-560m"),
        (IA3, "llama-7b"),
        ({"peft_type": "IA3"}, "llama-7b"),
        ({**RSLORA, "key_of_a_newer_peft": None}, "llama-7b"),
        (PROMPTS, "llama-7b"),
        (PREFIX, "llama-7b"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "falcon-40b"),
    ],
)
def test_a_plain_file_goes_to_the_formula(document, model):
    assert memplan.plan(model, adapter=document).engine == "formula"


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        (
            {**RSLORA, "rank_pattern": {"q_proj": 4}},
            {"method": "rslora", "rank": 64, "targets": ("q_proj", "v_proj")},
        ),
        ({**RSLORA, "lora_bias": True}, {"rank": 64}),
        ({**RSLORA, "key_of_a_newer_peft": 3}, {"rank": 64}),
        ({**RSLORA, "target_modules": ".*q_proj"}, {"targets": (".*q_proj",)}),
        ({**IA3, "feedforward_modules": []}, {"method": "ia3"}),
        ({**PROMPTS, "prompt_tuning_init": "TEXT"}, {"method": "prompt-tuning", "virtual_tokens": 7}),
        (
            {"peft_type": "VERA", "r": 256, "target_modules": ["q_proj"]},
            {"rank": 256, "targets": ("q_proj",)},
        ),
        ({**PREFIX, "prefix_projection": True}, {"method": "prefix-tuning", "virtual_tokens": 30}),
    ],
)
def test_what_the_formula_lacks_keeps_the_file_and_its_values(document, fields):
    found = settings(document)
    assert found["adapter"] == document
    assert {name: found[name] for name in fields} == fields
    with pytest.raises(memplan.UsageError, match="--engine trace"):
        memplan.plan("llama-7b", engine="formula", adapter=document)


def test_a_silent_file_has_pefts_own_defaults():
    found = settings({"peft_type": "LORA"})
    assert (found["rank"], found["alpha"], found["dropout"], found["targets"]) == (
        8,
        8,
        0.0,
        ("peft-default",),
    )
    found = settings({"peft_type": "ADALORA"})
    assert (found["method"], found["init_rank"], found["target_rank"], "rank" in found) == (
        "adalora",
        12,
        8,
        False,
    )


def test_pefts_own_defaults_are_pefts():
    config = pytest.importorskip("peft")
    for cls in (config.LoraConfig, config.AdaLoraConfig):
        made = cls() if cls is config.LoraConfig else cls(total_step=100)
        said = peft.DEFAULTS[made.peft_type.value]
        names = {
            "rank": "r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "init_rank": "init_r",
            "target_rank": "target_r",
        }
        assert {name: getattr(made, names[name]) for name in said if name in names} == {
            k: v for k, v in said.items() if k in names
        }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rank", "4"], "rank 4 contradicts the adapter file, which says 64"),
        (["--targets", "q_proj"], "targets q_proj contradicts the adapter file, which says q_proj,v_proj"),
        (["--set", "dropout=0"], "dropout 0 contradicts"),
        (["--method", "dora"], "method 'dora' contradicts the adapter file"),
        (["--method", "full"], "method 'full' contradicts the adapter file"),
        (["--set", "init_rank=3"], "init_rank stands beside an adapter file"),
    ],
)
def test_an_option_that_contradicts_the_file_is_exit_two(args, words, capsys: pytest.CaptureFixture[str]):
    assert run(["llama-7b", "--adapter", str(DATA / "lora" / "adapter_config.json"), *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err


def test_what_agrees_or_changes_only_what_stands_around_the_adapter_is_no_contradiction():
    plain = memplan.plan("llama-7b", adapter=RSLORA)
    same = memplan.plan("llama-7b", adapter=RSLORA, rank=64, targets="v_proj,q_proj", alpha=16)
    assert same.peak == plain.peak
    quantized = memplan.plan("llama-7b", adapter=RSLORA, method="qlora")
    assert (
        quantized.setup.quant_type == "nf4" and quantized.setup.rank == 64 and quantized.engine == "formula"
    )
    assert settings(RSLORA, under={"method": "qlora"})["method"] == "qlora"
    assert settings(RSLORA, under={"method": "full"})["method"] == "rslora"


def test_a_family_that_only_the_trace_knows_keeps_the_file():
    assert peft.settings(RSLORA, {}, {}, None)["adapter"] == RSLORA


@pytest.mark.trace
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("r", 10**7, "a whole number from 1 to 1,000,000"),
        ("lora_alpha", -1, "a number above 0"),
        ("lora_dropout", 1.0, "a number from 0 to less than 1"),
        ("init_r", 10**11, "a whole number from 1 to 1,000,000,000"),
        ("target_modules", [""], "names of modules"),
        ("target_modules", ["q_proj", " "], "names of modules"),
        ("target_modules", [], "names of modules (PEFT finds none to adapt)"),
    ],
)
def test_a_value_that_no_adapter_has_is_refused_by_the_name_that_the_file_gives_it(key, value, expected):
    with pytest.raises(UsageError) as caught:
        memplan.plan("llama-7b", adapter={**RSLORA, key: value})
    assert f"{key} is {value}: expected {expected}" in str(caught.value)


@pytest.mark.parametrize(
    "document", [RSLORA, IA3, {**RSLORA, "use_dora": True}, PROMPTS], ids=["rslora", "ia3", "dora", "prompts"]
)
def test_the_trace_of_the_settings_is_the_trace_of_the_file(document):
    pytest.importorskip("peft")
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 128,
        "max_position_embeddings": 64,
    }
    from memplan.planner.trace.engine import trace

    folded = api.request(config, sequence_length=16, adapter=document)[1]
    assert folded.adapter is None
    whole = trace(config, folded.with_(adapter=document))
    assert trace(config, folded).moments == whole.moments
