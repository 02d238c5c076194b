"""Other predictors, asked the same questions as memplan on one measured set: error of allocated memory,
verdicts and seconds, side by side.

    python benchmarks/peers.py PATH... [--venvs DIR] [--only NAME,NAME] [--update]      PATH: records, as memplan validate takes them
    python benchmarks/peers.py --page > docs/peers.md                                   the page again, from benchmarks/peers.json

Each peer lives in its own virtual environment under DIR (made and filled from the package index where it is
missing) and is asked offline; torch's MemTracker runs in the environment of this script. A question that a
peer cannot be asked (no quantization, no such method) is a dash, never a zero. What is compared is allocated
memory, so a peer's own overhead for context and safety is left out there; its verdicts are judged with it.
`--update` puts the scores of those asked into benchmarks/peers.json, each with its day, and writes
docs/peers.md from that file: no cell of the page is typed. Times are processor seconds, which a busy machine
leaves alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from peer_drivers import PEERS, Peer  # noqa: E402

from memplan.planner.answers.verdict import judge  # noqa: E402
from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.tables.gpus import find_gpu  # noqa: E402
from memplan.planner.tables.units import gib  # noqa: E402
from memplan.profiler.record import Measurement  # noqa: E402
from memplan.validate.collect import as_recorded, read_records  # noqa: E402
from memplan.validate.engines import Missing, by_formula, by_trace  # noqa: E402

DEFAULT_VENVS = Path(tempfile.gettempdir()) / "memplan-peers"
SCORES = Path(__file__).with_name("peers.json")
TOLD = (
    "method",
    "recipe",
    "micro_batch",
    "sequence_length",
    "weight_dtype",
    "autocast",
    "rank",
    "alpha",
    "dropout",
    "targets",
    "checkpointing",
    "optimizer",
    "gradient_accumulation",
    "adapter_dtype",
)
NOT_ASKED = "cannot be asked"
CAPACITIES = tuple(f"{size}GiB" for size in (3, 4, 6, 8, 10, 12, 16))
"""Budgets that each run is put against: where its device bytes fit, it fits; where even what it allocated
does not, it does not.
"""


@dataclass(frozen=True)
class Answered:
    """One predictor's answer to one question: allocated bytes (None: cannot be asked), verdicts by capacity,
    seconds, and why not.
    """

    allocated: int | None
    fits: Mapping[str, bool | None]
    seconds: float
    why: str = ""


def question(measurement: Measurement, folder: Path) -> dict[str, Any]:
    """What a peer is told: the Setup's fields, the model's config and the folder that holds it."""
    config = dict(measurement.model["config"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    fields = measurement.setup.to_document()
    asked = {key: fields[key] for key in TOLD if fields.get(key) is not None}
    return {
        **fields,
        "asked": asked,
        "config": config,
        "folder": str(folder),
        "parameters": find(config).spec().parameters,
    }


def interpreter(peer: Peer, venvs: Path) -> Path:
    """The Python of the peer's own environment, made where it is missing."""
    if not peer.package:
        return Path(sys.executable)
    home = venvs / peer.name
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        if peer.torch:
            site = next((home / "lib").glob("python*/site-packages"))
            (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        alone = ["--no-deps"] if peer.torch else []
        subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *alone, peer.package],
            check=True,
        )
    return python


def ask(peer: Peer, python: Path, asked: Mapping[str, Any]) -> Answered:
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PATH": str(python.parent),
        "OMP_NUM_THREADS": "1",
        "HOME": os.environ.get("HOME", "/"),
    }
    if not peer.package:
        environment["PYTHONPATH"] = str(ROOT)
    program = [str(python), "-W", "ignore", "-c", peer.driver]
    before = _children_seconds()
    limit = partial(resource.setrlimit, resource.RLIMIT_CPU, (peer.seconds, peer.seconds + 1))
    done = subprocess.run(
        program, input=json.dumps(asked), capture_output=True, text=True, env=environment, preexec_fn=limit
    )
    seconds = _children_seconds() - before
    if seconds >= peer.seconds:
        return Answered(None, {}, seconds, f"no answer in {peer.seconds} s")
    if done.returncode:
        return Answered(None, {}, seconds, (done.stderr.strip().splitlines() or ["no message"])[-1])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if not isinstance(answer, list):
        return Answered(None, {}, seconds, answer or NOT_ASKED)
    allocated, total = answer
    return Answered(
        round(allocated), {size: total <= find_gpu(size).usable_bytes for size in CAPACITIES}, seconds
    )


