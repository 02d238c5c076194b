"""Published runs against predictions: what `memplan validate --published` prints, and the same as Markdown
for docs/accuracy.md.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from memplan.planner import __version__
from memplan.planner.tables.units import gib
from memplan.render.tables import ABSENT, Line, markdown, percent, table
from memplan.validate import published_outcomes, scored_runs
from memplan.validate.library_differences import DIFFERENCES
from memplan.validate.published import PublishedRun, published_runs
from memplan.validate.published_evidence import error_of
from memplan.validate.published_outcomes import JUDGED, Outcome, outcomes
from memplan.validate.scored_runs import ENGINES, QUANTITIES, ScoredRun

RUN_HEAD: Line = ("run", "GPU", "quantity", "measured", "formula", "error", "trace", "error", "libraries")
SUM_HEAD: Line = (
    "runs that",
    "engine",
    "quantity",
    "target: median / worst",
    "runs",
    "median",
    "P95",
    "worst",
    "bias",
    "",
)
VERDICT_HEAD: Line = ("engine", "outcome", "FITS", "TIGHT", "NO", "no verdict", "not predicted")
OUTCOME_HEAD: Line = ("outcome", "GPU", "happened", "formula", "trace", "needs", "usable", "")
TARGETS: Mapping[str, tuple[float, float | None]] = {"allocated": (0.005, None), "device": (0.02, 0.08)}
"""Tier P of the design: median and worst error over published runs whose libraries match, by quantity."""


def summary_lines(runs: Sequence[ScoredRun]) -> Iterator[Line]:
    """The errors of each engine in each quantity, over the runs that count: those never used for tuning, which
    alone are held against tier P, and those that guided the design.
    """
    for development, label in ((False, "were never used for tuning"), (True, "guided the design")):
        some = [run for run in runs if run.counted and run.development == development]
        for engine, quantity in product(ENGINES, QUANTITIES):
            errors = [e for run in some if (e := run.error(engine, quantity)) is not None]
            found = error_of(errors)
            if found is None:
                continue
            median, worst = (None, None) if development else TARGETS.get(quantity, (None, None))
            kept = (median is None or found.median <= median) and (worst is None or found.worst <= worst)
            target = f"{percent(median)} / {percent(worst)}" if median is not None else ABSENT
            yield (
                label,
                engine,
                quantity,
                target,
                str(found.runs),
                percent(found.median),
                percent(found.p95),
                percent(found.worst),
                percent(statistics.fmean(errors), True),
                "" if median is None else "kept" if kept else "BROKEN",
            )


def run_lines(runs: Sequence[ScoredRun], counted: bool) -> Iterator[Line]:
    """One line a run and quantity, worst trace error first (the formula's where it was not traced)."""
    pairs = [(run, q) for run in runs if run.counted == counted for q in run.measured]
    for run, quantity in sorted(pairs, key=lambda pair: (-_size(*pair), pair[0].id, pair[1])):
        cells = []
        for engine in ENGINES:
            score = run.engines.get(engine)
            size = score.best.get(quantity) if score is not None else None
            error = run.error(engine, quantity)
            cells += [gib(size) if size is not None else ABSENT, percent(error, True)]
        gpu = run.gpu if run.gpus == 1 else f"{run.gpus} x {run.gpu}"
        marks = ", ".join((*run.differs, *(("development",) if run.development else ())))
        yield (run.id, gpu, quantity, gib(run.measured[quantity]), *cells, marks)


def _size(run: ScoredRun, quantity: str) -> float:
    error = run.error("trace", quantity)
    error = run.error("formula", quantity) if error is None else error
    return abs(error) if error is not None else -1.0


def verdict_lines(lines: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """The confusion of each engine: what happened against what was predicted."""
    for engine in ENGINES:
        for happened in ("fits", "oom"):
            some = [line["engines"][engine] for line in lines if line["outcome"] == happened]
            words = Counter("not predicted" if s["high_bytes"] is None else str(s["verdict"]) for s in some)
            cells = (words[word] for word in ("fits", "tight", "no", "None", "not predicted"))
            yield (engine, happened, *map(str, cells))


def judged_line(lines: Sequence[Mapping[str, Any]], engine: str) -> str:
    """How often one engine's verdicts were right, in one sentence."""
    words = Counter(line["engines"][engine]["judged"] for line in lines)
    kinds = (*dict.fromkeys(JUDGED.values()), "undecided", "not predicted")
    return f"{engine}: " + ", ".join(f"{words[kind]} {kind}" for kind in kinds)


def outcome_lines(lines: Sequence[Mapping[str, Any]], told: Sequence[Outcome]) -> Iterator[Line]:
    """One line an outcome: what happened, what each engine said, and the range that it rests on."""
    by_id = {outcome.id: outcome for outcome in told}
    for line in lines:
        outcome, scores = by_id[line["id"]], line["engines"]
        best = next((scores[e] for e in ("trace", "formula") if scores[e]["high_bytes"] is not None), None)
        words = [
            ABSENT if scores[e]["high_bytes"] is None else str(scores[e]["verdict"] or "no verdict")
            for e in ENGINES
        ]
        need = f"{gib(best['low_bytes'])} to {gib(best['high_bytes'])}" if best else ABSENT
        usable = gib(best["usable_bytes"]) if best else ABSENT
        assumed = f"assumed: {', '.join(outcome.assumed)}" if outcome.assumed else ""
        gpu = outcome.gpu if outcome.gpus == 1 else f"{outcome.gpus} x {outcome.gpu}"
        yield (line["id"], gpu, line["outcome"], *words, need, usable, assumed)


def unexpressed_lines(rows: Sequence[PublishedRun | Outcome]) -> Iterator[Line]:
    """Why rows have no setup, and how many."""
    reasons = Counter(row.unexpressed for row in rows if row.setup is None)
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        yield (reason, str(count))


def differences_lines(runs: Sequence[ScoredRun]) -> Iterator[Line]:
    """What libraries did otherwise: the mark, how many runs have it, why, what becomes of them."""
    for name, row in DIFFERENCES.items():
        count = sum(name in run.differs for run in runs)
        if count:
            fate = "put back" if row.put_back else "counted" if row.counted else "not counted"
            yield (name, str(count), f"{row.why} ({row.source})", fate)


def tables(
    published: Sequence[PublishedRun],
    runs: Sequence[ScoredRun],
    lines: Sequence[Mapping[str, Any]],
    told: Sequence[Outcome],
) -> Iterator[RenderableType]:
    """Everything that `memplan validate --published` prints."""
    yield table("Published runs that count", SUM_HEAD, summary_lines(runs))
    yield table("Runs, worst first", RUN_HEAD, run_lines(runs, True))
    yield table("Runs that do not count", RUN_HEAD, run_lines(runs, False))
    yield table("Marks", ("mark", "runs", "why", ""), differences_lines(runs))
    yield table("Fits or out of memory, against the verdict", VERDICT_HEAD, verdict_lines(lines))
    for engine in ENGINES:
        yield Text(judged_line(lines, engine))
    yield table("Outcomes", OUTCOME_HEAD, outcome_lines(lines, told))
    title = "Published, but no setup says it"
    yield table(title, ("why", "rows"), unexpressed_lines([*published, *told]))


def to_document(
    published: Sequence[PublishedRun],
    runs: Sequence[ScoredRun],
    lines: Sequence[Mapping[str, Any]],
    told: Sequence[Outcome],
    engines: Sequence[str] = ENGINES,
) -> dict[str, Any]:
    """The document of `memplan validate --published --json`: one entry a run, engine and quantity; bytes."""
    scored = {run.id: run for run in runs}
    entries = [
        _entry(run, scored[run.id], engine, quantity)
        for run in published
        if run.setup is not None
        for engine in engines
        if engine in scored[run.id].engines
        for quantity in run.measured
    ]
    return {
        "schema": "memplan.validation/1",
        "memplan_version": __version__,
        "published": entries,
        "unexpressed": [
            *({"id": run.id, "why": run.unexpressed} for run in published if run.setup is None),
            *({"id": one.id, "why": one.unexpressed} for one in told if one.setup is None),
        ],
        "outcomes": list(lines),
    }


def _entry(run: PublishedRun, scored: ScoredRun, engine: str, quantity: str) -> dict[str, Any]:
    score = scored.engines[engine]
    return {
        **{key: getattr(run, key) for key in ("id", "model", "quality", "source", "license", "note")},
        "metric": quantity,
        "setup": dict(run.setup or {}),
        "versions": dict(run.versions),
        "differs": list(scored.differs),
        "counted": scored.counted,
        "development": scored.development,
        "traits": dict(scored.traits),
        "published": run.measured[quantity],
        "predicted": score.best.get(quantity),
        "predicted_on_installed_libraries": score.predicted.get(quantity),
        "error": scored.error(engine, quantity),
        "engine": engine,
        "reason": score.reason or None,
    }


INTRO = """## Published runs

Written by `memplan validate --published --update` from `validate/published_data/` (every row with its source, license, settings and
versions). No GPU run of our own is recorded yet: these are runs that others measured, none was used to tune a number, and the T4 runs guided
the design. A run counts where its libraries did what is predicted, or where what they did otherwise is put back in the trace (the formula
then moves by as much as the trace does). The others are shown and stay out of every statistic.
"""


TITLE = INTRO.partition("\n")[0]


def shipped_section() -> str:
    """The part of docs/accuracy.md on the published runs that ship with the package."""
    return section(published_runs(), scored_runs.shipped(), published_outcomes.shipped(), outcomes())


def with_section(page: str) -> str:
    """docs/accuracy.md with that part, which is its last, as it is now."""
    return page.partition(TITLE)[0].rstrip() + "\n\n" + shipped_section()


def section(
    published: Sequence[PublishedRun],
    runs: Sequence[ScoredRun],
    lines: Sequence[Mapping[str, Any]],
    told: Sequence[Outcome],
) -> str:
    """The part of docs/accuracy.md on published runs."""
    parts = [
        INTRO,
        markdown(SUM_HEAD, summary_lines(runs)),
        "\n### Runs that count, worst first\n",
        markdown(RUN_HEAD, run_lines(runs, True)),
        "\n### Runs that do not count\n",
        markdown(RUN_HEAD, run_lines(runs, False)),
        "\n### Marks\n",
        markdown(("mark", "runs", "why", ""), differences_lines(runs)),
        "\n### Fits or out of memory\n\nRuns that others saw fit or run out of memory, against the verdict on that GPU. `undecided`: a "
        "setting was not\npublished and is set to the least that is plausible, so a `fits` says nothing of the run.\n",
        markdown(VERDICT_HEAD, verdict_lines(lines)),
        "",
        *(f"* {judged_line(lines, engine)}" for engine in ENGINES),
        "",
        markdown(OUTCOME_HEAD, outcome_lines(lines, told)),
        "\n### Published, but no setup says it\n",
        markdown(("why", "rows"), unexpressed_lines([*published, *told])),
    ]
    return "\n".join(parts).rstrip() + "\n"
