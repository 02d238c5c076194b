"""find: what it accepts, and that every user's mistake is one UsageError that names the key, the value and
what was expected.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memplan.planner.formula.resident.tensors import weight_tensors
from memplan.planner.inputs.jsonfile import MOST_BYTES
from memplan.planner.inputs.models import Model, find, index
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import MemplanError, NetworkError, UsageError

LLAMA = find("llama-3.1-8b").config


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    """No test here asks the network, whatever text hypothesis makes of a name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def written(folder: Path, text: str, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_folder_a_file_a_dict_a_spec_and_a_model_are_all_found(tmp_path):
    path = written(tmp_path / "my-model", json.dumps(LLAMA))
    given = (path, str(path), path.parent, str(path.parent), LLAMA, find(LLAMA).spec(), find(LLAMA))
    found = [find(each) for each in given]
    assert {model.spec().parameters for model in found} == {8_030_261_248}
    assert [model.name for model in found[:4]] == ["my-model"] * 4
    assert found[0].source == str(path) and found[4].source == "dict"


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert find(path).spec().hidden == 4096


def test_a_name_wins_over_a_folder_unless_it_is_written_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "llama-7b", json.dumps({**LLAMA, "num_hidden_layers": 1}))
    assert find("llama-7b").spec().depth == 32
    assert find("./llama-7b").spec().depth == 1
    written(tmp_path / "meta-llama" / "Llama-2-7b-hf", json.dumps({**LLAMA, "num_hidden_layers": 2}))
    assert find("meta-llama/Llama-2-7b-hf").spec().depth == 2  # as transformers does