def _children_seconds() -> float:
    """Processor seconds of every process that was waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def own(engine: str, measurement: Measurement) -> Answered:
    start = time.process_time()
    config = dict(measurement.model["config"])
    try:
        model = find({**config, "_name_or_path": str(measurement.model.get("name"))})
        with as_recorded(measurement):
            prediction = (by_formula if engine == "formula" else by_trace)(model, measurement.setup)
    except (Missing, UsageError) as missing:
        return Answered(None, {}, time.process_time() - start, str(missing))
    seconds = time.process_time() - start
    context = find_gpu(
        measurement.setup.gpu or "a100-80gb"
    ).context_bytes  # the GPU's, as memplan knows it by name
    said = {
        size: judge(prediction, replace(find_gpu(size), context_bytes=context)).verdict for size in CAPACITIES
    }
    verdicts = {size: None if verdict == "tight" else verdict == "fits" for size, verdict in said.items()}
    return Answered(prediction.step_peak.allocated_bytes, verdicts, seconds)


def truth(measurement: Measurement, size: str) -> bool | None:
    """Whether the run fits so much: yes where its device bytes do, no where what it allocated and the context
    do not; else unknown.
    """
    peak, capacity = measurement.peak, find_gpu(size).usable_bytes
    if peak is None or peak.context_bytes is None:
        return None
    if peak.reserved_bytes is not None and peak.reserved_bytes + peak.context_bytes <= capacity:
        return True
    return False if peak.allocated_bytes + peak.context_bytes > capacity else None


@dataclass(frozen=True)
class Scored:
    """One predictor over the whole set: how many runs it answered, errors as fractions, verdicts, processor
    seconds, the day.
    """

    name: str
    answered: int
    median: float | None
    worst: float | None
    bias: float | None
    right: int
    false_fits: int
    false_no: int
    tight: int
    seconds: float | None
    why: str
    on: str


def scored(name: str, runs: Sequence[tuple[Measurement, Answered]]) -> Scored:
    errors = [
        (a.allocated - m.step_peak.allocated_bytes) / m.step_peak.allocated_bytes
        for m, a in runs
        if a.allocated is not None and m.step_peak
    ]
    counts = {"right": 0, "false_fits": 0, "false_no": 0, "tight": 0}
    for m, a in runs:
        for size, said in a.fits.items():
            known = truth(m, size)
            if known is not None:
                counts[
                    "tight"
                    if said is None
                    else "right"
                    if said == known
                    else "false_fits"
                    if said
                    else "false_no"
                ] += 1
    sizes = [abs(error) for error in errors]
    seconds = [a.seconds for _, a in runs if a.allocated is not None]
    reasons = Counter(a.why[:90] for _, a in runs if a.allocated is None)
    return Scored(
        name,
        len(errors),
        statistics.median(sizes) if sizes else None,
        max(sizes, default=None),
        statistics.fmean(errors) if errors else None,
        **counts,
        seconds=statistics.median(seconds) if seconds else None,
        why="; ".join(f"{count} x {why}" for why, count in reasons.most_common(3)),
        on=f"{date.today():%Y-%m-%d}",
    )


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


HEAD = (
    "predictor",
    "answered",
    "median",
    "worst",
    "bias",
    "verdicts right",
    "false fits",
    "false no",
    "tight",
    "seconds",
    "what it could not say",
    "on",
)


def rows(table: Iterable[Scored]) -> list[tuple[str, ...]]:
    found = []
    for s in table:
        judged = bool(s.answered)
        verdicts = [str(n) if judged else "-" for n in (s.right, s.false_fits, s.false_no, s.tight)]
        numbers = (cell(s.median, ".2%"), cell(s.worst, ".2%"), cell(s.bias, "+.2%"))
        found.append(
            (s.name, str(s.answered), *numbers, *verdicts, cell(s.seconds, ".2f"), s.why or "-", s.on)
        )
    return found


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)])


def about(measured: Sequence[Measurement]) -> dict[str, Any]:
    """What the page says of the measured set."""
    return {
        "runs": len(measured),
        "cards": sorted({str(m.environment.get("gpu")) for m in measured}),
        "methods": sorted({m.setup.method for m in measured}),
        "development": sum(bool(m.extra.get("development")) for m in measured),
    }


def updated(
    before: Mapping[str, Any], measured: Mapping[str, Any], table: Iterable[Scored]
) -> dict[str, Any]:
    """The scores with those of `table` put in, in the order of the page. Scores of another set of runs go."""
    kept = before.get("scores", []) if before.get("set") == measured else []
    found = {row["name"]: row for row in kept} | {row.name: asdict(row) for row in table}
    order = [
        *(f"memplan {engine}" for engine in ("formula", "trace")),
        *(peer.package or peer.name for peer in PEERS),
    ]
    return {"set": dict(measured), "scores": [found[name] for name in order if name in found]}


def page(scores: Mapping[str, Any]) -> str:
    """docs/peers.md, from benchmarks/peers.json and the table of peers alone."""
    about, table = scores["set"], [Scored(**row) for row in scores["scores"]]
    return f"""# Peers, on one measured set

