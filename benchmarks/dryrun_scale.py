"""How long a dry run of a large model takes, and how much host memory: `python benchmarks/dryrun_scale.py
--python CUDA_PYTHON [CASE ...]`.

Unmodified scripts of tests/dryrun_scripts over a folder that has a catalog config, a tokenizer and 64 rows:
`memplan dry-run --random-weights` from its start to its end. Seconds are the wall clock's, and those of a CPU
that all its processes took together; host memory is the largest process's (wait4).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "dryrun_scripts"
sys.path.insert(0, str(ROOT / "tests"))

from dryrun_hub import layout  # noqa: E402

from memplan.planner.inputs.models import find  # noqa: E402
from memplan.planner.tables.units import GIB  # noqa: E402


@dataclass(frozen=True, slots=True)
class Case:
    """A script's words, `{folder}` the data's; the model and GPU; the most that it should take."""

    model: str
    gpu: str
    words: tuple[str, ...]
    seconds: float
    host_bytes: float | None = None


RANK = ("ranks.py", "fsdp2", "{folder}/model")


def adapters(*words: str) -> Case:
    """A script that trains LoRA of an 8B model on one GPU."""
    return Case("llama-3.1-8b", "h100-80gb", words, 30, 6e9)


CASES = {
    "sft": adapters("sft.py", "{folder}"),
    "dpo": adapters("dpo.py", "{folder}"),
    "reward": adapters("reward.py", "{folder}", "lora"),
    "grpo": adapters("grpo.py", "{folder}", "lora"),
    "trainer": adapters("lora_trainer.py", "{folder}"),
    "loop": adapters("lora_loop.py", "{folder}"),
    "accelerate": adapters("lora_loop.py", "{folder}", "accelerate"),
    "70b": Case("llama-3-70b", "h200", (*RANK, "16"), 60),
    "405b": Case("llama-3.1-405b", "h200", (*RANK, "64"), 180),
}


def run(case: Case, python: str) -> None:
    """Dry-run a case once and print what it took."""
    with tempfile.TemporaryDirectory() as place:
        folder = layout(Path(place) / "hub", dict(find(case.model).config))
        script, *rest = (word.format(folder=folder) for word in case.words)
        command = ["dry-run", "--gpu", case.gpu, "--python", python, "--random-weights", "--json", "--"]
        words = [*command, python, str(SCRIPTS / script), *rest]
        answer = Path(place) / "answer.json"
        start = time.monotonic()
        with answer.open("w") as out:
            process = subprocess.Popen([sys.executable, "-m", "memplan", *words], stdout=out, cwd=place)
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if os.waitstatus_to_exitcode(status) not in (0, 1):
            raise SystemExit(os.waitstatus_to_exitcode(status))
        found = json.loads(answer.read_text())["peak"]
    host = used.ru_maxrss * 1024
    kept = seconds <= case.seconds and (case.host_bytes is None or host <= case.host_bytes)
    print(
        f"{case.model} {' '.join(case.words)} on {case.gpu}: {seconds:.1f} s (at most {case.seconds:.0f}), "
        f"{used.ru_utime + used.ru_stime:.1f} s of a CPU, {host / GIB:.2f} GiB of host memory, "
        f"{found['allocated_bytes'] / GIB:.2f} GiB allocated, "
        f"{found['reserved_bytes'] / GIB:.2f} GiB reserved{'' if kept else '  <- beyond its target'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--python", required=True, help="an interpreter with a CUDA build of torch")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.case) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}; expected {', '.join(CASES)}")
    for name in arguments.case or CASES:
        run(CASES[name], arguments.python)


if __name__ == "__main__":
    main()