def test_entries_with_something_to_say_carry_a_note():
    assert "vision tower" in find("gemma-3-4b").spec().notes[0]
    assert "fp8" in find("deepseek-v3").spec().notes[0]
    assert find("llama-7b").spec().notes == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("lama-7b", r"unknown model 'lama-7b': did you mean llama-7b"),
        ("no-such-thing-at-all", r"unknown model 'no-such-thing-at-all'"),
        ("", r"expected a name"),
        ("   ", r"expected a name"),
        ("./nowhere", r"'nowhere' does not exist|'./nowhere' does not exist"),
        ("/nowhere/config.json", r"does not exist: expected a config.json or a folder"),
        ("a" * 10_000, r"unknown model"),
        ("./" + "a" * 10_000, r"not a usable path|does not exist"),
        ("x\0y", r"null character"),
        ("~nobody-of-this-name/model", r"home folder that does not exist"),
        ("\x1b[31mred", r"unknown model '\?\[31mred'"),
    ],
)
def test_names_that_are_not_models(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        find(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 3, 3.5, True, [], b"llama-7b"])
def test_things_that_are_not_models(value):
    with pytest.raises(UsageError, match="expected a name, a path, a dict or a ModelSpec"):
        find(value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"model_type": "llama", ', r"is not JSON: .* at line 1 column"),
        ("", r"is not JSON"),
        ("[1, 2]", r"holds a JSON list, expected an object"),
        ('"llama"', r"holds a JSON str, expected an object"),
        ("[" * 100_000, r"nested more than 60 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, r"nested more than 60 levels"),
        (
            '{"hidden_size": ' + "9" * 5000 + "}",
            r"config.json': hidden_size is a number of 5,000 digits",
        ),
        ('{"peft_type": "LORA", "r": 16}', r"PEFT adapter.*--adapter"),
    ],
)
def test_files_that_are_not_configs(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        find(written(tmp_path, text))


def test_a_folder_without_config_a_binary_file_a_huge_file_and_a_pipe(tmp_path):
    with pytest.raises(UsageError, match="has no config.json"):
        find(tmp_path)
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="is not text: byte 128 is not UTF-8"):
        find(tmp_path / "binary.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(UsageError, match=f"has {MOST_BYTES + 1:,} bytes"):
        find(tmp_path / "huge.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UsageError, match="is not a file"):
        find(tmp_path / "pipe.json")


def test_an_id_that_is_nowhere_names_the_catalogs_nearest():
    with pytest.raises(NetworkError, match="meta-llama/Llama-3.1-8B"):
        find("meta-llama/Llama-3.1-8")


JUNK = [
    (-1, "-1"),
    (0, "0"),
    (4096.5, "4096.5"),
    ("4096", "'4096'"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    (10**30, "10^30"),
    (True, "True"),
    ([4096], r"[4096]"),
    ({}, "{}"),
]


SIZES = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value, shown", JUNK, ids=[shown for _, shown in JUNK])
def test_a_size_that_is_not_one_names_the_key_the_value_and_what_was_expected(key, value, shown):
    with pytest.raises(UsageError) as caught:
        find({**LLAMA, key: value}).spec()
    message = str(caught.value)
    assert key in message and shown in message and "expected an integer from 1 to" in message


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_attention_heads": 31},
            "num_key_value_heads = 8, expected a divisor of num_attention_heads 31",
        ),
        ({"num_attention_heads": 24}, "num_attention_heads = 24, expected a divisor of hidden_size 4096"),
        (
            {"num_key_value_heads": 64},
            "num_key_value_heads = 64, expected a divisor of num_attention_heads 32",
        ),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5, expected a divisor of num_attention_heads 32"),
        ({"hidden_act": "silou"}, "hidden_act = 'silou', expected an activation such as silu"),
        ({"hidden_act": 7}, "hidden_act = 7, expected an activation"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes', expected true or false"),
        ({"attention_bias": 1}, "attention_bias = 1, expected true or false"),
        ({"attention_dropout": 1.5}, "attention_dropout = 1.5, expected a probability"),
        ({"attention_dropout": math.nan}, "attention_dropout = nan, expected a probability"),
        ({"partial_rotary_factor": -1}, "partial_rotary_factor = -1, expected a fraction"),
        ({"dtype": "int3"}, "dtype = 'int3', expected float32, float16 or bfloat16"),
        ({"model_type": None}, "key model_type is missing"),
        ({"model_type": 5}, "model_type = 5, expected a name such as 'llama'"),
        ({"model_type": ""}, "model_type = '', expected a name"),
        (
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8},
            "num_experts_per_tok = 8, expected an integer from 1 to 4",
        ),
        (
            {"model_type": "gemma2", "layer_types": ["full_attention"]},
            "layer_types = .* expected a list of 32 names",
        ),
        (
            {"model_type": "gemma2", "layer_types": ["none"] * 32},
            "layer_types = 'none', expected each entry one of",
        ),
        (
            {"model_type": "smollm3", "no_rope_layers": [2] * 32},
            "no_rope_layers = .* expected a list of 32 zeros and ones",
        ),
        (
            {
                "model_type": "qwen3_moe",
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 64,
                "mlp_only_layers": "all",
            },
            "mlp_only_layers = 'all', expected a list of layer indices",
        ),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        find({**LLAMA, **changes}).spec()


INNER = st.sampled_from(["model_type", "partial_rotary_factor", "hidden_size"])
ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just(10**30),
    st.sampled_from(["silu", "llama", "sliding_attention"]),
    st.lists(st.integers(-1, 3), max_size=9),
    st.dictionaries(INNER, st.one_of(st.floats(), st.text(max_size=4)), max_size=2),
)
EXTRA = [
    "rope_parameters",
    "layer_types",
    "no_rope_layers",
    "mlp_only_layers",
    "text_config",
    "head_dim",
    "use_sliding_window",
    "dtype",
]
BASES = {row.config["model_type"]: row.config for row in (find(name) for name in sorted(index()))}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_value_under_any_key_gives_a_spec_or_a_usage_error(data):
    base = BASES[data.draw(st.sampled_from(sorted(BASES)))]
    keys = data.draw(st.lists(st.sampled_from([*base, *EXTRA]), min_size=1, max_size=3))
    config = {**base, **{key: data.draw(ANY) for key in keys}}
    try:
        spec = find(config).spec()
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    assert spec.parameters > 0
    assert spec.parameters == sum(
        t.elements * t.count for t in weight_tensors(spec) if t.role != "buffer" and t.tied_to is None
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_gives_a_model_or_a_message(text):
    try:
        assert isinstance(find(text), Model)
    except MemplanError as error:
        assert str(error)


def test_a_spec_is_parsed_once():
    model = find("llama-7b")
    assert model.spec() is model.spec() and isinstance(model.spec(), ModelSpec)


PROBE = """
import sys
opened = []
def note(event, args):
    if event == "open" and str(args[0]).endswith(".json"):
        opened.append(str(args[0]))
sys.addaudithook(note)
from memplan.planner.inputs.models import find
spec = find({name!r}).spec()
names = ("torch", "transformers", "yaml", "numpy", "huggingface_hub", "pydantic")
heavy = [name for name in names if name in sys.modules]
print(len(opened), heavy)
"""


@pytest.mark.parametrize("name, files", [("llama-7b", 1), ("meta-llama/Llama-2-7b-hf", 2)])
def test_finding_reads_one_file_and_an_index_and_imports_nothing_heavy(name, files):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(name=name)], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf"{files} \[\]", done.stdout.strip())
