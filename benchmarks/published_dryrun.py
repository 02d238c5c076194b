"""Published runs of one card dry-run: `python benchmarks/published_dryrun.py --python CUDA_PYTHON [FILE]`.

Each run of FILE (default ../shared/published/t4_lora_qlora.json: model, method, dtypes, rank, batch,
`measured_mib` per moment) is a plain training script, run over stub libraries with random weights. Keys and
values are expanded before the call, as transformers did when those runs were made. Differences are dry run
minus measured, in MiB. Nothing here runs on a GPU. `--record validate/published_data/dry_runs.jsonl` adds
what was seen to the rows that `memplan validate --published --update` scores both engines against, apart
from GPU runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.planner.inputs.models import find
from memplan.planner.tables.gpus import find_gpu
from memplan.planner.tables.units import MIB
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

DEFAULT = Path(__file__).resolve().parents[1].parent / "shared" / "published" / "t4_lora_qlora.json"
SCRIPT = '''
import json, sys
import torch, transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
import transformers.integrations.sdpa_attention as sdpa_attention
sdpa_attention.use_gqa_in_sdpa = lambda *a, **k: False
run = json.loads(sys.argv[2])
dtype = getattr(torch, run["weight_dtype"])
attention = "eager" if run["attention"] == "eager" else "sdpa"
options = {"dtype": dtype, "attn_implementation": attention}
if run["method"] == "qlora":
    options["device_map"] = {"": 0}
    options["quantization_config"] = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=bool(run["double_quant"]))
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)
model.to("cuda")
model.config.use_cache = False
how = {"use_reentrant": False}
if run["method"] == "qlora":
    model = prepare_model_for_kbit_training(model, True, how)
else:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    model.enable_input_require_grads()
adapter = LoraConfig(
    r=run["rank"], lora_alpha=run["lora_alpha"], lora_dropout=run["lora_dropout"],
    target_modules=run["targets"], task_type="CAUSAL_LM")
model = get_peft_model(model, adapter)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
def step():
    ids = torch.randint(0, model.config.vocab_size, (run["micro_batch"], run["sequence"]), device="cuda")
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    del out  # outputs live until the step ends
for _ in range(3):
    step()
'''  # fmt: skip
MOMENTS = {
    "load": "after_load",
    "forward": "forward_peak",
    "backward": "backward_peak",
    "optimizer_step": "optimizer_peak",
}


def dry_run(run: Mapping[str, Any], python: str) -> dict[str, float]:
    """The names of `measured_mib` as the dry run sees them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(find(run["model"]).config))
        (folder / "train.py").write_text(SCRIPT)
        words = ("python", str(folder / "train.py"), name, json.dumps(run))
        found = rehearse(Rehearsal(words, find_gpu("t4"), python=python, random_weights=True)).observation
    seen = {
        MOMENTS[moment.name]: moment.allocated_bytes / MIB
        for moment in found.moments
        if moment.name in MOMENTS
    }
    peaks = {"peak_allocated": found.allocated_bytes / MIB, "peak_reserved": found.reserved_bytes / MIB}
    return {**seen, **peaks}


def row_of(run: Mapping[str, Any], found: Mapping[str, float], python: str) -> dict[str, Any]:
    """A line of dry_runs.jsonl: the published run's id, the versions that ran, and bytes."""
    short = run["model"].split("/")[1].removesuffix("-Chat-v1.0").lower()
    attention = "eager" if run["attention"] == "eager" else "sdpa"
    name = f"fitcheck-{short}-{run['method']}-{attention}-b{run['micro_batch']}-s{run['sequence']}"
    ask = "import importlib.metadata as m; print(m.version('torch'), m.version('transformers'))"
    versions = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    return {
        "id": name,
        "torch": versions[0],
        "transformers": versions[1],
        "allocated": round(found["peak_allocated"] * MIB),
        "reserved": round(found["peak_reserved"] * MIB),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--python", required=True, help="an interpreter with a CUDA build of torch")
    parser.add_argument("--record", type=Path, help="the file that a line is added to for each run")
    parser.add_argument("--only", default="", help="runs whose label contains this")
    arguments = parser.parse_args()
    for run in json.loads(arguments.file.read_text()):
        attention = "eager" if run["attention"] == "eager" else "sdpa"
        label = f"{run['model'].split('/')[1][:14]:14} {run['method']:5} {attention:5} "
        label += f"b{run['micro_batch']} s{run['sequence']}"
        if arguments.only not in label:
            continue
        found, measured = dry_run(run, arguments.python), run["measured_mib"]
        cells = [
            f"{name} {found[name]:8.1f} ({found[name] - measured[name]:+7.2f})"
            for name in measured
            if name in found
        ]
        print(label, "  ".join(cells), flush=True)
        if arguments.record is not None:
            with arguments.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row_of(run, found, arguments.python)) + "\n")


if __name__ == "__main__":
    main()
