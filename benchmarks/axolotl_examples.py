"""What becomes of every example of an axolotl release: answered, or why not; its keys that no rule follows.

    python benchmarks/axolotl_examples.py FOLDER [N [LOG]]

FOLDER: the release's `examples`. Each file is read and, where its model is known without a network, predicted
by the formula without a GPU named. Of the files whose family the formula lacks every N-th is put to `memplan`
itself, which traces it (N: 0, none; minutes each); LOG keeps what it said, and is read before anything is
asked again, the last word of a file counts. A line for each file, then sums: names and outcomes, nothing of a
file's content.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

KINDS = ("unknown", "not_modelled")
ANSWERED, AT_LEAST, NOT_ANSWERED = "answered", "answered, at least", "not answered"
REFUSED = "refused by its libraries"
OTHER, FOR_THE_TRACE = "another kind of file", "a family for the trace, not asked"
TRACED = " (traced)"
PATIENCE = 600
"""Seconds of a processor that one trace may take."""
REFUSALS = {
    ".altup (transformers's Gemma3nTextAltUp": (
        "transformers 5.16.1, which axolotl 0.19 pins, and 5.24: models/gemma3n/modeling_gemma3n.py "
        "Gemma3nTextAltUp.correct multiplies by correction_coefs.weight itself, which bitsandbytes has "
        "packed into 4 bits: axolotl 0.19 loaders/model.py spares no module of this class"
    ),
    "adamw_bnb_8bit cannot step under FSDP2": (
        "axolotl 0.19 utils/schemas/validation.py check_fsdp2_w_8bit_optimizer raises a ValueError"
    ),
}
"""Words of our message, and how it is known that the run stops the same way in axolotl."""


def outcome(path: Path, keys: Counter[str]) -> str:
    """ANSWERED, AT_LEAST, NOT_ANSWERED or REFUSED and why, OTHER, or FOR_THE_TRACE."""
    from memplan import api
    from memplan.cli.subject import read_subject
    from memplan.planner.formula.lacking import lacking
    from memplan.planner.importers.changed import applied
    from memplan.planner.importers.files import read_training_file
    from memplan.planner.inputs.models import find
    from memplan.planner.tables.errors import MemplanError, NetworkError, UsageError

    try:
        imported = read_training_file(path)
    except UsageError:
        return OTHER
    keys.update(f"{key.status}: {key.key}" for key in imported.keys if key.status in KINDS)
    if not imported.model:
        return f"{NOT_ANSWERED}: no model named"
    try:
        model = applied(imported, find(imported.model))
    except NetworkError:
        return f"{NOT_ANSWERED}: the hub has its model"
    except MemplanError as error:
        return f"{NOT_ANSWERED}: {error}"
    if api.unknown_family(model):
        return FOR_THE_TRACE
    try:
        subject = read_subject(str(path), {})
        if lacking(subject.model.spec(), subject.setup):
            return FOR_THE_TRACE
        found = subject.annotate(subject.predict(subject.setup))
    except MemplanError as error:
        return unanswered(str(error))
    return AT_LEAST if found.not_modelled else ANSWERED


def unanswered(message: str) -> str:
    """REFUSED where it is known that the run itself would stop with this, else NOT_ANSWERED; and why."""
    for words, known in REFUSALS.items():
        if words in message:
            return f"{REFUSED}: {known}"
    return f"{NOT_ANSWERED}: {message[:200]}"


def traced(path: Path) -> str:
    """What the command says of a file whose family the formula lacks, or why it has no answer."""
    call = [sys.executable, "-m", "memplan", str(path), "--json"]
    ended = subprocess.run(call, capture_output=True, text=True, preexec_fn=_patience, check=False)  # noqa: PLW1509
    if ended.returncode < 0:
        return f"{NOT_ANSWERED}: longer than {PATIENCE} s{TRACED}"
    if ended.returncode in (0, 1):  # 1: a verdict of "no"
        return (AT_LEAST if json.loads(ended.stdout)["not_modelled"] else ANSWERED) + TRACED
    return unanswered(" ".join(ended.stderr.split())) + TRACED


def _patience() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))


def said(log: Path | None) -> dict[str, str]:
    """What a log has: `file: outcome` lines."""
    lines = log.read_text(encoding="utf-8").splitlines() if log is not None and log.exists() else []
    return {name: found for name, _, found in (line.partition(": ") for line in lines)}


def sums(met: Counter[str]) -> str:
    """How many of the files asked have an answer, a lower bound, a run that their libraries refuse, or
    nothing; and the shares.
    """
    asked = sum(met[each] for each in (ANSWERED, AT_LEAST, REFUSED, NOT_ANSWERED))
    if not asked:
        return "no file was asked"
    whole, both = met[ANSWERED], met[ANSWERED] + met[AT_LEAST]
    run = asked - met[REFUSED]
    return "\n".join(
        (
            f"{asked} files asked without a GPU named: {whole} answered, {met[AT_LEAST]} answered at least, "
            f"{met[REFUSED]} refused by their libraries, {met[NOT_ANSWERED]} not answered",
            f"of all {asked}: {whole / asked:.1%} answered, {both / asked:.1%} with those at least, "
            f"{(both + met[REFUSED]) / asked:.1%} with those refused too",
            f"of the {run} that run: {whole / run:.1%} answered, {both / run:.1%} with those at least",
        )
    )


def main(folder: Path, every: int = 0, log: Path | None = None) -> None:
    """Print every file's outcome, the sums, and the keys without a rule."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    keys: Counter[str] = Counter()
    met: Counter[str] = Counter()
    known, lacking = said(log), 0
    for path in sorted(path for ending in ("*.yaml", "*.yml") for path in folder.rglob(ending)):
        name, found = str(path.relative_to(folder)), outcome(path, keys)
        if found == FOR_THE_TRACE:
            lacking += 1
            if name in known:
                found = known[name]
            elif every and lacking % every == 1 % every:
                found = traced(path)
                if log is not None:
                    with log.open("a", encoding="utf-8") as kept:
                        kept.write(f"{name}: {found}\n")
        met[found.partition(":")[0].removesuffix(TRACED)] += 1
        print(f"{name}: {found}", flush=True)
    print(sums(met))
    for name, count in (*met.most_common(), *keys.most_common()):
        print(f"{count:5} {name}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), *map(int, arguments[1:2]), *map(Path, arguments[2:3]))
