"""The trace against torch's own CUDA code, without a GPU: `python benchmarks/trace_vs_dryrun.py N --python
CUDA_PYTHON [--out FILE]`.

Each case is a random model and setup of formula_vs_trace.py on a GPU of another generation. The trace
predicts it for the torch release of CUDA_PYTHON; the same build and steps run there over the stub libraries.
FILE keeps one JSON document a line, and a run goes on where the file ends. `--again` predicts the recorded
runs once more and keeps that (no CUDA build needed), `--explain NUMBER` aligns one case's events,
`--thresholds N` bisects the capacity at which N of the recorded runs run out of memory, `--table` prints the
table of docs/dry-run.md from files of records. A dry run is no GPU measurement.

Left out: FlashAttention-2 (a package of CUDA kernels that is not installed) and cuDNN attention (switched off
on both sides where torch prefers it).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import formula_vs_trace as random_setups

from memplan.planner.allocator.native import SMALL_SEGMENT
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables import sdp
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.recipes import RECIPES
from memplan.planner.tables.torch_versions import nearest
from memplan.planner.trace.engine import traced
from memplan.planner.trace.events.log import Log
from memplan.profiler.align import Step, align, common
from memplan.profiler.cases import predicted_step
from memplan.profiler.dryrun.own_steps import DryRunner, DryStep

GPUS = ("t4", "a100-80gb", "a10g", "rtx-4090", "h100-80gb", "b200")
"""Of compute capability 7.5, 8.0, 8.6, 8.9, 9.0 and 10.0."""
LARGEST = 1_000_000_000  # parameters of a catalog model in the comparison
LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate")
Document = dict[str, Any]
NUMBERS = ("allocated", "reserved", "step_allocated", "step_reserved")


def case(seed: int, number: int) -> tuple[str, Document, Document]:
    """Case `number` of a seed: (the model's name, its config, the setup's fields as given)."""
    name, config, fields = random_setups.case(seed, number)
    rng = random.Random(f"{seed}-{number}-dry run")
    if rng.random() < 0.85 or find(config).spec().parameters > LARGEST:
        name, config, fields = random_setups.case(seed, number, small=True)
    if rng.random() < 0.25:
        fields["recipe"] = rng.choice([r for r in sorted(RECIPES) if not RECIPES[r].only])
    fields["gpu"] = GPUS[number % len(GPUS)]
    if fields.get("attention") == sdp.FLASH_2:
        fields["attention"] = "sdpa"
    return name, config, fields


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """The trace as with `torch.backends.cuda.enable_cudnn_sdp(False)`, which a dry run needs."""
    kept = sdp.CHECKS["cudnn"]
    sdp.CHECKS["cudnn"] = (lambda asked: False,)
    try:
        yield
    finally:
        sdp.CHECKS["cudnn"] = kept


# ---- the two sides -----------------------------------------------------------------------------------------


def predicted(config: Mapping[str, Any], setup: Setup) -> tuple[Document, Step, Log]:
    """The trace's numbers, its steady step, and all its events."""
    with without_cudnn():
        found, log = traced(config, setup)
    numbers = {
        "allocated": found.peak.allocated_bytes,
        "reserved": found.peak.reserved_bytes,
        "step_allocated": found.step_peak.allocated_bytes,
        "step_reserved": found.step_peak.reserved_bytes,
        "moments": {m.moment: m.allocated_bytes for m in found.moments if m.moment != "load_peak"},
        "smallest_capacity": (found.smallest_capacity_bytes or 0) - found.peak.context_bytes,
    }
    return numbers, steady(log, setup), log


def steady(log: Log, setup: Setup) -> Step:
    """The last step's events by moment."""
    moments = predicted_step(log, setup.gradient_accumulation)
    return Step(
        {name: tuple((kind, nbytes) for kind, nbytes, _ in rows) for name, rows in moments.items()},
        {name: tuple(owner for *_, owner in rows) for name, rows in moments.items()},
    )


def digest(step: Step) -> str:
    """A hash of the steady step's sequence of allocations and frees, with their bytes."""
    rows = [[moment, *token] for moment, tokens in step.moments.items() for token in tokens]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def seen(found: DryStep) -> Document:
    """What a record keeps of a dry run."""
    names = (*NUMBERS, "moments", "components", "retries")
    return {name: getattr(found, name) for name in names} | {
        "oom": bool(found.oom),
        "events": len(found.events),
        "sequence": digest(found.step()),
    }


