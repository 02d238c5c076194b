"""A record is what dataclasses makes of the same class, its methods written later."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Row
from memplan.planner.tables.records import dataclass


def made(decorator: Callable[..., Any], **options: Any) -> Any:
    @decorator(**options)
    class Sample:
        """A class of every kind of field."""

        name: str
        size: int = 3
        parts: list[int] = dataclasses.field(default_factory=list)
        hidden: str = dataclasses.field(default="", compare=False, repr=False)
        later: int = dataclasses.field(default=7, init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "later", self.size + 1)

    return Sample


OPTIONS = ({}, {"frozen": True}, {"slots": True}, {"frozen": True, "slots": True, "kw_only": True})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_record_behaves_as_the_librarys(options: dict[str, Any]):
    ours, theirs = made(dataclass, **options), made(dataclasses.dataclass, **options)
    mine, same, other = (ours(name="a", parts=[1], hidden=h) for h in ("x", "y", "x"))
    there = theirs(name="a", parts=[1], hidden="x")
    assert repr(mine) == repr(there) and mine == same and mine != ours(name="b") and mine != there
    assert dataclasses.asdict(mine) == dataclasses.asdict(there) and mine.later == 4
    assert dataclasses.replace(mine, size=8).later == 9 and ours(name="c").parts is not ours(name="c").parts
    assert copy.copy(mine) == mine == copy.deepcopy(other)
    assert str(inspect.signature(ours.__init__)).count("=") == str(inspect.signature(theirs)).count("=")
    with pytest.raises(TypeError, match="missing"):
        ours()
    with pytest.raises(TypeError, match="unexpected"):
        ours(name="a", wrong=1)
    if options.get("frozen"):
        for change in (lambda: setattr(mine, "name", "b"), lambda: delattr(mine, "name")):
            with pytest.raises(dataclasses.FrozenInstanceError):
                change()
    else:
        mine.name = "b"
        assert mine.name == "b" and ours.__hash__ is None


def test_records_are_hashed_and_pickled():
    row = Row("weight", (2, 3), "float32", 1, 24, "weights", "why")
    assert hash(row) == hash(dataclasses.replace(row)) and len({row, dataclasses.replace(row)}) == 1
    setup = resolve({"method": "lora"})
    for each in (row, setup):
        assert pickle.loads(pickle.dumps(each)) == each
    assert {f.name for f in dataclasses.fields(Setup)} > {"method", "rank"}
