"""What the benchmarks of dry-run scripts share: their cases, their file of results, the columns of their
pages and their command line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.units import MIB
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

HEADER = (
    "model",
    "method",
    "micro-batch x tokens",
    "checkpoints",
    "GPU",
    "dry run, MiB",
    "trace",
    "formula",
    "its blocks",
    "reserved: trace",
    "formula",
)
"""Columns behind the first."""

Bytes = dict[str, int]


@dataclass(frozen=True, slots=True)
class ScriptCase:
    """One script on one GPU."""

    script: str
    model: str
    method: str
    batch: int
    tokens: int
    checkpoints: bool
    gpu: str

    @property
    def label(self) -> str:
        """The case's name in the file of results."""
        kept = "checkpoints" if self.checkpoints else "none"
        return f"{self.script} {self.model} {self.method} b{self.batch} s{self.tokens} {kept} {self.gpu}"

    @property
    def said(self) -> dict[str, Any]:
        """Setup fields that every script says."""
        return {
            "method": self.method,
            "micro_batch": self.batch,
            "sequence_length": self.tokens,
            "checkpointing": "non_reentrant" if self.checkpoints else "none",
            "weight_dtype": "bfloat16",
            "compute_dtype": "bfloat16",
            "gpu": self.gpu,
            "torch": "2.14",
            **({} if self.method == "full" else {"rank": 16, "alpha": 32, "dropout": 0.05}),
        }

    def cells(self, entry: dict[str, Any]) -> tuple[str, ...]:
        """The first columns of the case's row (HEADER), up to the dry run's."""
        return (
            self.script,
            self.model,
            self.method,
            f"{self.batch} x {self.tokens}",
            "yes" if self.checkpoints else "no",
            self.gpu,
            f"{entry['dry_run']['allocated_bytes'] / MIB:,.1f}",
        )


def over_stubs(case: ScriptCase, config: dict[str, Any], script: str, python: str) -> Bytes:
    """Peak allocated and reserved bytes of a script and a config.json, over stub libraries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "train.py").write_text(script)
        sizes = tuple(map(str, (case.batch, case.tokens, int(case.checkpoints))))
        words = ("python", str(folder / "train.py"), name, case.method, *sizes)
        request = Rehearsal(words, find_gpu(case.gpu), python=python, random_weights=True)
        return bytes_of(rehearse(request).observation)


def bytes_of(found: Any) -> Bytes:
    """Peak allocated and reserved bytes, of an observation or of a prediction's peak."""
    return {"allocated_bytes": found.allocated_bytes, "reserved_bytes": found.reserved_bytes}


def error(entry: dict[str, Any], engine: str, what: str = "allocated_bytes") -> float:
    """By how much an engine differs from the dry run, as a fraction."""
    return float(entry[engine][what] / entry["dry_run"][what] - 1)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> dict[str, str]:
    """A page's fields `header` and `rows`."""
    names = tuple(header)
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return {"header": f"| {' | '.join(names)} |\n|{'---|' * len(names)}", "rows": lines}


ENGINES = ("trace", "formula")


def summary(entries: Iterable[dict[str, Any]], engines: Sequence[str] = ENGINES) -> dict[str, Any]:
    """A page's fields `runs`, and median and worst of what is allocated by each engine."""
    known = list(entries)
    off = {engine: [abs(error(entry, engine)) for entry in known] for engine in engines}
    return {
        "runs": len(known),
        **{f"{engine}_median": median(values) for engine, values in off.items()},
        **{f"{engine}_worst": max(values) for engine, values in off.items()},
    }


def command(
    description: str | None,
    kept_in: Path,
    cases: Callable[[], Iterator[Any]],
    dry_run: Callable[[Any, str], Bytes],
    predictions: Callable[[Any], dict[str, Bytes]],
    page: Callable[[dict[str, Any]], str],
    engines: Sequence[str] = ENGINES,
) -> None:
    """`--page` prints the page; else what is not known yet is dry-run and predicted, and kept run by run.
    `engines`: those of the predictions that are judged.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="an interpreter with a CUDA build of torch")
    parser.add_argument("--only", default="", help="cases whose label contains this")
    parser.add_argument("--again", action="store_true", help="predict again what was dry-run already")
    parser.add_argument("--page", action="store_true", help="print the page")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(kept_in.read_text()) if kept_in.exists() else {}
    if arguments.page:
        print(page(kept), end="")
        return
    for case in cases():
        known = kept.get(case.label, {})
        if arguments.only not in case.label or (engines[0] in known and not arguments.again):
            continue
        seen = known.get("dry_run") or dry_run(case, arguments.python)
        kept[case.label] = {"dry_run": seen}
        kept_in.write_text(json.dumps(kept, indent=1) + "\n")
        kept[case.label] |= predictions(case)
        kept_in.write_text(json.dumps(kept, indent=1) + "\n")
        off = (f"{name} {error(kept[case.label], name):+.3%}" for name in engines)
        print(case.label, *off, flush=True)
