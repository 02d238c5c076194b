"""Names as people type them: each the right model, or refused with the right next step."""

import json
import re

import pytest

from memplan.planner.inputs import names
from memplan.planner.inputs.models import find, index
from memplan.planner.tables.errors import NetworkError, UsageError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


MEANT = {
    "mistral": "mistral-7b",
    "qwen3-8b": "qwen3-8b",
    "gemma-3-4b-it": "gemma-3-4b",
    "Llama 3.1 8B": "llama-3.1-8b",
    "llama3.2:3b": "llama-3.2-3b",
    "Qwen 2.5 7B Instruct": "qwen2.5-7b",
    "gemma 4 31b": "gemma-4-31b",
    "olmo 3 32b": "olmo-3-32b",
    "Qwen3 Coder 30B A3B Instruct FP8": "qwen3-coder-30b-a3b",
    "phi4": "phi-4",
    "smollm3": "smollm3-3b",
    "magistral-small": "mistral-small-3.1-24b",
    "ministral-8b-instruct-2410": "ministral-8b",
    "glm-4.5-air-fp8": "glm-4.5-air",
    "gpt-oss-20b": "gpt-oss-20b",
    "Qwen2.5-32B-Instruct-AWQ": "qwen2.5-32b",
    "mistral-7b-instruct-v0.3-bnb-4bit": "mistral-7b-v0.3",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b",
    "Qwen/Qwen2.5-Coder-7B-Instruct-GPTQ-Int4": "qwen2.5-7b",
    "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": "qwen3-8b",
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": "llama-3.1-8b",
    "unsloth/Qwen3-14B-unsloth-bnb-4bit": "qwen3-14b",
    "TheBloke/Llama-2-7B-Chat-GPTQ": "llama-2-7b",
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": "llama-3.1-8b",
    "mlx-community/Llama-3.2-3B-Instruct-4bit": "llama-3.2-3b",
    "google/gemma-3-27b-it-qat-q4_0-gguf": "gemma-3-27b",
    "https://huggingface.co/Qwen/Qwen3-8B": "qwen3-8b",
    "https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json": "qwen3-8b",
    "hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M": "qwen3-8b",
    "dbrx": "dbrx-132b",
    "xgen-7b": "xgen-7b-8k",
    "trinity-nano-preview": "trinity-nano",
    "lfm2 8b a1b": "lfm2-8b-a1b",
    "LFM2-VL-450M": "lfm2-vl-450m",
    "gemma-4-12b-it": "gemma-4-12b",
    "gemma4 12b": "gemma-4-12b",
    "qwen3.8-27b": "qwen3.5-27b",
    "Qwen3.8 Flash Next": "qwen3.8-flash-next",
    "Inferact/Qwen3.8-Flash-Next-NVFP4": "qwen3.8-flash-next",
    "axolotl-ai-co/Mistral-Medium-3.5-128B-BF16": "mistral-medium-3.5-128b",
    "mistral-medium-3.5": "mistral-medium-3.5-128b",
    "nemotron-mini": "nemotron-mini-4b",
    "minitron-4b": "nemotron-mini-4b",
    "falcon-h1-34b-instruct": "falcon-h1-34b",
    "orpheus": "orpheus-3b",
    "MiMo-7B-RL": "mimo-7b",
    "ling 3.0 tiny": "ling-3.0-tiny",
    "north-micro-vision-instruct": "north-micro-vision",
}
REFUSED = {
    "qwen3": "comes in several sizes: say which: qwen3-0.6b, qwen3-1.7b",
    "llama 3": "comes in several sizes: say which: llama-3-8b, llama-3-70b$",
    "lama-7b": "did you mean llama-7b or llama-2-7b",
    "llama-8b": "did you mean llama-3-8b or llama-3.1-8b",
    "phi-5-14b": "not in the catalog: give a hub id .org/name. or its config.json",
    "mistral-small-2409": "not in the catalog: give a hub id",  # it has 22B: not mistral-small-24b
    "no-such-model-9b": "not in the catalog: give a hub id",
    "https://huggingface.co/datasets/org/name": "is a page of the hub, not a model",
}
ASKED_OF_THE_HUB = {
    "someone/Llama-3.1-8B-Instruct": "The catalog has meta-llama/Llama-3.1-8B",
    "someone/Qwen3-8B-my-finetune": r"The catalog has Qwen/Qwen3-\S*8B",
    "mistralai/Mistral-Small-Instruct-2409": "give its path$",
    "Qwen/Qwen3-Embedding-8B": "The catalog has",
}


def test_there_are_thirty_names():
    assert len(MEANT) >= 48


@pytest.mark.parametrize("text, entry", MEANT.items())
def test_a_name_means_its_model(text, entry):
    assert find(text).name == entry


@pytest.mark.parametrize("text, message", REFUSED.items())
def test_a_name_that_means_none_says_the_next_step(text, message):
    with pytest.raises(UsageError, match=message):
        find(text)


@pytest.mark.parametrize("text, message", ASKED_OF_THE_HUB.items())
def test_somebodys_model_is_asked_of_the_hub_and_never_guessed(text, message):
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE forbids") as caught:
        find(text)
    assert re.search(message, str(caught.value))


def test_what_is_left_out_of_a_name_is_said():
    note = find("unsloth/Qwen3-8B-bnb-4bit").note
    assert note.startswith("'unsloth/Qwen3-8B-bnb-4bit' interpreted as qwen3-8b, the same architecture")
    assert "its weights quantized with bitsandbytes (bnb-4bit; its own config.json is not here)" in note
    assert "how it is stored (gguf) is not counted" in find("unsloth/Qwen3-8B-GGUF").note
    assert find("qwen3-4b-instruct-2507").note == (
        "'qwen3-4b-instruct-2507' interpreted as qwen3-4b, the same architecture"
    )
    assert find("Qwen/Qwen3-8B").note == ""


def test_the_cache_of_a_variant_wins_over_the_catalog(tmp_path):
    folder = tmp_path / "models--unsloth--Qwen3-8B-bnb-4bit"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    own = {**find("qwen3-8b").config, "num_hidden_layers": 3}
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(own))
    assert find("unsloth/Qwen3-8B-bnb-4bit").spec().depth == 3


@pytest.mark.parametrize("entry", sorted(index()))
def test_every_entry_is_found_by_its_spellings(entry):
    for text in (entry, entry.upper(), entry.replace("-", " "), f"{entry}-bnb-4bit"):
        assert find(text).name == entry
    if not re.search("instruct|v0|base", entry):
        assert find(f"{entry}-chat-awq").name == entry
    for one in index()[entry]["ids"]:
        assert find(one).name == entry and find(f"https://huggingface.co/{one}").name == entry


def test_suggestions_agree_in_family_and_size():
    entries = sorted(index())
    for text in ("qwen9-8b", "lama-3-70b", "gemma-5-27b", "mistarl-7b"):
        for name in names.suggestions(text, entries):
            assert names._sizes(names.plain(name)) == names._sizes(names.plain(text))
    assert names.suggestions("bert-8b", entries) == [] and names.suggestions("qwen3-9000b", entries) == []
    assert names.suggestions("x" * 10**6, entries) == []
