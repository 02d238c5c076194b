"""Claims files and records, broken at random by a seed: exit 2 with the file's name, or an answer; never a
traceback.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from memplan.cli.main import run
from memplan.validate.claims import SHIPPED

ROOT = Path(__file__).parent.parent
TOML = (
    '""',
    "[]",
    "{}",
    "-1",
    "1e400",
    "true",
    '"x"',
    "{a=1}",
    "9" * 30,
    "nan",
    "[[1]]",
    "1979-05-27",
    '"' + "a" * 500 + '"',
)
JSON = (None, -1, 1e400, True, "x", [], {}, 10**30, {"a": 1}, [1], -0.5, "\0")


def refused(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(arguments)
    message = capsys.readouterr().err
    assert code in (0, 2, 4) and "Traceback" not in message, message
    assert code != 2 or name in message, message


def broken_text(text: str, rng: random.Random) -> bytes:
    """One line's value, key or order changed, the end cut off, or three bytes overwritten."""
    lines = text.split("\n")
    places = [n for n, line in enumerate(lines) if "=" in line]
    at, other = rng.choice(places), rng.choice(places)
    key, _, value = lines[at].partition("=")
    kind = rng.choice(("value", "key", "drop", "twice", "swap", "cut", "bytes"))
    changed = {
        "value": f"{key}= {rng.choice(TOML)}",
        "key": f"{rng.choice(('foo', 'unit', 'over', 'setup'))} ={value}",
        "swap": f"{key}={lines[other].partition('=')[2]}",
    }
    lines[at : at + 1] = (
        [] if kind == "drop" else [lines[at]] * 2 if kind == "twice" else [changed.get(kind, lines[at])]
    )
    data = bytearray("\n".join(lines).encode())
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    if kind == "bytes":
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.trace
@pytest.mark.parametrize("seed", range(40))
def test_broken_claims_files(seed, tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    claims = SHIPPED.read_text(encoding="utf-8").split("\n[[claim]]\n")
    file = tmp_path / "mine.toml"
    file.write_bytes(
        broken_text(
            "[[claim]]\n" + claims[10] + "\n[[claim]]\n" + claims[41].partition("# -----")[0],
            random.Random(seed),
        )
    )
    refused(["claims", str(file)], "mine.toml", capsys)


def places(document: object, path: tuple = ()) -> list[tuple]:
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document[:3])
        if isinstance(document, list)
        else ()
    )
    return [path, *(p for key, value in inner for p in places(value, (*path, key)))]


@pytest.mark.parametrize("seed", range(40))
def test_broken_records(seed, tmp_path, capsys):
    rng = random.Random(seed)
    record = min((ROOT / "measurements" / "cpu").glob("*.json"), key=lambda path: path.stat().st_size)
    document = json.loads(record.read_text(encoding="utf-8"))
    document.pop("prediction", None)
    *way, last = rng.choice([p for p in places(document) if p and len(p) < 5])
    inside = document
    for key in way:
        inside = inside[key]
    if isinstance(inside, dict) and rng.random() < 0.3:
        del inside[last]
    else:
        inside[last] = rng.choice(JSON)
    data = json.dumps(document, indent=1).encode()
    file = tmp_path / "mine.json"
    file.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
    refused(["validate", str(file), "--engine", "formula"], "mine.json", capsys)


def test_a_records_mistake_names_its_line(tmp_path, capsys):
    record = next((ROOT / "measurements" / "cpu").glob("*.json"))
    document = json.loads(record.read_text(encoding="utf-8"))
    document["moments"][1]["name"] = 3
    lines = json.dumps(document, indent=1).splitlines()
    file = tmp_path / "mine.json"
    file.write_text("\n".join(lines))
    line = next(n for n, text in enumerate(lines, start=1) if '"name": 3' in text)
    assert run(["validate", str(file)]) == 2
    assert f"mine.json, line {line}: moments[1].name is 3" in capsys.readouterr().err