def compare(runner: DryRunner, config: Document, fields: Document) -> Document:
    """Both sides of one case, or who refused it and why."""
    setup = random_setups.legal(config, {**fields, "torch": runner.release})
    if setup is None:
        return {"refused": "setup", "reason": "the fields contradict each other"}
    refused: Document = {}
    runner.start(config, setup)
    try:
        ours, step, log = predicted(config, setup)
    except UsageError as error:
        refused = {"refused": "trace", "reason": str(error)[:300]}
    try:
        theirs = runner.result()
    except UsageError as error:
        alone = {} if refused else {"refused": "dry run", "reason": str(error)[:300]}
        return refused | alone | {"dry_run_refused": True}
    if refused:
        return refused | {"dry_run_refused": False}
    return {"trace": ours | {"events": len(log.events), "sequence": digest(step)}, "dry_run": seen(theirs)}


def sweep(runner: DryRunner, numbers: Iterable[int], seed: int) -> Iterator[Document]:
    """One record for each case."""
    versions = {"torch": runner.interpreter.torch, **{name: version(name) for name in LIBRARIES}}
    for number in numbers:
        name, config, fields = case(seed, number)
        found = compare(runner, config, fields)
        kept = {"config": config} if "trace" in found else {}
        yield (
            {"case": number, "seed": seed, "model": name, "fields": fields, "versions": versions}
            | kept
            | found
        )


def setup_of(record: Document) -> Setup:
    """The setup of a record, for the torch that it was dry-run on."""
    release = nearest(record["versions"]["torch"])
    setup = random_setups.legal(record["config"], {**record["fields"], "torch": release})
    assert setup is not None, "it was legal when it was recorded"
    return setup


def again(record: Document) -> Document:
    """A record with today's prediction beside what the dry run saw."""
    if "trace" not in record:
        return record
    ours, step, log = predicted(record["config"], setup_of(record))
    return record | {"trace": ours | {"events": len(log.events), "sequence": digest(step)}}


