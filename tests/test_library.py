"""The Python functions beside `plan`: the command line's names, fit, compare, oom, and what a notebook
shows.
"""

from __future__ import annotations

import json

import pytest

import memplan
from memplan.cli.main import run
from memplan.planner.tables.units import gib


def test_the_command_lines_names_are_accepted():
    ours = memplan.plan("gpt2", method="full", batch=2, seq=256, dtype="float32", checkpointing=True)
    theirs = memplan.plan(
        "gpt2",
        method="full",
        micro_batch=2,
        sequence_length=256,
        weight_dtype="float32",
        checkpointing="non_reentrant",
    )
    assert ours.setup == theirs.setup and ours.peak == theirs.peak
    assert memplan.plan("gpt2", checkpointing=False).setup.checkpointing == "none"
    with pytest.raises(memplan.UsageError, match="one setting"):
        memplan.plan("gpt2", batch=1, micro_batch=2)


def test_fit_and_compare_are_the_commands_answers(capsys):
    asked = ["gpt2", "--gpu", "t4", "--method", "full", "--batch", "2", "--json"]
    assert run(["fit", *asked]) == 0
    document = memplan.fit("gpt2", gpu="t4", method="full", batch=2).to_document()
    assert json.loads(capsys.readouterr().out)["methods"] == json.loads(json.dumps(document))["methods"]
    assert run(["compare", *asked]) == 0
    columns = memplan.compare("gpt2", gpu="t4", method="full", batch=2)
    told = {c["method"]: c["peak"] for c in json.loads(capsys.readouterr().out)["methods"]}
    assert told == {c.method: c.prediction.peak.to_document() for c in columns if c.prediction}
    with pytest.raises(memplan.UsageError, match="fit needs a GPU"):
        memplan.fit("gpt2")
    assert [c.method for c in memplan.compare("gpt2", methods=["lora"])] == ["lora"]


LOG = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "23.64 GiB of which 1.10 GiB is free. Including non-PyTorch memory, this process has 22.53 GiB memory in "
    "use. Of the allocated memory 21.50 GiB is allocated by PyTorch, and 500.00 MiB is reserved by PyTorch "
    "but unallocated."
)


def test_oom_is_the_commands_answer(capsys, tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    assert run(["oom", str(log), "--model", "llama-7b", "--method", "lora", "--batch", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = memplan.oom(LOG, "llama-7b", method="lora", batch=4)
    assert list(found.explanation) == document["explanation"] and list(found.gpus) == document["cards"]
    assert list(found.advice) == document["advice"] != []
    with pytest.raises(memplan.UsageError):
        memplan.oom("all went well")


def test_what_a_session_and_a_notebook_show():
    found = memplan.plan("gpt2", gpu="t4")
    assert repr(found).startswith("<Prediction gpt2 lora: ") and repr(found).endswith("fits t4>")
    assert gib(found.peak.device_bytes) in repr(found) and len(repr(found)) < 120
    html = found._repr_html_()
    assert gib(found.peak.device_bytes) in html and "verdict on t4</td><td>fits" in html
    hostile = found.with_(not_modelled=("<script>alert(1)</script>",))
    assert "<script>" not in hostile._repr_html_() and "at least" in repr(hostile)
