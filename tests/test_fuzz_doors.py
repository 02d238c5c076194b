"""Every door of the command line under hostile input, a seeded sample: `fuzzing.py` says what must hold, and
how to try more by hand.
"""

from __future__ import annotations

import pytest
from fuzzing import SERVERS, answered, broken_promises, fuzz
from fuzzing_doors import DOORS, Line
from fuzzing_input import SECRET
from fuzzing_readers import READERS, reading_alone
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = {"launch": 150, "campaign": 150, "options": 80, "diff": 60, "log": 40, "hub": 40, "ui": 100}
FEW = 60  # doors that predict: up to a minute for a family that is traced, so one in ten goes to its answer


@pytest.mark.parametrize("door", [*DOORS, *SERVERS])
def test_nothing_breaks_it(door: str) -> None:
    if door == "hub":
        pytest.importorskip("huggingface_hub")

    @settings(derandomize=True, max_examples=CASES.get(door, FEW), deadline=None, database=None)
    @given(st.integers(0, 2**31))
    def case(seed: int) -> None:
        assert fuzz(door, seed, whole=door not in READERS or seed % 10 == 0) == []

    case()


def test_the_readers_alone_end_before_the_answer_and_still_refuse():
    with reading_alone("options"):
        assert answered(Line(["gpt2", "--json"])) == (0, "", "")
        assert answered(Line(["gpt2", "--rank", "0"]))[0] == 2
        assert answered(Line(["gpt2", "--targets", "nothing_like_it"]))[0] == 2
    assert answered(Line(["gpt2", "--json"]))[1].startswith("{")


def test_the_judge_sees_what_an_answer_broke():
    for code, out, err in (
        (70, "", "memplan: a bug"),
        (2, "half", "memplan: key 'x'"),
        (2, "", "Traceback"),
        (2, "", "memplan: \x1b[31m"),
        (2, "", f"memplan: {SECRET}"),
        (2, "", "memplan: alpha is -1: expected a number above 0\n"),
    ):
        assert broken_promises(code, out, err, ["lora_alpha"], frozenset({"lora_alpha"}))
    assert not broken_promises(2, "", "memplan: bf16 is 7: expected true\n", ["seed"], frozenset({"bf16"}))