Written by `python benchmarks/peers.py PATH --update`, every cell of it, from `benchmarks/peers.json`, where that command keeps its scores.
{about["runs"]} measured runs ({", ".join(about["cards"])}; {", ".join(about["methods"])}), of which {about["development"]} are the
development set (published by fitcheck-llm 0.3.1: in that peer's own calibration set, and seen while memplan was designed). Every predictor
was asked the same questions, each in its own virtual environment, on one machine without a GPU. A dash is a question that it cannot be
asked, and no zero. Errors are of the allocated peak of the training step. Verdicts: every run against budgets of
{", ".join(CAPACITIES)}; right or wrong only where the run says for sure (its device bytes fit, or even what it
allocated and the context do not). Seconds: processor time, median of a whole answer, for peers with the start of their process.

{markdown(HEAD, rows(table))}

## How each was asked

{markdown(("peer", "package", "note"), [(p.name, f"`{p.package}`" if p.package else "torch", p.note or "-") for p in PEERS])}

DeepSpeed's estimators (`estimate_zero2_model_states_mem_needs` and its kin) count states alone, for full fine-tuning under ZeRO alone;
vram-check 0.1.1, gpu-fit-llm 0.1.0, llm-mem 0.1.1, llm-mem-planner 0.2.2, llm-resource-planner 0.2.0 and hf-mem 0.5.6 answer for
inference, or for training without adapters: not asked here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--engines", default="formula,trace")
    parser.add_argument("--only", default="", help="peers by name, separated by commas; default: all")
    parser.add_argument("--update", action="store_true", help="write benchmarks/peers.json and docs/peers.md")
    parser.add_argument(
        "--page", action="store_true", help="print the page of benchmarks/peers.json, ask nobody"
    )
    arguments = parser.parse_args()
    known = json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}
    if arguments.page:
        print(page(known), end="")
        return
    chosen = [peer for peer in PEERS if not arguments.only or peer.name in arguments.only.split(",")]
    measured = [m for m in read_records(arguments.paths) if m.outcome == "ok" and m.step_peak is not None]
    results: dict[str, list[tuple[Measurement, Answered]]] = {}
    for measurement in measured:
        for engine in filter(None, arguments.engines.split(",")):
            results.setdefault(f"memplan {engine}", []).append((measurement, own(engine, measurement)))
        with tempfile.TemporaryDirectory() as folder:
            asked = question(measurement, Path(folder))
            for peer in chosen:
                answered = ask(peer, interpreter(peer, arguments.venvs), asked)
                results.setdefault(peer.package or peer.name, []).append((measurement, answered))
        print(
            f"{measurement.case}: measured "
            f"{gib(measurement.step_peak.allocated_bytes if measurement.step_peak else 0)}",
            file=sys.stderr,
        )
    table = [scored(name, runs) for name, runs in results.items()]
    for line in (HEAD, *rows(table)):
        print("  ".join(f"{word:>24}" if n == 0 else f"{word:>9}" for n, word in enumerate(line)))
    if arguments.update:
        known = (
            json.loads(SCORES.read_text(encoding="utf-8")) if SCORES.is_file() else {}
        )  # as another run may have left it meanwhile
        scores = updated(known, about(measured), table)
        SCORES.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        (ROOT / "docs" / "peers.md").write_text(page(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
