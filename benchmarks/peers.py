"""Other predictors, asked the same questions as memplan on one measured set: error of allocated memory, and seconds, side by side.

    python benchmarks/peers.py PATH... [--venvs DIR]     PATH: records, as memplan validate takes them

Each peer lives in its own virtual environment under DIR (made and filled from the package index where it is missing) and is asked offline.
A question that a peer cannot be asked (no quantisation, no such method) is a dash, never a zero. Where a peer adds a fixed overhead for
context and safety, that part is left out, since what is compared is allocated memory; its own words for it are in its driver below.
fitcheck-llm's published T4 runs are in its own calibration set. torch's MemTracker is not asked: it cannot hold 4-bit weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planner.models import find  # noqa: E402
from profiler.record import Measurement  # noqa: E402
from validate.collect import predicted, read_records  # noqa: E402
from validate.lab import Missing  # noqa: E402

DEFAULT_VENVS = Path(tempfile.gettempdir()) / "memplan-peers"
SECONDS = 120


@dataclass(frozen=True)
class Peer:
    """One predictor: what pip installs, and the program that asks it. The driver reads a question and prints bytes, or null."""

    name: str
    package: str
    driver: str


PEERS = (
    Peer("vramcalc", "vramcalc==0.1.2", """
import json, subprocess, sys, os
q = json.load(sys.stdin)
if q["quant_type"] != "none" or q["method"] not in ("full", "lora"):
    print("null"); sys.exit()
dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[q["weight_dtype"]]
attention = "eager" if q["attention"] == "eager" else "sdpa"
words = [os.path.join(os.path.dirname(sys.executable), "vramcalc"), "estimate", q["folder"], "--train", "--dtype", dtype,
         "--batch", str(q["micro_batch"]), "--seq", str(q["sequence_length"]), "--attn", attention,
         "--precision", "amp" if q["autocast"] != "none" else "pure", "--json"]
words += ["--lora", str(q["rank"])] if q["method"] == "lora" else []
words += ["--grad-checkpoint"] if q["checkpointing"] != "none" else []
found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["estimate"]
print(found["total"] - found["overhead"])
"""),
    Peer("fitcheck-llm", "fitcheck-llm==0.3.1", """
import json, sys
from unittest.mock import patch
q = json.load(sys.stdin)
if q["method"] not in ("full", "lora", "qlora") or q["quant_type"] not in ("none", "nf4", "int8"):
    print("null"); sys.exit()
from fitcheck import config_parser as parser
from fitcheck.estimator import TrainingConfig, _compute_components
config = patch.object(parser, "hf_hub_download", lambda *a, **k: q["folder"] + "/config.json")
with config, patch.object(parser, "_reported_param_count", lambda *a: None):
    model = parser.fetch_model_config("org/model")
dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[q["weight_dtype"]]
targets = {} if q["targets"] == ["all-linear"] else {"lora_targets": q["targets"]}
training = TrainingConfig(precision=dtype, quantization=q["quant_type"], double_quant=q["double_quant"], batch_size=q["micro_batch"],
                          seq_len=q["sequence_length"], lora_rank=None if q["method"] == "full" else q["rank"],
                          grad_checkpoint=q["checkpointing"] != "none", flash_attn=q["attention"] != "eager", **targets)
found = _compute_components(model, training, None)
print(round((found.total_mib - found.overhead_mib) * 2**20))
"""),
    Peer("canifinetune", "canifinetune==0.4.1", """
import json, os, subprocess, sys
q = json.load(sys.stdin)
if q["method"] not in ("full", "lora", "qlora"):
    print("null"); sys.exit()
dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[q["weight_dtype"]]
quantised = {"none": "none", "nf4": "nf4_double_quant" if q["double_quant"] else "nf4", "int8": "int8"}.get(q["quant_type"], "none")
scope = "all_linear" if q["targets"] == ["all-linear"] or len(q["targets"]) > 4 else "attention"
words = [os.path.join(os.path.dirname(sys.executable), "canifinetune"), "estimate", "--model", q["folder"], "--gpu-vram-gb", "80",
         "--method", q["method"], "--seq-len", str(q["sequence_length"]), "--micro-batch-size", str(q["micro_batch"]),
         "--lora-rank", str(q["rank"]), "--target-scope", scope, "--quantization", quantised, "--base-dtype", dtype,
         "--optimizer", "adamw_torch", "--attn", "eager" if q["attention"] == "eager" else "sdpa",
         "--gradient-checkpointing" if q["checkpointing"] != "none" else "--no-gradient-checkpointing", "--offline", "--json"]
