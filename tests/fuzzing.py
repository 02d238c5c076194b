"""Hostile input for every door of the command line, and what every answer must keep.

A door makes one command line (and the files that it names) from a seed; `problems` runs it in this process
and says what it broke: an exit code outside the contract, a traceback, more than five seconds or a gigabyte,
output beside a failure, a control character, a token, a message that names neither the file nor the key.

By hand: `PYTHONPATH=.:tests python -m fuzzing --cases 10000 [--door record] [--start 0]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from fuzzing_doors import DOORS, Line
from fuzzing_input import TOKENS

from memplan.cli.main import run
from memplan.planner.tables.errors import shorten

CODES = (0, 1, 2, 3, 4)
MOST_SECONDS, MOST_BYTES = 5.0, 2**30
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
    ),
)
"""A refusal may name what is wrong with the file as a whole, or the name in it that is not known."""
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
        *([f"{seconds:.1f} s"] if seconds > MOST_SECONDS else []),
        *([f"{grown / 2**20:.0f} MiB"] if grown > MOST_BYTES else []),
        *broken_promises(code, out, err, line.names),
    ]


def broken_promises(code: int, out: str, err: str, names: list[str]) -> list[str]:
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
    if code == 2 and names and not any(name and shorten(name)[:20] in err for name in (*names, *ITSELF)):
        found.append(f"names none of {names[:6]}: {err[:200]!r}")
    return found


SERVERS = ("hub", "ui")
"""Doors that are sockets: fuzzing_servers.py."""


def fuzz(door: str, seed: int) -> list[str]:
    """What one case of a door broke: nothing, or a line for each, with the seed."""
    with tempfile.TemporaryDirectory() as folder:
        if door in SERVERS:
            from fuzzing_servers import one

            return [
                f"{door} {seed}: {problem}"
                for problem in one(door, random.Random(f"{door} {seed}"), Path(folder))
            ]
        line = DOORS[door](random.Random(f"{door} {seed}"), Path(folder))
        return [f"{door} {seed}: {problem} <- {line.args!r:.300}" for problem in problems(line)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Hostile input for every door, by hand.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--door", action="append", choices=(*DOORS, *SERVERS))
    chosen = parser.parse_args()
    for door in chosen.door or (*DOORS, *SERVERS):
        started, found = time.perf_counter(), []
        for seed in range(chosen.start, chosen.start + chosen.cases):
            broke = fuzz(door, seed)
            found += broke
            if broke and len(found) <= 40:
                print("\n".join(broke), flush=True)
        took = time.perf_counter() - started
        print(f"{door}: {chosen.cases} cases, {len(found)} broken, {took:.0f} s", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
