"""compare: the columns are predictions, the differences add up, and FLOPs are the textbook's 6 and 4
operations a weight.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memplan.cli.compare import command
from memplan.planner.answers.compare import columns, compare_document, differences, merging
from memplan.planner.formula.engine import plan
from memplan.planner.formula.flops import matrix_parameters, step_cost
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"


@pytest.fixture(scope="module")
def llama():
    return find("llama-3.1-8b").spec()


def predicting(spec):
    return lambda setup: plan(spec, setup)


def test_columns_are_the_predictions_of_each_method(llama):
    setup = resolve({"sequence_length": 512})
    found = columns(llama, setup, predicting(llama))
    assert [column.method for column in found] == ["full", "lora", "adalora", "qlora"]
    assert found[1].prediction.peak == plan(llama, setup).peak
    assert found[0].trainable_share == 1.0 and 0 < found[3].trainable_share < 0.01
    assert found[3].precision() == {
        "base": "nf4 + double quantization",
        "adapter": "float32",
        "computation": "bfloat16",
    }
    document = compare_document("x", found, 3)
    json.dumps(document)
    by_name = {entry["method"]: entry for entry in document["methods"]}
    assert by_name["full"]["kept_bytes"] == 3 * by_name["full"]["checkpoint_bytes"]
    assert by_name["lora"]["kept_bytes"] == 2 * llama.parameters + 3 * by_name["lora"]["checkpoint_bytes"]
    assert "not computed" in by_name["full"]["forgetting"]


def test_a_method_that_contradicts_a_choice_is_an_error_in_its_column(llama):
    found = columns(llama, resolve({"method": "qlora", "recipe": "paper"}), predicting(llama))
    assert found[3].prediction is not None and "defined for qlora only" in found[0].error


@pytest.mark.parametrize(
    ("method", "words", "size"),
    [
        ("full", "nothing to merge", None),
        ("lora", "needs no extra memory", 0),
        ("qlora", "16-bit weights", "weights"),
        ("prompt-tuning", "cannot be merged", None),
    ],
)
def test_merging(llama, method, words, size):
    prediction = plan(llama, resolve({"method": "lora"})).with_(setup=resolve({"method": method}))
    text, found = merging(prediction)
    assert words in text and found == (2 * llama.parameters if size == "weights" else size)


def test_flops_of_a_matrix_are_six_and_four_operations_a_weight(llama):
    layers, head = matrix_parameters(llama)
    assert (
        layers + head == llama.parameters - llama.vocab * llama.hidden - (2 * 32 + 1) * llama.hidden
    )  # all but embedding and norms
    short = {"sequence_length": 8, "rank": 1}
    full = step_cost(llama, resolve({"method": "full", **short}))
    lora = step_cost(llama, resolve({"method": "lora", **short}))
    checkpointed = step_cost(llama, resolve({"method": "full", "checkpointing": "non_reentrant", **short}))
    qlora = step_cost(llama, resolve({"method": "qlora", **short}))
    assert full.total / (6 * (layers + head) * 8) == pytest.approx(1, rel=1e-3)
    assert lora.total / (4 * (layers + head) * 8) == pytest.approx(1, rel=1e-2)
    assert checkpointed.recomputed == pytest.approx(2 * layers * 8, rel=1e-3)
    assert qlora.dequantized == 3 * layers and lora.dequantized == 0  # forward, recomputation, backward
    assert step_cost(llama, resolve({"method": "inference", **short})).backward == 0


def test_only_the_chosen_experts_compute():
    spec = find("mixtral-8x7b").spec()
    layers, _ = matrix_parameters(spec)
    assert 11e9 < layers < 13.5e9 and spec.parameters > 46e9


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"method": "lora"}, {"method": "lora", "rank": 64, "sequence_length": 512}),
        ({"method": "full"}, {"method": "qlora"}),
        (
            {"method": "lora", "recipe": "trl"},
            {"method": "qlora", "recipe": "axolotl", "optimizer": "paged_adamw_8bit"},
        ),
        ({"method": "lora"}, {"method": "lora", "recipe": "llamafactory"}),
    ],
)
def test_differences_in_order_add_up_to_the_whole(llama, first, second):
    one, two = resolve(first), resolve(second)

    def device_bytes(setup):
        return plan(llama, setup).peak.device_bytes

    found = differences(one, two, device_bytes)
    assert sum(entry.then for entry in found) == device_bytes(two) - device_bytes(one)
    named = [name for entry in found for name in entry.fields]
    assert len(named) == len(set(named)) and "recipe" not in named
    assert all(one.__getattribute__(name) != two.__getattribute__(name) for name in named)
    json.dumps([entry.to_document() for entry in found])


def test_what_a_recipe_moves_beyond_its_fields_is_a_difference(llama):
    first, second = resolve({"recipe": "raw"}), resolve({"recipe": "hf"})

    def device_bytes(setup):
        return plan(llama, setup).peak.device_bytes

    found = differences(first, second, device_bytes)
    assert found[-1].fields == ("recipe",) and found[-1].then != 0
    assert sum(entry.then for entry in found) == device_bytes(second) - device_bytes(first)


def test_equal_setups_have_no_differences(llama):
    assert differences(resolve({}), resolve({}), lambda setup: 1) == []


def run(*args):
    return CliRunner().invoke(command, list(args), standalone_mode=False)


def test_the_command_sets_methods_side_by_side():
    shown = run("gpt2", "--gpu", "t4", "--seq", "512", "--methods", "full,lora,qlora", "--explain")
    for words in (
        "optimizer states",
        "trained share",
        "FLOPs, full = 1",
        "merging needs",
        "like with like",
        "forgetting",
        "qlora",
    ):
        assert words in shown.output, shown.output
    assert json.loads(run("gpt2", "--json", "--seq", "128").output)["schema"] == "memplan.compare/1"


def test_the_command_compares_two_training_files(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model_name_or_path: openai-community/gpt2\ndataset_name: x\nmax_length: 512\n"
    )
    (tmp_path / "b.yaml").write_text(
        "base_model: openai-community/gpt2\ndatasets: []\nsequence_len: 1024\nmicro_batch_size: 2\n"
    )
    shown = run(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert shown.exception is None, shown.exception
    assert "sequence_length" in shown.output and "weight_dtype" in shown.output and "in order" in shown.output
    document = json.loads(run(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--json").output)
    moved = sum(entry["in_order_bytes"] for entry in document["differences"]) + document["model_bytes"]
    assert moved == document["second"]["peak"]["device_bytes"] - document["first"]["peak"]["device_bytes"]


def test_two_models_differ_by_the_model_too():
    document = json.loads(run("gpt2", "gpt2-medium", "--seq", "128", "--json").output)
    assert document["differences"] == []
    assert (
        document["model_bytes"]
        == document["second"]["peak"]["device_bytes"] - document["first"]["peak"]["device_bytes"]
        > 0
    )


def test_the_largest_model_needs_a_card():
    with pytest.raises(UsageError, match="--gpu NAME"):
        command.main(["gpt2", "--largest-model"], standalone_mode=False)


def test_the_method_asked_for_is_a_column_too():
    methods = [
        column["method"]
        for column in json.loads(run("gpt2", "--method", "dora", "--seq", "64", "--json").output)["methods"]
    ]
    assert methods == ["full", "lora", "adalora", "qlora", "dora"]
    chosen = json.loads(run("gpt2", "--method", "dora", "--methods", "lora", "--seq", "64", "--json").output)[
        "methods"
    ]
    assert [column["method"] for column in chosen] == ["lora", "dora"]
    alone = json.loads(run("gpt2", "--methods", "full", "--seq", "64", "--json").output)["methods"]
    assert [column["method"] for column in alone] == ["full"]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("llama-3.1-8b", "--gpu", "rtx-4090"), 0),  # full does not fit, qlora does
        pytest.param(("llama-3.1-405b", "--gpu", "t4"), 1, marks=pytest.mark.slow),
        (("llama-3.1-405b", "--gpu", "t4", "--json"), 1),
        pytest.param(("llama-3.1-405b",), 0, marks=pytest.mark.slow),
        (("llama-3.1-405b", "llama-3.1-70b", "--gpu", "t4"), 1),
        (("llama-3.1-405b", "gpt2", "--gpu", "t4", "--seq", "64"), 0),
    ],
)
def test_exit_code_one_says_that_nothing_compared_fits(args, code):
    assert run(*args).return_value == code


@pytest.mark.trace
def test_the_differences_are_the_engines_that_was_asked_for(tmp_path):
    pytest.importorskip("peft")
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 64,
    }
    (tmp_path / "model.json").write_text(json.dumps(config))
    for name, rank in (("a", 4), ("b", 64)):
        (tmp_path / f"{name}.yaml").write_text(
            f"model: {tmp_path}/model.json\nmethod: lora\nsequence_length: 64\nrank: {rank}\n"
        )
    document = json.loads(
        run(str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--engine", "trace", "--json").output
    )
    peaks = [document[side]["peak"]["device_bytes"] for side in ("first", "second")]
    assert [entry["fields"] for entry in document["differences"]] == [["rank"]]
    assert document["differences"][0]["in_order_bytes"] == peaks[1] - peaks[0] > 0
