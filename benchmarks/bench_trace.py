"""The trace's time and memory: whole processes, as ratios to merely importing torch, transformers, peft and
bitsandbytes.

    python benchmarks/bench_trace.py [ROUNDS] [--memtracker]

The commands take turns, so that a busy machine slows all; the ratio of medians is what counts, of processor
time where others run too. `--memtracker` adds torch's own MemTracker on Llama-2-7B (full fine-tuning,
bfloat16, 1 x 2048 tokens, fake tensors on the CPU: the same build and step) against its trace. Targets:
llama-7b qlora <= 1.5, a 126-layer 405B lora <= 2, DeepSeek-V3 lora <= 3, peak memory under 2 GB; MemTracker
at least ten times slower than the trace (imports left out of both), the same peak within 1 %. What differs:
the host's step counters, four bytes to a tensor.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTS = "import torch, transformers, peft, bitsandbytes, transformers.models.llama.modeling_llama"
TRACE = """
import json, time
from memplan.planner.trace.engine import trace
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
{imports}
started = time.process_time()
found = trace(find({model!r}).config, resolve({fields!r}))
seconds, layers = time.process_time() - started, found.extra["traced_layers"]
print(json.dumps({{"seconds": seconds, "peak": found.step_peak.allocated_bytes, "layers": layers}}))
"""
CASES = {  # name -> (model, fields of the setup, the ratio that is the target)
    "llama-7b qlora": ("llama-7b", {"method": "qlora"}, 1.5),
    "llama-3.1-405b lora": ("llama-3.1-405b", {"method": "lora"}, 2.0),
    "deepseek-v3 lora": ("deepseek-v3", {"method": "lora"}, 3.0),
}
FULL = {
    "method": "full",
    "recipe": "raw",
    "weight_dtype": "bfloat16",
    "optimizer": "adamw_torch",
    "micro_batch": 1,
    "sequence_length": 2048,
    "device": "cpu",
}
MEMTRACKER = """
import json, time, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from memplan.planner.trace import step
from memplan.planner.run.build import build, outline
from memplan.planner.run.model import quiet
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
config, setup = find("llama-2-7b").config, resolve({fields!r})
started = time.process_time()
with quiet():
    model = outline(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(config, setup, "cpu", model=model)
        tracker = MemTracker()
        tracker.track_external(built.model, built.optimizer, *built.batch.values())
        with tracker:
            step.run(built, step.Unwatched(), 0)
            tracker.reset_mod_stats()
            step.run(built, step.Unwatched(), 1)
peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
found = {{getattr(kind, "name", str(kind)): nbytes for kind, nbytes in peak.items()}}
print(json.dumps({{"seconds": time.process_time() - started, "peak": found["Total"], "components": found}}))
"""


def run(program: str) -> tuple[float, float, int, dict[str, object]]:
    """(wall seconds, processor seconds, peak resident bytes, what it printed) of one fresh process."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit {process.returncode} of {program}")
    lines = output.strip().splitlines()
    return (
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        json.loads(lines[-1]) if lines else {},
    )


def traced(model: str, fields: dict[str, object]) -> str:
    return TRACE.format(imports=IMPORTS, model=model, fields=fields)


def ratios(rounds: int) -> None:
    programs = {
        "imports": IMPORTS,
        **{name: traced(model, fields) for name, (model, fields, _) in CASES.items()},
    }
    found: dict[str, list[tuple[float, float, int, dict[str, object]]]] = {name: [] for name in programs}
    run(IMPORTS)  # fills the file cache
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(run(program))
    base, base_cpu = (statistics.median(run[place] for run in found["imports"]) for place in (0, 1))
    for name, runs in found.items():
        wall, cpu = (statistics.median(run[place] for run in runs) for place in (0, 1))
        inside = f", {runs[-1][3]['layers']} layers ran" if runs[-1][3] else ""
        target = f" (target {CASES[name][2]})" if name in CASES else ""
        times = f"{wall:6.2f} s {wall / base:5.2f} x, processor {cpu:6.2f} s {cpu / base_cpu:5.2f} x"
        print(f"{name:22} {times}{target}  peak {max(run[2] for run in runs) / 1e9:.2f} GB{inside}")


def against_memtracker() -> None:
    _, _, _, ours = run(traced("llama-2-7b", FULL))
    _, _, _, theirs = run(MEMTRACKER.format(fields=FULL))
    (our_time, our_peak), (their_time, their_peak) = (
        (float(str(s["seconds"])), int(str(s["peak"]))) for s in (ours, theirs)
    )
    print(
        f"Llama-2-7B full: trace {our_time:.2f} s, MemTracker {their_time:.2f} s: "
        f"{their_time / our_time:.1f} times"
    )
    print(f"  peaks {our_peak:,} and {their_peak:,} bytes: {100 * (our_peak / their_peak - 1):+.4f} %")
    print(f"  MemTracker's components: {theirs['components']}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    ratios(numbers[0] if numbers else 3)
    if "--memtracker" in sys.argv:
        against_memtracker()
