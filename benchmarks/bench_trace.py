"""How long a trace takes, as a ratio to merely importing the libraries, and against torch's own MemTracker.

`python benchmarks/bench_trace.py`: each case in a fresh process, which times the imports first and the trace after. `--memtracker` adds
torch's tracker on Llama-2-7B, full fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

CASES = (
    ("llama-7b", "qlora", 1.5),
    ("llama-7b", "full", None),
    ("llama-3.1-405b", "lora", 2.0),
    ("deepseek-v3", "lora", 3.0),
)
DEEPSEEK_V3 = {"model_type": "deepseek_v3"}  # transformers' defaults are the 671B model's sizes

ONE = """
import json, resource, sys, time
start = time.perf_counter()
import torch, transformers, peft, bitsandbytes
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto
imports = time.perf_counter() - start
torch.set_num_threads(1)
model, method, deepseek = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
from planner.live.trace import trace
from planner.models import find
from planner.setup import resolve
config = deepseek if model == "deepseek-v3" else find(model).config
start = time.perf_counter()
found = trace(config, resolve({"method": method}), model)
took = time.perf_counter() - start
ram = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("RESULT", json.dumps({"imports": imports, "trace": took, "peak": found.step_peak.allocated_bytes,
                            "layers": found.extra["traced_layers"], "ram": ram}))
"""

MEMTRACKER = """
import json, sys, time
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoConfig, AutoModelForCausalLM
from planner.models import find
torch.set_num_threads(1)
config = dict(find("llama-2-7b").config)
aside = ("model_type", "architectures", "torch_dtype", "dtype")
made = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k not in aside})
made.use_cache = False
start = time.perf_counter()
with FakeTensorMode():
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    ids = torch.randint(0, 100, (1, 2048))
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for step in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                tracker.reset_mod_stats()
took = time.perf_counter() - start
snapshot = tracker.get_tracker_snapshot("peak")
print("RESULT", json.dumps({"seconds": took, "peak": max(sum(v for k, v in s.items() if k == "Total") for s in snapshot.values())}))
"""


def run(code: str, *arguments: str) -> dict[str, float]:
    """What a fresh interpreter prints after RESULT."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line[7:])
            return found
    raise SystemExit(done.stderr[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memtracker", action="store_true", help="also run torch's MemTracker (about a minute)")
    arguments = parser.parse_args()
    for model, method, target in CASES:
        found = run(ONE, model, method, json.dumps(DEEPSEEK_V3))
        ratio = (found["imports"] + found["trace"]) / found["imports"]
        goal = f"target {target:.1f}" if target else ""
        print(f"{model:16} {method:6} imports {found['imports']:5.1f} s, trace {found['trace']:5.1f} s, together {ratio:4.2f} x {goal:10} "
              f"RAM {found['ram'] / 2**30:4.2f} GiB, layers run {found['layers']}")  # fmt: skip
    if arguments.memtracker:
        ours = run(ONE, "llama-2-7b", "full", json.dumps(DEEPSEEK_V3))
        theirs = run(MEMTRACKER)
        print(f"MemTracker {theirs['seconds']:.1f} s, peak {theirs['peak'] / 2**30:.2f} GiB; trace {ours['trace']:.1f} s "
              f"({theirs['seconds'] / ours['trace']:.0f} x faster), peak {ours['peak'] / 2**30:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
