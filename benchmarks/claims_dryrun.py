"""Dry runs of the setups that claims.toml asks for (`check = "dry_run"`): torch's CUDA code without a GPU.

    python benchmarks/claims_dryrun.py --python cuda-env/bin/python

One line a setup in validate/published_data/claim_dry_runs.jsonl: `allocated` is the step's peak, `reserved`
the whole run's, both in bytes. What is there already is not run again; what no claim asks for is dropped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.validate.claims import load
from memplan.validate.claimsfile import ClaimsFile, Part
from memplan.validate.others import DRY_RUNS, dry_key

Case = tuple[str, str, dict[str, Any]]


def cases(file: ClaimsFile) -> Iterator[Case]:
    """Model, GPU and Setup fields of every dry run that a claim rests on."""
    for claim in file.claims:
        for part in claim.parts:
            if part.check == "dry_run":
                yield from _of_part(part)


def _of_part(part: Part) -> Iterator[Case]:
    setup = dict(part.setup)
    over = part.over
    key = over.key.removeprefix("setup.") if over is not None else ""
    for value in over.values if over is not None else ("",):
        model = value if key == "model" else part.model
        gpu = value if key == "gpu" else part.gpu
        bound = setup if key in ("", "model", "gpu") else {**setup, key: value}
        yield model, gpu, bound
        if "per_setup" in part.args:
            yield model, gpu, {**bound, **part.args["per_setup"]}


def dry_run(case: Case, file: ClaimsFile, python: str) -> dict[str, Any]:
    """One line: what the step of `case` allocated and reserved, or how it ended."""
    model, gpu, setup = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "setup.json").write_text(json.dumps({**setup, "gpu": gpu}))
        target = model
        if model in file.models:
            (folder / "config.json").write_text(json.dumps(dict(file.models[model])))
            target = name
        words = [sys.executable, "-m", "memplan", "profile", target, "--setup", str(folder / "setup.json")]
        words += ["--device", "dry", "--python", python, "--steps", "1", "--json"]
        ended = subprocess.run(words, capture_output=True, text=True)
    if not ended.stdout.lstrip().startswith("{"):
        raise SystemExit(f"{model} {setup}: {ended.stderr.strip()[-400:]}")
    found = json.loads(ended.stdout)
    versions = {key: found["environment"]["versions"][key] for key in ("torch", "transformers", "peft")}
    row = {"model": model, "gpu": gpu, "setup": setup, "versions": versions, "outcome": found["outcome"]}
    if found["outcome"] == "ok":
        row["allocated"] = found["step_peak"]["allocated_bytes"]
        row["reserved"] = found["peak"]["reserved_bytes"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="an interpreter with a CUDA build of torch")
    arguments = parser.parse_args()
    file = load()
    lines = DRY_RUNS.read_text(encoding="utf-8").splitlines() if DRY_RUNS.is_file() else []
    kept = {dry_key(row["model"], row["gpu"], row["setup"]): row for row in map(json.loads, lines)}
    wanted = {dry_key(*case): case for case in cases(file)}
    kept = {key: row for key, row in kept.items() if key in wanted}
    for key, case in wanted.items():
        if key not in kept:
            kept[key] = dry_run(case, file, arguments.python)
            print(key, kept[key].get("allocated", kept[key]["outcome"]), flush=True)
        DRY_RUNS.write_text("".join(json.dumps(row) + "\n" for row in kept.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
