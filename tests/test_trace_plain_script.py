"""A training script as people write it, with no line of `memplan.planner.run.build` or `step` and no hook of
ours: watched by the same observer, it allocates and frees what the trace says, event by event.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import bitsandbytes as bnb
import peft
import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoConfig, AutoModelForCausalLM

from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.run.renamed import renamed
from memplan.planner.trace import patches
from memplan.planner.trace.device.target import target_of
from memplan.planner.trace.events.log import Log
from memplan.planner.trace.events.record import STEPS, record, watching
from memplan.planner.trace.kernels import Kernels
from memplan.planner.trace.observe import Observer

pytestmark = pytest.mark.trace

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": False,
        "architectures": ["LlamaForCausalLM"],
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 128,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 1024,
        "architectures": ["GPT2LMHeadModel"],
    },
    "mixtral": {
        "model_type": "mixtral",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 512,
        "architectures": ["MixtralForCausalLM"],
    },
}
FULL = {"method": "full", "weight_dtype": "float32"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full, fp32: efficient attention saves its seeds": ("llama", {**FULL, "gpu": "a100-40gb"}),
    "full, bf16, flash attention": (
        "llama",
        {**FULL, "weight_dtype": "bfloat16", "gpu": "a100-40gb", "optimizer": "adamw_torch"},
    ),
    "full, bf16, cuDNN's attention": (
        "llama",
        {**FULL, "weight_dtype": "bfloat16", "gpu": "h200", "zero_grad": "after_step"},
    ),
    "full, autocast, fused AdamW, checkpoints": (
        "gpt2",
        {**FULL, "autocast": "bfloat16", "checkpointing": "non_reentrant"},
    ),
    "lora, fp16 on a T4, eager": (
        "llama",
        {"method": "lora", "weight_dtype": "float16", "gpu": "t4", "attention": "eager"},
    ),
    "lora, autocast, dropout, padding": (
        "llama",
        {"method": "lora", "autocast": "bfloat16", "dropout": 0.1, "padded": True},
    ),
    "lora of experts' attention, reentrant": (
        "mixtral",
        {"method": "lora", "targets": ("q_proj", "v_proj"), "checkpointing": "reentrant"},
    ),
    "qlora without checkpoints, fp32 attention": ("llama", {"method": "qlora", "gpu": "h200"}),
    "qlora, 8-bit AdamW, checkpoints": (
        "llama",
        {"method": "qlora", "optimizer": "adamw_bnb_8bit", "checkpointing": "non_reentrant"},
    ),
}


def setup_of(fields: dict[str, Any]) -> Setup:
    return resolve(
        {
            "recipe": "raw",
            "load": "random",
            "micro_batch": 2,
            "sequence_length": 64,
            "gpu": "a100-40gb",
            **fields,
        }
    )


def script(config: dict[str, Any], s: Setup, observer: Observer) -> None:
    """What a person writes for this setup, with `meta` for the device; `observer` only hears when a moment
    begins.
    """
    with _disable_current_modes(), torch.device("meta"):
        dtype = getattr(torch, s.weight_dtype)
        whole = AutoConfig.for_model(**config, use_cache=False)
        model: Any = AutoModelForCausalLM.from_config(whole, dtype=dtype, attn_implementation=s.attention)
        if s.method == "qlora":
            quantized_linears(model, dtype)
    placeholders = {
        id(t): t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())
    }
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = torch.empty(
                module.out_features, module.in_features, dtype=module.compute_dtype, device="meta"
            )
            module.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=module
            )._quantize(torch.device("meta"))
        for store in (module._parameters, module._buffers):
            for key, old in store.items():
                if old is not None and id(old) in placeholders:
                    if id(old) not in made:
                        new = torch.empty_like(old)
                        made[id(old)] = (
                            torch.nn.Parameter(new) if isinstance(old, torch.nn.Parameter) else new
                        )
                    store[key] = made[id(old)]
    made.clear()
    placeholders.clear()
    new = weight = old = None  # or the last of them would outlive its cast
    if s.method == "qlora":
        model.is_loaded_in_4bit = model.is_quantized = True
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if s.method != "full":
        targets = "all-linear" if s.targets == ("all-linear",) else list(s.targets)
        lora = peft.LoraConfig(
            r=s.rank,
            lora_alpha=s.alpha,
            lora_dropout=s.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        model = peft.get_peft_model(model, lora)
    if s.checkpointing != "none":
        renamed(model, "activation_checkpointing_enable")({"use_reentrant": s.checkpointing == "reentrant"})
        if s.method != "full":
            model.enable_input_require_grads()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if s.optimizer == "adamw_bnb_8bit":
        optimizer: Any = bnb.optim.AdamW8bit(parameters, lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=1e-5, foreach=s.optimizer_mode == "foreach", fused=s.optimizer_mode == "fused"
        )
    ids = torch.randint(0, 512, (s.micro_batch, s.sequence_length), device="meta")
    batch = {"input_ids": ids, "labels": ids}
    if s.padded:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][-1, 56:] = 0
    outputs = None
    for index in range(STEPS):
        outputs = None
        if s.zero_grad == "before_forward":
            optimizer.zero_grad()
        region = (
            nullcontext()
            if s.autocast == "none"
            else torch.autocast("meta", dtype=getattr(torch, s.autocast))
        )
        with observer.announce("forward", index), region:
            outputs = model(**batch)
        with observer.announce("backward", index):
            outputs.loss.backward()
        with observer.announce("optimizer_step", index):
            optimizer.step()
        if s.zero_grad == "after_step":
            optimizer.zero_grad()
    observer.freeze()


def quantized_linears(model: torch.nn.Module, dtype: torch.dtype) -> None:
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and "lm_head" not in name:
            parent, _, leaf = name.rpartition(".")
            new = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
            setattr(model.get_submodule(parent), leaf, new)


def watched(config: dict[str, Any], setup: Setup) -> Log:
    target = target_of(setup)
    observer = Observer(Kernels(target))
    observer.answers = patches.answers(setup, observer)
    with watching(observer, setup, target):
        script(config, setup, observer)
    return observer.log


def steps_of(log: Log) -> list[tuple[str, int]]:
    """(kind, bytes) of every event from the first step's forward to the last step's optimizer step."""
    steps = [mark for mark in log.marks if mark.step >= 0]
    return [(kind, log.storages[sid].nbytes) for kind, sid, _ in log.events[steps[0].begin : steps[-1].end]]


@pytest.mark.parametrize("case", CASES)
def test_a_plain_script_allocates_what_the_trace_says(case: str) -> None:
    model, fields = CASES[case]
    setup = setup_of(fields)
    theirs, ours = (
        watched(CONFIGS[model], setup),
        record(CONFIGS[model], setup, target_of(setup), full=True)[0],
    )
    assert len(steps_of(theirs)) > 300
    assert steps_of(theirs) == steps_of(ours)
