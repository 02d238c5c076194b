"""Every screen at 80 columns with the largest models: no number is cut, no line is longer."""

import re

import pytest

from memplan.cli.main import run
from memplan.render.console import NARROWEST

SCREENS = {
    "plan": ["deepseek-v3"],
    "plan, many tokens": ["deepseek-v3", "--method", "full", "--batch", "512"],
    "plan, 175 B": ["gpt3-175b", "--method", "full"],
    "compare": ["compare", "deepseek-v3", "--batch", "512"],
    "compare, many methods": [
        "compare",
        "llama-3.1-405b",
        "--methods",
        "full,freeze,lora,dora,rslora,adalora,qlora,ia3",
    ],
    "compare, largest models": [
        "compare",
        "llama-3.1-8b",
        "--gpu",
        "h200",
        "--largest-model",
        "--tasks",
        "1000",
    ],
    "two setups": ["compare", "deepseek-v3", "gpt3-175b"],
    "fit": ["fit", "deepseek-v3", "--gpu", "b200", "--batch", "64"],
    "list gpus": ["list", "gpus"],
    "list recipes": ["list", "recipes"],
}


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(a, id=name, marks=[pytest.mark.slow] if name == "fit" else [])
        for name, a in SCREENS.items()
    ],
)
def test_nothing_is_cut_at_80_columns(
    args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(args) in (0, 1)
    out = capsys.readouterr().out
    assert out and not re.search(r"\S…|…\S", out), "cut"
    assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["plan", "compare", "two setups", "list gpus", "list recipes"])
def test_no_line_is_longer_than_the_narrowest_screen(name: str, capsys, monkeypatch: pytest.MonkeyPatch):
    """A terminal of 20 columns gets the narrowest screen that there is: 60."""
    monkeypatch.setenv("COLUMNS", "20")
    assert run(SCREENS[name]) in (0, 1)
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > NARROWEST] == []


def test_more_methods_than_fit_go_into_more_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    run(["compare", "gpt2", "--methods", "full,freeze,lora,dora,rslora,adalora,qlora,ia3"])
    out = capsys.readouterr().out
    assert out.count("needs (device)") >= 2
    assert all(name in out for name in ("freeze", "dora", "rslora", "adalora", "qlora", "ia3"))
