"""Files that cannot be read: one message, quickly, nothing executed, no secret echoed."""

import json

import pytest

from memplan.planner.importers.files import read_training_file
from memplan.planner.tables.errors import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: a\nmicro_batch_size: two\n", "micro_batch_size is 'two': expected a whole number"),
        ("base_model: a\nmicro_batch_size: 0\n", "micro_batch_size is 0"),
        (
            "base_model: a\nmicro_batch_size: 90000000\n",
            "micro_batch_size is 90000000: expected a whole number from 1",
        ),
        (
            "base_model: a\nadapter: lora\nlora_r: 1000001\n",
            "lora_r is 1000001: expected a whole number from 1 to",
        ),
        ("base_model: a\nadapter: lora\nlora_alpha: -1\n", "lora_alpha is -1: expected a number above 0"),
        (
            "base_model: a\nadapter: lora\nlora_dropout: 1\n",
            "lora_dropout is 1: expected a number from 0 to less",
        ),
        ("base_model: a\ndatasets: []\nadapter: mixlora\n", "adapter 'mixlora' is not supported"),
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
    ],
)
def test_bad_files_get_one_message(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"(?s)^.{1,400}$") as caught:
        read_training_file(path)
    assert message in str(caught.value)


def test_anchors_that_explode_are_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
    ]
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


@pytest.mark.parametrize(
    "text",
    [
        f"base_model: a\nmicro_batch_size: {SECRET}\n",
        f"base_model: a\ndatasets: []\nattn_implementation: {SECRET}\n",
        f"base_model: a\ndatasets: []\noptimizer: {SECRET}\n",
        f"base_model: a\ndatasets: []\nhub_token: {SECRET}\nwandb_api_key: {SECRET}\nmy_own_token: "
        f"{SECRET}\n{SECRET}: 1\n",
        f"base_model: a\nx: [1, {SECRET}\n",
        f"base_model: a\nx: *{SECRET}\n",
    ],
)
def test_secrets_are_never_echoed(tmp_path, text):
    path = tmp_path / "secret.yaml"
    path.write_text(text)
    try:
        shown = json.dumps(read_training_file(path).to_document())
    except UsageError as error:
        shown = str(error)
    assert SECRET not in shown and SECRET[5:] not in shown
