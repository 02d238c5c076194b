"""Python that trains, in files, notebooks and texts: read, never run."""

import json
from pathlib import Path

import pytest

from memplan.planner.importers.files import read_training_file
from memplan.planner.importers.pieces import FENCE
from memplan.planner.importers.snippet import read_snippet
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

DATA = Path(__file__).parent / "data" / "importers"


def test_a_snippet_is_not_run_and_what_is_not_literal_is_reported(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        "import sys; sys.exit(1)\nimport nowhere\nm = AutoModelForCausalLM.from_pretrained(argv[1], "
        "dtype=pick())\n"
        "c = LoraConfig(r=argv[2], lora_alpha=4, target_modules=[f'{x}_proj' for x in 'qv'])\n"
    )
    imported = read_training_file(path)
    assert imported.model is None and imported.fields["alpha"] == 4
    assert {report.key for report in imported.by_status("unknown")} == {
        "from_pretrained(dtype)",
        "LoraConfig(r)",
        "LoraConfig(target_modules)",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "not Python that can be read"),
        ("print(1)\n", "no call that memplan knows"),
        ("x" * (10**6 + 1), "characters of code"),
        ("(" * 4000, "not Python"),
    ],
)
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
            {
                "cells": [
                    {"cell_type": "markdown", "source": ["# hi"]},
                    {"cell_type": "code", "source": ["%pip install x\n", *source]},
                ]
            }
        )
    )
    assert read_training_file(path).fields["method"] == "qlora"


def test_the_documents_own_snippets():
    seeds = Path(__file__).parent.parent.parent / "shared" / "seeds"
    files = sorted(seeds.glob("001_*.txt"))
    if not files:
        pytest.skip("the documents are not beside this checkout")
    lora, qlora = (
        read_snippet(piece, "001") for piece in FENCE.findall(files[0].read_text()) if "Config(" in piece
    )
    assert (lora.model, lora.fields["method"], lora.fields["rank"], lora.fields["targets"]) == (
        "facebook/opt-350m",
        "lora",
        8,
        ("q_proj", "v_proj"),
    )
    assert qlora.model == "meta-llama/Llama-2-7b-hf"
    setup = resolve(imported=qlora.fields)
    assert (setup.method, setup.quant_type, setup.double_quant, setup.compute_dtype) == (
        "qlora",
        "nf4",
        True,
        "bfloat16",
    )
    assert (
        setup.kbit_prepare
        and setup.checkpointing == "reentrant"
        and len(setup.targets) == 7
        and setup.rank == 16
    )
    assert not qlora.by_status("unknown") and not lora.by_status("unknown")
