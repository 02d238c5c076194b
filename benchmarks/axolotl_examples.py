"""What becomes of every example of an axolotl release: answered, or why not; its keys that no rule follows.

    python benchmarks/axolotl_examples.py FOLDER [N]

FOLDER: the release's `examples`. Each file is read and, where its model is known without a network, predicted
by the formula without a GPU named. Of the files whose family the formula lacks every N-th is put to `memplan`
itself, which traces it (N: 0, none). A line for each file, then sums: names and outcomes, nothing of a file's
content.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def outcome(path: Path, keys: Counter[str]) -> str:
    """`answered`, `answered, at least`, `refused` (and why), or what keeps it from the formula: `another kind
    of file`, `no model named`, `the hub has its model`, FOR_THE_TRACE (`plan` then runs that).
    """
    from memplan import api
    from memplan.planner.importers.choices import runs_instead
    from memplan.planner.importers.files import read_training_file
    from memplan.planner.inputs.models import find
    from memplan.planner.inputs.setup import resolve
    from memplan.planner.tables.errors import MemplanError, NetworkError, UsageError

    try:
        imported = read_training_file(path)
    except UsageError:
        return "another kind of file"
    keys.update(f"{key.status}: {key.key}" for key in imported.keys if key.status in KINDS)
    if not imported.model:
        return "no model named"
    try:
        model = find(imported.model)
    except NetworkError:
        return "the hub has its model"
    except MemplanError as error:
        return f"refused: {error}"
    if api.unknown_family(model):
        return FOR_THE_TRACE
    try:
        spec = model.spec()
        setup = runs_instead(imported, resolve(imported=imported.fields), spec)
        api.predict(model, setup, "formula")
    except MemplanError as error:
        return f"refused: {error}"
    return "answered, at least" if imported.not_modelled() else "answered"


KINDS = ("unknown", "not_modelled")
FOR_THE_TRACE = "a family for the trace"
PATIENCE = 600
"""Seconds that one trace may take."""


def traced(path: Path) -> str:
    """Whether the command has an answer for a file whose family the formula lacks, or why not."""
    call = [sys.executable, "-m", "memplan", str(path)]
    try:
        ended = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"{FOR_THE_TRACE}, not answered: longer than {PATIENCE} s"
    if ended.returncode in (0, 1):  # 1: a verdict of "no"
        return f"{FOR_THE_TRACE}, which answers"
    return f"{FOR_THE_TRACE}, not answered: {' '.join(ended.stderr.split())[:200]}"


def main(folder: Path, every: int = 0) -> None:
    """Print every file's outcome, how often each was met, and the keys without a rule."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    keys: Counter[str] = Counter()
    met: Counter[str] = Counter()
    lacking = 0
    for path in sorted(path for ending in ("*.yaml", "*.yml") for path in folder.rglob(ending)):
        found = outcome(path, keys)
        if found == FOR_THE_TRACE:
            lacking += 1
            if every and lacking % every == 1 % every:
                found = traced(path)
        met[found.partition(":")[0]] += 1
        print(f"{path.relative_to(folder)}: {found}", flush=True)
    answered = met["answered"] + met["answered, at least"]
    asked = answered + met["refused"]
    print(f"{answered} of {asked} whose model the formula knows are answered without a GPU named")
    for name, count in (*met.most_common(), *keys.most_common()):
        print(f"{count:5} {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
