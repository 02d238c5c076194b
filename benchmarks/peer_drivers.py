"""PEERS: the predictors of others, as a table: what pip installs, and the program that asks one its question
(see peers.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """One predictor: what pip installs, and the program that asks it. The driver reads a question from its
    standard input and prints [bytes allocated, bytes with its own overhead for context and safety], or null
    (or why, in words) where it cannot be asked.

    `torch`: it runs models, so its environment sees the libraries of the one that runs this script. `note`:
    how it was asked. `seconds`: the processor time after which nobody waits any longer.
    """

    name: str
    package: str
    driver: str
    note: str = ""
    torch: bool = False
    seconds: int = 120


PEERS = (
    Peer(
        "vramcalc",
        "vramcalc==0.1.2",
        """
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
print(json.dumps([found["total"] - found["overhead"], found["total"]]))
""",
    ),
    Peer(
        "fitcheck-llm",
        "fitcheck-llm==0.3.1",
        """
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
print(json.dumps([round((found.total_mib - found.overhead_mib) * 2**20), round(found.total_mib * 2**20)]))
""",
    ),
    Peer(
        "canifinetune",
        "canifinetune==0.4.1",
        """
import json, os, subprocess, sys
q = json.load(sys.stdin)
if q["method"] not in ("full", "lora", "qlora"):
    print("null"); sys.exit()
dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[q["weight_dtype"]]
quantized = {"none": "none", "nf4": "nf4_double_quant" if q["double_quant"] else "nf4", "int8": "int8"}.get(q["quant_type"], "none")
scope = "all_linear" if q["targets"] == ["all-linear"] or len(q["targets"]) > 4 else "attention"
words = [os.path.join(os.path.dirname(sys.executable), "canifinetune"), "estimate", "--model", q["folder"], "--gpu-vram-gb", "80",
         "--method", q["method"], "--seq-len", str(q["sequence_length"]), "--micro-batch-size", str(q["micro_batch"]),
         "--lora-rank", str(q["rank"]), "--target-scope", scope, "--quantization", quantized, "--base-dtype", dtype,
         "--optimizer", "adamw_torch", "--attn", "eager" if q["attention"] == "eager" else "sdpa",
         "--gradient-checkpointing" if q["checkpointing"] != "none" else "--no-gradient-checkpointing", "--offline", "--json"]
found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["memory"]
total = found["total_estimated_gb"] - found["cuda_overhead_gb"] - found["safety_margin_gb"]
print(json.dumps([round(total * 2**30), round(found["total_estimated_gb"] * 2**30)]))
""",
    ),
    Peer(
        "ftuneai",
        "ftuneai==0.4.1",
        """
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
print(json.dumps([round((found.total_gb - found.overhead_gb) * 2**30), round(found.total_gb * 2**30)]))
""",
    ),
    Peer(
        "gpu-estimator",
        "gpu-estimator==0.2.0",
        """
import json, sys
q = json.load(sys.stdin)
if q["method"] != "full" or q["quant_type"] != "none":
    print("null"); sys.exit()
from gpu_estimator import GPUEstimator
dtype = {"bfloat16": "fp16", "float16": "fp16", "float32": "fp32"}[q["weight_dtype"]]
found = GPUEstimator().estimate(model_params=q["parameters"], batch_size=q["micro_batch"], sequence_length=q["sequence_length"],
                                precision=dtype, optimizer="adamw", gradient_checkpointing=q["checkpointing"] != "none")
print(json.dumps([round(found.total_memory_gb * 2**30)] * 2))
""",
        "full fine-tuning alone",
        torch=True,
    ),
    Peer(
        "accelerate",
        "accelerate==1.15.0",
        """
import json, sys
q = json.load(sys.stdin)
if q["method"] != "full" or q["quant_type"] != "none":
    print("null"); sys.exit()
import torch
from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModelForCausalLM
with init_empty_weights():
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(q["folder"]), dtype=torch.float32)
total, _ = calculate_maximum_sizes(model)
mixed = {"bfloat16": "bf16", "float16": "fp16"}.get(q["autocast"])
steps = estimate_training_usage(total, mixed, "no") if mixed else {"step": total * 4}
print(json.dumps([max(steps.values())] * 2))
""",
        "its `estimate-memory`: full fine-tuning alone, no activations",
        torch=True,
    ),
    Peer(
        "torch-kitsune",
        "torch-kitsune==0.7.0",
        """
import json, sys
q = json.load(sys.stdin)
if q["method"] not in ("lora", "qlora") or q["quant_type"] not in ("none", "nf4"):
    print("null"); sys.exit()
import torch
from kitsune.predict import LoRAConfig, estimate_lora_memory
from transformers import AutoConfig, AutoModelForCausalLM
dtype = getattr(torch, q["weight_dtype"])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(q["folder"]), dtype=dtype)
targets = ("_proj",) if q["targets"] == ["all-linear"] else tuple(q["targets"])
config = LoRAConfig(rank=q["rank"], target_modules=targets, use_qlora=q["quant_type"] == "nf4")
found = estimate_lora_memory(model, (q["sequence_length"],), q["micro_batch"], dtype, config)
print(json.dumps([found.total_bytes - found.overhead_bytes, found.total_bytes]))
""",
        "no word of checkpointing; its sample input is floating point, so that models of tokens fall back "
        "on its "
        "per-layer formula",
        torch=True,
    ),
    Peer(
        "MemTracker",
        "",
        """
import json, sys
q = json.load(sys.stdin)
if q["quant_type"] != "none" or q["parameters"] > 2e8:
    print(json.dumps("it cannot hold 4-bit weights" if q["quant_type"] != "none" else "over 200 M parameters: not waited for")); sys.exit()
import torch
from types import SimpleNamespace
from unittest.mock import patch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from memplan.planner.trace import step
from memplan.planner.run.build import build, outline
from memplan.planner.run.model import quiet
from memplan.planner.inputs.setup import resolve
fields = {**q["asked"], "device": "cpu", "gpu": None}
fields["attention"] = "eager" if q["attention"] == "eager" else "sdpa"
setup = resolve(fields)
with quiet():
    model = outline(q["config"], setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with patch.object(torch.nn.Module, "to", lambda module, *a, **k: module):  # fake parameters cannot be swapped; all is on the CPU
            built = build(q["config"], setup, "cpu", model=model)
        tracker = MemTracker()
        tracker.track_external(built.model, built.optimizer, *built.batch.values())
        def where_trained(name):  # MemTracker hooks frozen parameters too
            known = getattr(torch.Tensor, name)
            return patch.object(torch.Tensor, name, lambda t, f: known(t, f) if t.requires_grad else SimpleNamespace(remove=lambda: None))
        with where_trained("register_hook"), where_trained("register_post_accumulate_grad_hook"), tracker:
            step.run(built, step.Unwatched(), 0)
            tracker.reset_mod_stats()
            step.run(built, step.Unwatched(), 1)
peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
total = next(nbytes for kind, nbytes in peak.items() if getattr(kind, "name", str(kind)) == "Total")
print(json.dumps([total, total]))
""",
        "torch's own, on fake CPU tensors with memplan's build and step; two of its refusals patched away "
        "(frozen "
        "parameters, fake parameters that move); only models under 200 million parameters, since even those "
        "take it minutes",
        torch=True,
        seconds=900,
    ),
)