found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["memory"]
total = found["total_estimated_gb"] - found["cuda_overhead_gb"] - found["safety_margin_gb"]
print(round(total * 2**30))
"""),
    Peer("ftuneai", "ftuneai==0.4.1", """
import json, sys
q = json.load(sys.stdin)
if q["method"] not in ("full", "lora", "qlora"):
    print("null"); sys.exit()
import ftuneai.loader as loader
from ftuneai import Estimator
from ftuneai.core.models import ModelSpec
c = q["config"]
heads = c["num_attention_heads"]
loader.load_models()["this"] = ModelSpec("this", q["parameters"], c["hidden_size"], c["num_hidden_layers"], heads,
    c.get("num_key_value_heads") or heads, c["intermediate_size"], c["vocab_size"], c.get("max_position_embeddings", 2048))
target = "all_linear" if q["targets"] == ["all-linear"] else "attention_all" if len(q["targets"]) > 2 else "attention"
for lora_target in (target, "attention"):
    try:
        e = Estimator("this", method=q["method"], quantization="4bit" if q["quant_type"] == "nf4" else "none",
                      batch_size=q["micro_batch"], seq_length=q["sequence_length"], lora_rank=q["rank"], lora_target=lora_target,
                      gradient_checkpointing=q["checkpointing"] != "none", flash_attention=q["attention"] != "eager")
        break
    except ValueError:
        continue
found = e.estimate_memory()
print(round((found.total_gb - found.overhead_gb) * 2**30))
"""),
)  # fmt: skip


def question(measurement: Measurement, folder: Path) -> dict[str, Any]:
    """What a peer is told: the Setup's fields, the model's config and the folder that holds it."""
    config = dict(measurement.model["config"])
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {**measurement.setup.to_document(), "config": config, "folder": str(folder), "parameters": find(config).spec().parameters}


def interpreter(peer: Peer, venvs: Path) -> Path:
    """The Python of the peer's own environment, made where it is missing."""
    home = venvs / peer.name
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", peer.package], check=True)
    return python


def ask(peer: Peer, python: Path, asked: Mapping[str, Any]) -> tuple[int | None, float, str]:
    """(bytes or None, seconds, why not)."""
    start = time.perf_counter()
    environment = {"HF_HUB_OFFLINE": "1", "PATH": str(python.parent)}
    done = subprocess.run(
        [str(python), "-c", peer.driver], input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        return None, seconds, (done.stderr.strip().splitlines() or ["no message"])[-1]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return (None, seconds, "cannot be asked") if answer is None else (round(answer), seconds, "")


def own(engine: str, measurement: Measurement) -> tuple[int | None, float, str]:
    start = time.perf_counter()
    try:
        found = predicted(measurement, engine)
    except Missing as missing:
        return None, time.perf_counter() - start, str(missing)
    return found.peaks["allocated"], time.perf_counter() - start, ""


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--venvs", type=Path, default=DEFAULT_VENVS)
    parser.add_argument("--engines", default="formula,trace")
    arguments = parser.parse_args()
    measured = [m for m in read_records(arguments.paths) if m.outcome == "ok" and m.step_peak is not None]
    results: dict[str, list[tuple[float | None, float]]] = {}
    reasons: dict[str, str] = {}
    for measurement in measured:
        truth = measurement.step_peak.allocated_bytes if measurement.step_peak else 0
        answers = {f"memplan {engine}": own(engine, measurement) for engine in arguments.engines.split(",") if engine}
        with tempfile.TemporaryDirectory() as folder:
            asked = question(measurement, Path(folder))
            for peer in PEERS:
                answers[peer.package] = ask(peer, interpreter(peer, arguments.venvs), asked)
        for name, (nbytes, seconds, why) in answers.items():
            results.setdefault(name, []).append((None if nbytes is None else (nbytes - truth) / truth, seconds))
            if why:
                reasons[name] = why
    print(f"{len(measured)} measured runs, allocated peak of the step\n")
    print(f"{'predictor':24}{'asked':>7}{'median':>10}{'worst':>10}{'bias':>10}{'seconds':>9}   what it could not say")
    for name, rows in results.items():
        errors = [error for error, _ in rows if error is not None]
        sizes = [abs(error) for error in errors]
        median, worst = (statistics.median(sizes), max(sizes)) if sizes else (None, None)
        bias = statistics.fmean(errors) if errors else None
        seconds = statistics.median(seconds for _, seconds in rows)
        numbers = f"{cell(median, '10.2%'):>10}{cell(worst, '10.2%'):>10}{cell(bias, '+10.2%'):>10}{seconds:>9.2f}"
        print(f"{name:24}{len(errors):>7}{numbers}   {reasons.get(name, '')[:80]}")


if __name__ == "__main__":
    main()
