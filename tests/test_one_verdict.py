"""One verdict for one setup, whoever is asked: plan, compare, fit, ask, report, the callback and the Python
function, for 50 setups of which some are not modeled and some are shared by several GPUs (in continuous
integration the first 20).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.cli.main import run
from memplan.cli.report import _predict
from memplan.cli.subject import Subject
from memplan.planner.answers.compare import columns
from memplan.planner.answers.fit.frontier import Room
from memplan.planner.answers.search import method_fit
from memplan.planner.answers.verdict import judge, uncounted_of
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.gpus import Gpu
from memplan.profiler import callback
from memplan.validate.answer import AT_LEAST, answer
from memplan.validate.ask import read
from memplan.validate.evaluation_context import EvaluationContext

MODELS = ("gpt2", "smollm2-135m", "qwen3-0.6b", "tinyllama-1.1b")
PARALLEL = ("ddp", "fsdp", "zero2", "zero3")
GPUS = ("gtx-1060-6gb", "t4", "rtx-3070", "rtx-3090", "3GiB", "mi300x", "m3-max-36gb")


def setups(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seeded setups, a third of them on GPUs whose kernels are not modeled, a fifth on two GPUs."""
    chosen, shared = random.Random(13), random.Random(14)
    for _ in range(count):
        fields = {
            "method": chosen.choice(("full", "lora", "qlora")),
            "checkpointing": chosen.choice(("none", "non_reentrant")),
            "micro_batch": chosen.choice((1, 2, 8)),
            "sequence_length": chosen.choice((128, 512, 1024)),
            "gpu": chosen.choice(GPUS),
        }
        if shared.random() < 0.2:
            fields |= {"gpus": 2, "parallel": shared.choice(PARALLEL)}
        yield chosen.choice(MODELS), fields


WORDS = {
    "memplan: this training fits": "fits",
    "memplan: this training is tight": "tight",
    "memplan: this training needs at least": None,
    "memplan: this training needs about": "no",
}
"""How the callback begins -> the verdict."""


def told_by_the_callback(prediction: Prediction, gpu: Gpu) -> str | None:
    """The verdict that a trainer on this GPU is told."""
    told: list[str] = []
    watcher = callback.MemoryCallback(prediction.setup, capacity=gpu.usable_bytes, report=told.append)
    watcher.prediction = prediction
    watcher._judge("cuda")
    return next(word for text, word in WORDS.items() if told[0].startswith(text))


def verdicts(name: str, fields: dict[str, Any], context: EvaluationContext) -> dict[str, str | None]:
    """The verdict of each door."""
    model, setup = find(name), resolve(fields)
    gpu = memplan.find_gpu(fields["gpu"])
    subject = Subject(model, setup)
    fitted = method_fit(
        model.spec(),
        setup,
        setup.method,
        Room(gpu).around(model.spec(), setup),
        (1,),
        tuple(uncounted_of(setup, gpu)),
    )
    prediction = memplan.plan(name, setup)
    (column,) = columns(model.spec(), setup, lambda each: memplan.plan(name, each), (setup.method,), gpu)
    assert column.prediction is not None, column.error
    return {
        "api": memplan.plan(name, **fields).gpus[0].verdict,
        "plan": subject.annotate(prediction).gpus[0].verdict,
        "compare": column.prediction.gpus[0].verdict,
        "callback": told_by_the_callback(prediction, gpu),
        "fit": fitted.verdict,
        "report": _predict(subject).gpus[0].verdict,
        "ask and claims": judge(context.predict(name, fields), gpu).verdict,
    }


@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_setups_have_one_verdict_each(count: int):
    context, seen = EvaluationContext(), Counter()
    for name, fields in setups(count):
        found = verdicts(name, fields, context)
        assert len(set(found.values())) == 1, (name, fields, found)
        seen[next(iter(found.values()))] += 1
        if not memplan.find_gpu(fields["gpu"]).verified:
            assert found["api"] in (None, "no"), (name, fields)
    assert {"fits", "no", None} <= set(seen), seen


def test_what_is_not_modeled_never_fits_in_any_command(tmp_path: Path, capsys):
    """The lower bound holds easily: every door says `at least`, exits 0 with a warning, 1 with --strict."""
    asked = ["gpt2", "--gpu", "mi300x", "--seq", "256"]
    assert run(asked) == 0
    capsys.readouterr()
    page = ["report", "-o", str(tmp_path / "p.html")]
    for command in ([], ["fit"], ["compare", "--methods", "lora"], page):
        assert run([*command, *asked, "--strict"]) == 1, command
        told = capsys.readouterr()
        assert "not counted" in told.err or command[:1] == ["compare"], command
        for word in ("fits gpt2", "✓", "fits mi300x", "fits: "):
            assert word not in told.out, command
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert '"missing":["mi300x' in html and 'class="good">fits' not in html
    said = answer(read("gpt2 lora mi300x"))
    assert said.verdict == AT_LEAST and said.to_document()["verdict"] is None and said.not_modelled


def test_the_lower_bound_alone_can_say_no(capsys):
    for command in ([], ["compare", "--methods", "full"]):
        assert run([*command, "gpt2-xl", "--method", "full", "--gpu", "m3-8gb"]) == 1, command
        capsys.readouterr()
    found = memplan.plan("gpt2-xl", method="full", gpu="m3-8gb")
    assert found.gpus[0].verdict == "no" and found.not_modelled


def test_a_callback_says_at_least(monkeypatch):
    """A prediction that leaves something out, on the GPU that the trainer runs on."""
    told: list[str] = []
    found = memplan.plan("gpt2").with_(not_modelled=("a second forward",))
    watcher = callback.MemoryCallback(found.setup, capacity=2**40, report=told.append)
    watcher.prediction = found
    watcher._judge("cuda")
    assert "at least" in told[0] and "a second forward" in told[0] and "fits" not in told[0]
