"""Where something is not counted no GPU is said to hold a run: jobs, the smallest GPU, the fewest GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.cli.main import run
from memplan.planner.answers.fit.gpus import CardChoice, choose_cards
from memplan.planner.answers.fit.jobs import Job, place_jobs
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.gpus import Gpu, find_gpu, gpus
from memplan.render.text import short_gib

SPEC = find("gpt2").spec()
PLAIN, GKD = resolve({"method": "lora"}), resolve({"method": "lora", "task": "gkd"})
CHEAP_AMD = {"rtx-3090": 0.3, "mi300x": 0.1}


def cards(*names: str) -> list[Gpu]:
    return [find_gpu(name) for name in names]


def test_a_cheaper_gpu_whose_kernels_are_not_modeled_is_not_chosen() -> None:
    found = place_jobs([Job("a", SPEC, PLAIN)], cards(*CHEAP_AMD), CHEAP_AMD)
    (job,) = found.jobs
    assert (job.smallest, job.cheapest, found.one_for_all) == ("rtx-3090", "rtx-3090", "rtx-3090")
    assert (job.at_least, job.not_modelled) == (None, ())


def test_a_job_on_such_gpus_alone_has_a_lower_bound() -> None:
    found = place_jobs([Job("a", SPEC, PLAIN)], cards("mi300x", "mi210"), {})
    (job,) = found.jobs
    assert (job.smallest, job.cheapest, found.one_for_all, job.at_least) == (None, None, None, "mi210")
    assert "mi210's kernels" in job.not_modelled[0]


def test_one_gpu_for_all_is_unknown_where_a_job_is_not_all_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(
        "jobs:\n- {model: gpt2, method: lora}\n- {name: align, model: gpt2, method: lora, task: gkd}\n"
    )
    assert run(["fit", str(path), "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    plain, align = document["jobs"]
    assert plain["smallest"] == align["at_least"] == "rtx-3070"
    assert align["smallest"] is align["cheapest"] is document["one_for_all"] is None
    assert "the teacher model and whole logits of both" in align["not_modelled"][0]
    assert told.err.startswith("memplan: no verdict on align: not counted: task gkd")
    assert run(["fit", str(path)]) == 0
    assert "one GPU for every job: unknown, not all that align needs" in capsys.readouterr().out


def test_a_job_too_large_even_in_what_is_counted_fits_nowhere() -> None:
    large = Job("large", find("llama-7b").spec(), resolve({"method": "full", "task": "gkd"}))
    (job,) = place_jobs([large], cards("t4"), {}).jobs
    assert (job.smallest, job.at_least, job.not_modelled) == (None, None, ())


@pytest.mark.parametrize("missing", [(), ("a second model",)])
def test_the_smallest_gpu_is_a_lower_bound(missing: tuple[str, ...]) -> None:
    sure = choose_cards(SPEC, PLAIN)
    assert sure.smallest == sure.holding[0] == "rtx-3070" and sure.at_least is None
    bound = choose_cards(SPEC, PLAIN, missing=missing) if missing else choose_cards(SPEC, GKD)
    assert bound == CardChoice(None, sure.smallest_bytes, (), "rtx-3070")


def test_the_screen_of_fit_says_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "gpt2", "--task", "gkd", "--gpu", "rtx-3090", "--largest-model", "--explain"]
    assert run(arguments) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "for lora as asked: at least rtx-3070" in words
    assert "smallest common GPU for lora as requested: at least rtx-3070 (2.35 GiB needed)" in words
    assert "largest model in the catalog for lora on rtx-3090: at most " in words
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cards"]["smallest"] is document["fewest_cards"] is None
    assert document["cards"]["at_least"] == "rtx-3070"


def test_gpus_without_a_verdict_are_listed_last_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "gpus"]) == 0
    table, _, line = capsys.readouterr().out.partition("AMD and Apple: kernels not modeled")
    rest = [gpu for gpu in gpus().values() if not gpu.verified]
    words = " ".join(line.split())
    assert len(rest) >= 10 and "rtx-4090 " in table and words.startswith(", so answers say at least: ")
    for gpu in rest:
        assert f"{gpu.name} " not in table and f"{gpu.name} {short_gib(gpu.usable_bytes)}" in words
    assert words.count(", ") == len(rest), "those, and none besides"
    assert run(["list", "gpus", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["gpus"]} == set(gpus())
