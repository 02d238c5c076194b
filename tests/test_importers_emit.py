"""--emit: what is written is read back as the same setup, and what a stack cannot say is named."""

import pytest

from memplan.planner.importers.document import parse
from memplan.planner.importers.emit import STACKS, UNSAID, emit_config
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import FIELDS, resolve
from memplan.planner.tables.errors import UsageError

MODEL = find("llama-3.1-8b")


@pytest.mark.parametrize("stack", ["axolotl", "trl", "llamafactory"])
@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full"},
        {"method": "lora"},
        {"method": "qlora"},
        {"method": "dora"},
        {"method": "rslora"},
        {
            "method": "lora",
            "rank": 7,
            "alpha": 21,
            "targets": ("q_proj", "v_proj"),
            "modules_to_save": ("lm_head",),
            "dropout": 0.1,
        },
        {
            "method": "qlora",
            "micro_batch": 3,
            "sequence_length": 777,
            "gradient_accumulation": 5,
            "optimizer": "paged_adamw_8bit",
        },
        {"method": "lora", "checkpointing": "reentrant", "attention": "flash_attention_2"},
        {"method": "lora", "quant_type": "int8", "checkpointing": "non_reentrant"},
        {"method": "qlora", "packed_documents": 2, "attention": "flash_attention_2"},
    ],
    ids=str,
)
def test_a_stacks_own_setup_comes_back_whole(stack, fields):
    setup = resolve({"recipe": stack, **fields})
    emitted = emit_config(stack, MODEL, setup)
    assert emitted.differs == ()
    imported = read_document(parse(emitted.text, "a.yaml"), FORMATS[stack], "a.yaml")
    back = resolve(imported=imported.fields)
    assert imported.model == "meta-llama/Llama-3.1-8B"
    assert back.images in ((), ("none",))  # axolotl: a file without a processor is of text
    said = [name for name in FIELDS if name not in (*UNSAID, "images")]
    assert all(getattr(back, name) == getattr(setup, name) for name in said)


def test_what_a_stack_cannot_say_is_named():
    setup = resolve({"recipe": "hf", "method": "qlora"})  # prepares for k-bit training; axolotl casts back
    assert any("kbit_prepare" in line for line in emit_config("axolotl", MODEL, setup).differs)
    emitted = emit_config("llamafactory", MODEL, resolve({"recipe": "llamafactory", "checkpoint_every": 2}))
    assert any("checkpoint_every = 2" in line for line in emitted.differs)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora"},
        {"method": "qlora", "rank": 4},
        {"method": "adalora", "init_rank": 10, "target_rank": 5},
        {"method": "dora"},
    ],
)
def test_an_adapter_file_comes_back(fields):
    emitted = emit_config("peft", MODEL, resolve(fields))
    assert emitted.differs == () and parse(emitted.text, "adapter_config.json")["peft_type"] in (
        "LORA",
        "ADALORA",
    )


def test_what_cannot_be_written():
    with pytest.raises(UsageError, match="no adapter_config.json"):
        emit_config("peft", MODEL, resolve({"method": "full"}))
    with pytest.raises(UsageError, match="unknown stack"):
        emit_config("keras", MODEL, resolve({}))
    assert set(STACKS) == {"axolotl", "trl", "llamafactory", "peft"}


def test_the_command_writes_the_chosen_configuration(tmp_path):
    from click.testing import CliRunner

    from memplan.cli.fit import command

    path = tmp_path / "a.yaml"
    shown = CliRunner().invoke(
        command,
        ["llama-3.1-8b", "--gpu", "rtx-4090", "--recipe", "axolotl", "--emit", "axolotl", "-o", str(path)],
    )
    assert shown.exit_code == 0, shown.output
    assert (
        parse(path.read_text(), "a.yaml")["gradient_checkpointing"] is True
    )  # LoRA fits with checkpointing alone


def test_full_fine_tuning_in_sixteen_bits_is_llamafactorys_pure_bf16():
    emitted = emit_config("llamafactory", MODEL, resolve({"method": "full"}))
    assert emitted.setup.trainable_dtype == "weight" and not any(
        "trainable_dtype" in line for line in emitted.differs
    )


def test_a_file_that_would_not_fit_as_its_stack_runs_it_is_not_written(tmp_path):
    from click.testing import CliRunner

    from memplan.cli import fit

    path = tmp_path / "a.yaml"
    args = ["llama-3.2-1b", "--gpu", "6GiB", "--method", "qlora", "--emit", "trl", "-o", str(path)]
    shown = CliRunner().invoke(fit.command, args, standalone_mode=False)
    assert shown.return_value == 0 and "read back, fits 6GiB" in shown.output and path.exists()
    path.unlink()
    # axolotl keeps norms and embeddings in float32: what it trains is larger than what was chosen
    args = ["llama-3.2-1b", "--gpu", "15.5GiB", "--method", "full", "--emit", "axolotl", "-o", str(path)]
    shown = CliRunner().invoke(fit.command, args, standalone_mode=False)
    assert shown.return_value == 1 and "nothing was written" in shown.output and not path.exists()


@pytest.mark.slow
def test_with_json_the_text_is_in_the_document_and_nothing_else_on_standard_output(tmp_path):
    import json

    from click.testing import CliRunner

    from memplan.cli.fit import command

    def run(*args):
        return CliRunner().invoke(command, list(args), standalone_mode=False)

    asked = ("llama-3.2-1b", "--gpu", "6GiB", "--method", "qlora", "--emit", "trl")
    text = run(*asked).stdout
    shown = run(*asked, "--json", "-o", str(tmp_path / "a.yaml"))
    document = json.loads(shown.stdout)
    assert document["schema"] == "memplan.fit/1" and document["emitted"] == {"format": "trl", "text": text}
    assert (tmp_path / "a.yaml").read_text() == text and shown.return_value == 0
    assert parse(text, "a.yaml")["model_name_or_path"]
    nothing = run("llama-3.1-405b", "--gpu", "t4", "--emit", "trl", "--json")
    assert nothing.return_value == 1 and json.loads(nothing.stdout)["emitted"] == {
        "format": "trl",
        "text": None,
    }
    assert run("llama-3.1-405b", "--gpu", "t4", "--emit", "trl").return_value == 1
