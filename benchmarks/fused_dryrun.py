"""Unmodified scripts that turn on Liger's kernels, dry-run, and what both engines predict of them.

`python benchmarks/fused_dryrun.py --python CUDA_PYTHON` runs what is not in fused_dryrun.json yet and keeps
it there; `--page > docs/fused-kernels.md` writes the page. CUDA_PYTHON needs torch, transformers, peft, trl,
datasets, triton and liger-kernel; nothing here runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from script_runs import HEADER, Bytes, ScriptCase, bytes_of, command, error, over_stubs, summary, table
from tasks_scripts import HEAD

from memplan.planner.formula.engine import plan, replay_of
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.fused_kernels import DEFAULT, FUSED_KERNELS, LIGER, PATCHED

KEPT = Path(__file__).with_suffix(".json")
GPUS = ("a100-80gb", "rtx-4090")
_TRAINER = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", device_map="auto")
if method != "full":
    model = get_peft_model(model, lora("CAUSAL_LM"))
row = {"input_ids": [3] * tokens, "attention_mask": [1] * tokens, "labels": [3] * tokens}
trainer = Trainer(
    model=model, args=TrainingArguments(**common, use_liger_kernel=True, liger_kernel_config=CONFIG),
    train_dataset=[row] * 64, data_collator=default_data_collator)
trainer.train()
"""
_SFT = """
from trl import SFTConfig, SFTTrainer
trainer = SFTTrainer(
    model=folder, processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
    args=SFTConfig(
        **common, max_length=tokens, use_liger_kernel=True, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"input_ids": [3] * tokens}] * 64), **quantized)
trainer.train()
"""
WHOLE = {"fused_linear_cross_entropy": False, "cross_entropy": True}
SCRIPTS = {
    "Trainer": (_TRAINER.replace("CONFIG", "None"), {"recipe": "hf", "loss": "fused"}, DEFAULT),
    "Trainer, whole logits": (
        _TRAINER.replace("CONFIG", repr(WHOLE)),
        {"recipe": "hf"},
        (*DEFAULT, "cross_entropy"),
    ),
    "TRL SFT": (_SFT, {"recipe": "trl"}, DEFAULT),
}
"""Script, its Setup fields, the kernels that it turns on."""
SHAPES = (
    ("Trainer", "llama-3.2-1b", "full", 2, 512, False),
    ("Trainer", "llama-3.2-1b", "lora", 2, 1024, False),
    ("Trainer", "llama-3.1-8b", "lora", 2, 1024, True),
    ("Trainer", "mistral-7b", "lora", 2, 1024, True),
    ("Trainer", "qwen3-0.6b", "full", 2, 1024, False),
    ("Trainer", "gemma-3-1b", "lora", 2, 1024, False),
    ("Trainer", "gemma-2-2b", "lora", 2, 1024, True),
    ("Trainer", "phi-3-mini", "lora", 2, 1024, False),
    ("Trainer, whole logits", "llama-3.2-1b", "lora", 4, 1024, True),
    ("Trainer, whole logits", "qwen2.5-0.5b", "full", 4, 512, False),
    ("TRL SFT", "llama-3.1-8b", "qlora", 2, 1024, False),
    ("TRL SFT", "qwen3-4b", "lora", 4, 1024, True),
    ("TRL SFT", "qwen2.5-0.5b", "full", 4, 1024, False),
)


class Case(ScriptCase):
    """A script that turns on kernels."""

    def setup(self, fused: bool = True) -> Setup:
        """What the script says, as memplan's options have it; not `fused`: without the kernels."""
        _, recipe, kernels = SCRIPTS[self.script]
        adapters = {} if self.method == "full" else {"targets": ("all-linear",)}
        return resolve({**self.said, **adapters, **recipe, "fused_kernels": kernels if fused else ()})


def cases() -> Iterator[Case]:
    """Every script on two GPUs."""
    yield from (Case(*shape, gpu) for gpu in GPUS for shape in SHAPES)