def threshold(runner: DryRunner, record: Document) -> Document:
    """A record with the smallest capacity in bytes under which its dry run survives, to a 400th or the one
    segment of 2 MiB that memory is reserved by; sought within 3 % of the predicted one, None where it lies
    outside.
    """
    setup = setup_of(record)
    guess = record["trace"]["smallest_capacity"] // SMALL_SEGMENT
    step = max(1, guess // 400)

    def survives(segments: int) -> bool:
        return not runner.run(record["config"], setup, capacity=segments * SMALL_SEGMENT).oom

    low, high = guess - step, guess
    if survives(low) or not survives(high):
        low, high = min(guess * 97 // 100, low), max(-(-guess * 103 // 100), guess + step)
        if survives(low) or not survives(high):
            return record | {"smallest_capacity": None}
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if survives(middle) else (middle, high)
    return record | {"smallest_capacity": high * SMALL_SEGMENT}


# ---- what came of it ---------------------------------------------------------------------------------------


def error(record: Document, name: str) -> float:
    """Trace less dry run, as a share of the dry run."""
    return record["trace"][name] / record["dry_run"][name] - 1


def summary(records: Sequence[Document]) -> Document:
    """Counts and errors of the records that both sides ran."""
    both = [r for r in records if "trace" in r and not r["dry_run"]["oom"]]
    found: Document = {"runs": len(both), "refused": len(records) - len(both)}
    for name in NUMBERS:
        sizes = [abs(error(r, name)) for r in both]
        found[name] = {
            "equal": sum(size == 0 for size in sizes) / len(sizes),
            "median": statistics.median(sizes),
            "P95": random_setups.percentile(sizes, 0.95),
            "worst": max(sizes),
        }
    found["sequences"] = sum(r["trace"]["sequence"] == r["dry_run"]["sequence"] for r in both) / len(both)
    return found


def show(records: Sequence[Document], most: int) -> None:
    """The cases that differ, worst first, then the summary."""
    both = [r for r in records if "trace" in r and not r["dry_run"]["oom"]]
    apart = sorted(both, key=lambda r: -max(abs(error(r, name)) for name in NUMBERS))
    for r in apart[:most]:
        errors = "  ".join(f"{name} {error(r, name):+.3%}" for name in NUMBERS if error(r, name))
        ours, theirs = r["trace"], r["dry_run"]
        moments = {k: ours["moments"].get(k, 0) - v for k, v in theirs["moments"].items()}
        moments = {name: off for name, off in moments.items() if off}
        print(f"\n#{r['case']} {r['model']}: {errors}\n  {r['fields']}")
        print(f"  moments {moments} events {ours['events']} {theirs['events']}")
    for r in records:
        if r.get("refused") in ("trace", "dry run"):
            both = " (by both)" if r["refused"] == "trace" and r["dry_run_refused"] else ""
            print(f"#{r['case']} {r['model']} refused by {r['refused']}{both}: {r['reason'][:200]}")
    found = summary(records)
    print(f"\n{found['runs']} runs, {found['refused']} refused, equal sequences {found['sequences']:.1%}")
    for name in NUMBERS:
        print(f"{name:15}", "  ".join(f"{key} {value:.3%}" for key, value in found[name].items()))


def table(files: Sequence[Sequence[Document]]) -> str:
    """The errors of each release as a Markdown table."""
    lines = [
        "| torch | runs | | equal to the byte | median | P95 | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for records in files:
        found = summary(records)
        release = next(r["versions"]["torch"] for r in records).split("+")[0]
        for name, label in (("step_allocated", "peak allocated"), ("step_reserved", "reserved")):
            errors = " | ".join(f"{found[name][key]:.2%}" for key in ("equal", "median", "P95", "worst"))
            lines.append(f"| {release} | {found['runs']} | {label} | {errors} |")
    limits = [r for records in files for r in records if "smallest_capacity" in r]
    if limits:
        near = [r for r in limits if r["smallest_capacity"] and abs(_boundary(r)) <= 0.01]
        lines += [
            "",
            f"OOM boundaries within 1 % of the predicted smallest capacity: {len(near)} of {len(limits)}.",
        ]
    return "\n".join(lines)


def _boundary(record: Document) -> float:
    return record["trace"]["smallest_capacity"] / record["smallest_capacity"] - 1


def write(path: Path, records: Sequence[Document]) -> None:
    """All records, in place of the file's."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    part.replace(path)


def explain(runner: DryRunner, record: Document, most: int) -> None:
    """Align one case's events, whole run: what only one side has, with where it comes from."""
    setup = random_setups.legal(record["config"], {**record["fields"], "torch": runner.release})
    assert setup is not None
    _, step, log = predicted(record["config"], setup)
    found = runner.run(record["config"], setup, stacks=True)
    sizes = {number: nbytes for kind, number, nbytes in log.events if kind == "alloc"}
    ours = [(kind, sizes[number]) for kind, number, _ in log.events if kind in ("alloc", "free")]
    names = [log.storages[number] for kind, number, _ in log.events if kind in ("alloc", "free")]
    live: dict[int, tuple[int, str]] = {}
    theirs, lines = [], []
    for (kind, address, nbytes), line in zip(found.events, found.lines, strict=True):
        if kind == "alloc":
            live[address] = (nbytes, line)
        size, made = live.get(address, (nbytes, "?"))
        theirs.append((kind, size))
        lines.append(made)
    pairs = list(common(ours, theirs))
    matched, taken = {i for i, _ in pairs}, {j for _, j in pairs}
    print(f"{len(ours)} predicted, {len(theirs)} seen, {len(pairs)} matched")
    shown = [
        (i, f"trace   {i} {t} {names[i].module}: {names[i].op} {names[i].shape} {names[i].moment}")
        for i, t in enumerate(ours)
        if i not in matched
    ]
    shown += [(j, f"dry run {j} {t} {lines[j]}") for j, t in enumerate(theirs) if j not in taken]
    for _, text in sorted(shown)[:most]:
        print(" ", text)
    print(json.dumps(align(step, found.step())["unmatched"][:8], indent=0))


# ---- running -----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, nargs="?", default=30)
    parser.add_argument("--python", help="an interpreter with a CUDA build of torch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, action="append", help="these case numbers alone")
    parser.add_argument("--out", type=Path, help="JSON lines, one a case")
    parser.add_argument("--again", action="store_true", help="predict the records of --out once more")
    parser.add_argument("--thresholds", type=int, help="bisect so many recorded runs' smallest capacity")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these files of records")
    parser.add_argument("--explain", type=int, action="append", help="align the events of this case")
    parser.add_argument("--show", type=int, default=10, help="how many of the worst cases to print")
    arguments = parser.parse_args()
    records = random_setups.done(arguments.out)
    if arguments.again:
        chosen = [r for r in records if not arguments.only or r["case"] in arguments.only]
        for record in chosen:
            records[records.index(record)] = again(record)
            write(arguments.out, records)
        show(records, arguments.show)
        return
    if arguments.table:
        print(table([random_setups.done(path) for path in arguments.table]))
        return
    if not arguments.python:
        parser.error("--python names the interpreter with a CUDA build of torch")
    with DryRunner(arguments.python) as runner:
        if arguments.explain:
            for number in arguments.explain:
                name, config, fields = case(arguments.seed, number)
                print(f"#{number} {name} {fields}")
                explain(runner, {"config": config, "fields": fields}, arguments.show)
            return
        if arguments.thresholds:
            waiting = [r for r in records if "trace" in r and "smallest_capacity" not in r]
            for record in waiting[: arguments.thresholds]:
                records[records.index(record)] = threshold(runner, record)
                write(arguments.out, records)
            return
        first = max((r["case"] + 1 for r in records), default=0)
        for record in sweep(runner, arguments.only or range(first, arguments.count), arguments.seed):
            records.append(record)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    show(records, arguments.show)


if __name__ == "__main__":
    main()
