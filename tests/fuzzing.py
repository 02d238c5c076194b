"""Hostile input for every door of the command line, and what every answer must keep.

A door makes one command line (and the files that it names) from a seed; `problems` runs it in this process
and says what it broke: an exit code outside the contract, a traceback, more than five seconds or a gigabyte,
output beside a failure, a control character, a token, a message that names neither the file nor the key.

By hand: `PYTHONPATH=.:tests python -m fuzzing --cases 10000 --whole 50 --log fuzz.jsonl [--door record]`.
`--whole 50` takes every fiftieth case to its answer and the others to the end of what reads the input
(fuzzing_readers.py): a model and a complete Setup, a document, a list of claims. The log gets a line for each
finding and each five hundred cases; the same command goes on where it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzzing_doors import DOORS, Line
from fuzzing_input import TOKENS
from fuzzing_readers import reading_alone

from memplan.cli.main import run
from memplan.planner.tables.errors import shorten

CODES = (0, 1, 2, 3, 4)
MOST_BYTES = 2**30
ITSELF = (
    *(
        "JSON",
        "YAML",
        "TOML",
        "UTF-8",
        "nested",
        "expands",
        "values",
        "bytes",
        "characters",
        "(secret)",
        "is empty",
    ),
    *("not a mapping", "compute capability", "Hugging Face id", "unknown", "is not a", "base model", "fsdp"),
    *(
        "targets names",
        "targets all-linear covers",
        "dropout is",
        "key",
        "Config",
        "Arguments",
        "from_pretrained",
        "attention is",
        "attn_implementation is",
        "model_type",
        "formula has no rule",
        "null character",
        "without an optimizer",
    ),
)
"""A refusal may name what is wrong with the file as a whole, or the name in it that is not known."""
KEY = re.compile(r"memplan: (?:[^:]+: )?(?:[\w.]+\.)?(\w+) is .*: expected ")
"""A refusal that names a key of the file; one that was not changed may be wrong beside one that was."""
LONGEST_LINE = 130  # of standard error: the longest word that a message may have, and what stands around it


# ---- the judge ---------------------------------------------------------------------------------------------


class Input:
    """Standard input of given bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


def answered(line: Line) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, Input(line.stdin)  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(line.args)
    finally:
        sys.stdin = before
    return code, out.getvalue(), err.getvalue()


def problems(line: Line) -> list[str]:
    """What a command line broke of what every answer must keep."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        code, out, err = answered(line)
    except BaseException as error:
        return [f"raised {type(error).__name__}: {error}"]
    seconds = time.process_time() - started
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    return [
        *([f"{seconds:.1f} s"] if seconds > line.seconds else []),
        *([f"{grown / 2**20:.0f} MiB"] if grown > MOST_BYTES else []),
        *broken_promises(code, out, err, line.names, line.words),
    ]


def broken_promises(
    code: int, out: str, err: str, names: list[str], words: frozenset[str] = frozenset()
) -> list[str]:
    """The same of an answer alone."""
    found = []
    if code not in CODES:
        found.append(f"exit code {code}: {err.strip().splitlines()[-2:]}")
    if "Traceback" in err or "Error: " in err and "memplan: " not in err:
        found.append("a traceback")
    if code in (2, 3) and out:
        found.append(f"standard output on failure: {out[:80]!r}")
    if code in (2, 3) and not err.startswith("memplan: "):
        found.append(f"no message: {err[:80]!r}")
    for text, where in ((out, "out"), (err, "err")):
        odd = {c for c in text if not c.isprintable() and c != "\n"}
        if odd:
            found.append(f"control characters on {where}: {sorted(odd)!r}")
        if any(token in text for token in TOKENS):
            found.append(f"a token on {where}")
    word = max(err.split(), key=len, default="")
    if len(word) > LONGEST_LINE:
        found.append(f"a word of {len(word)} characters: {word[:60]}")
    key = KEY.match(err)
    named = (key and key.group(1) in words) or any(n and shorten(n)[:20] in err for n in (*names, *ITSELF))
    if code == 2 and names and not named:
        found.append(f"names none of {names[:6]}: {err[:200]!r}")
    return found


SERVERS = ("hub", "ui")
"""Doors that are sockets: fuzzing_servers.py."""


def words_of(folder: Path) -> frozenset[str]:
    """Every word of the files in a folder."""
    texts = (
        path.read_text(encoding="utf-8", errors="replace") for path in folder.iterdir() if path.is_file()
    )
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def fuzz(door: str, seed: int, whole: bool = True) -> list[str]:
    """What one case of a door broke: nothing, or a line for each, with the seed. Not `whole`: what reads the
    input alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        if door in SERVERS:
            from fuzzing_servers import one

            return [
                f"{door} {seed}: {problem}"
                for problem in one(door, random.Random(f"{door} {seed}"), Path(folder))
            ]
        line = DOORS[door](random.Random(f"{door} {seed}"), Path(folder))
        line.words = words_of(Path(folder))
        with contextlib.nullcontext() if whole else reading_alone(door):
            return [f"{door} {seed}: {problem} <- {line.args!r:.300}" for problem in problems(line)]


EVERY = 500  # cases between two lines of the log


def already(log: Path | None, door: str) -> tuple[int, int, float]:
    """How many cases of a door a log holds, how many were broken, and the seconds that they took."""
    lines = log.read_text(encoding="utf-8").splitlines() if log is not None and log.exists() else []
    done = [entry for entry in map(json.loads, lines) if entry["door"] == door and "cases" in entry]
    return (done[-1]["cases"], done[-1]["broken"], done[-1]["seconds"]) if done else (0, 0, 0.0)


def run_door(door: str, cases: int, whole: int, log: Path | None) -> str:
    """Every case of a door that the log lacks; what is found is appended to it. The counts and the rate."""

    def write(**entry: Any) -> None:
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"door": door, **entry}) + "\n")

    start, broken, before = already(log, door)
    started = time.perf_counter()
    for seed in range(start, cases):
        broke = fuzz(door, seed, whole == 1 or seed % whole == 0)
        if broke:
            broken += 1
            print("\n".join(broke), flush=True)
            write(seed=seed, broke=broke)
        if (seed + 1) % EVERY == 0 or seed + 1 == cases:
            write(cases=seed + 1, broken=broken, seconds=before + time.perf_counter() - started)
    took = before + time.perf_counter() - started
    return f"{door}: {cases} cases, {broken} broken, {took:.0f} s, {cases / max(took, 1e-3):.0f}/s"


def main() -> None:
    parser = argparse.ArgumentParser(description="Hostile input for every door, by hand.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--whole", type=int, default=1, help="take every Nth case to its answer")
    parser.add_argument("--log", type=Path, help="append what is found, and go on where it ends")
    parser.add_argument("--door", action="append", choices=(*DOORS, *SERVERS))
    chosen = parser.parse_args()
    for door in chosen.door or (*DOORS, *SERVERS):
        print(run_door(door, chosen.cases, chosen.whole, chosen.log), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