def dry_run(case: Case, python: str) -> Bytes:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    return over_stubs(case, dict(find(case.model).config), HEAD + SCRIPTS[case.script][0], python)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace, the formula, the formula's replay, and the trace without the kernels."""
    from memplan.planner.trace.engine import trace

    model, setup = find(case.model), case.setup()
    made = {
        "trace": trace(model.config, setup),
        "without": trace(model.config, case.setup(fused=False)),
        "formula": plan(model.spec(), setup),
    }
    found = {name: bytes_of(p.peak) for name, p in made.items()}
    blocks = replay_of(model.spec(), setup)
    assert blocks is not None
    return found | {"blocks": {"allocated_bytes": blocks.step_allocated_bytes}}


PAGE = """# Fused kernels

Written by `python benchmarks/fused_dryrun.py --page > docs/fused-kernels.md`.

`--set fused_kernels=rms_norm,glu,rope` puts Triton kernels in the place of a model's own operations, in both
engines. Training files and scripts turn them on by their own keys: `use_liger_kernel` and
`liger_kernel_config` (transformers, TRL, ms-swift), `enable_liger_kernel` (LLaMA-Factory), `liger_rms_norm`
and the like, `lora_mlp_kernel` and the like (axolotl). axolotl 0.19 turns its adapter kernels on by itself
where a file with an adapter names none of them, and neither `rl`, an 8-bit base, `trust_remote_code` nor
FSDP1 is in the way: so does reading such a file; `--recipe axolotl` alone does not. Liger's loss without
logits is `--loss fused`, apart from these.

| kernel | what it does |
|---|---|
{kernels}

Liger's have rules in {families}; axolotl's in {patched},
for LoRA, QLoRA and rsLoRA, where all layers of a group have an adapter. Mistral's cross-entropy is put where
transformers 5 does not look, so that it moves nothing; the experts of Qwen3-MoE and Mixtral become a grouped
kernel without a rule, so that `glu` is "at least" there. None of these models has a LayerNorm, so that
`layer_norm` moves nothing. In other families a model's own operations are counted, which save more, and a
warning says so.

The trace runs functions of its own that allocate, save and write over what Liger's and axolotl's do, without
a launch; tests/test_fused_kernels.py holds Liger's against liger-kernel 0.8.5 itself, event by event, where
that is installed. The kernels run on a GPU alone: `--device cpu` refuses them.

## Checked by dry runs

Unmodified scripts that turn on Liger's kernels, on PyTorch's CUDA build without a GPU
([dry-run.md](dry-run.md)): torch 2.14, triton 3.9, liger-kernel 0.8.5, transformers 5.24, peft 0.21, trl
1.16, random weights. Peak allocated, and by how much predictions differ from it; *its blocks*: the formula's
own replay through the allocator; *without*: how much more the trace has without the kernels. No run of
axolotl itself is among them.

{header}
{rows}

{runs} runs. Allocated, trace: median {trace_median:.2%}, worst {trace_worst:.2%}; formula: median
{formula_median:.2%}, worst {formula_worst:.2%}. None is a GPU measurement.
"""
COLUMNS = ("script", *HEADER, "without")


def page(kept: dict[str, Any]) -> str:
    """docs/fused-kernels.md of the kept results."""
    rows, judged = [], [case for case in cases() if "formula" in kept.get(case.label, ())]
    for case in judged:
        entry = kept[case.label]
        cells = (
            *case.cells(entry),
            *(f"{error(entry, engine):+.2%}" for engine in ("trace", "formula", "blocks")),
            *(f"{error(entry, engine, 'reserved_bytes'):+.2%}" for engine in ("trace", "formula")),
            f"{error(entry, 'without'):+.1%}",
        )
        rows.append(cells)
    return PAGE.format(
        kernels="\n".join(f"| `{name}` | {what} |" for name, what in FUSED_KERNELS.items()),
        families=", ".join(f"`{name}`" for name in LIGER),
        patched=", ".join(f"`{name}`" for name in PATCHED),
        **table(COLUMNS, rows),
        **summary(kept[case.label] for case in judged),
    )


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page)
