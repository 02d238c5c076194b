"""Unmodified scripts that train state-space and hybrid models where mamba-ssm and causal-conv1d are
installed, dry-run, and what the trace predicts of them.

`python benchmarks/state_space_dryrun.py --python CUDA_PYTHON` runs what is not in state_space_dryrun.json yet
and keeps it there; `--page > docs/state-spaces.md` writes the page. CUDA_PYTHON needs torch, transformers,
peft, trl, datasets, bitsandbytes, triton, einops, and the Python files of mamba-ssm and causal-conv1d
(MAMBA_SKIP_CUDA_BUILD, CAUSAL_CONV1D_SKIP_CUDA_BUILD); nothing here runs on a GPU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_dryrun import _SFT, _TRAINER, GPUS
from script_runs import bytes_of, command
from tasks_scripts import HEAD

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.gpus import find_gpu
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

KEPT = Path(__file__).with_suffix(".json")
BOTH = ("causal-conv1d", "mamba-ssm")
BEFORE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).with_name("state_space_stubs"))!r})
import causal_conv1d, mamba_ssm
from triton.runtime.autotuner import Autotuner
for name, module in list(sys.modules.items()):
    for tuner in vars(module).values() if name.startswith("mamba_ssm.") else ():
        if isinstance(tuner, Autotuner):
            tuner.configs = tuner.configs[:2]
"""
"""What the extensions' stubs need; and two variants of each kernel, so that few are compiled."""
SCRIPTS = {
    "Trainer": (_TRAINER.replace(", use_liger_kernel=True, liger_kernel_config=CONFIG", ""), "hf"),
    "TRL SFT": (_SFT.replace("use_liger_kernel=True, ", ""), "trl"),
}
"""Script and recipe."""
TARGETS = ("in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
"""PEFT refuses adapters on the out_proj of most of these models, and so all-linear."""
SMALLER: dict[str, dict[str, Any]] = {
    "jamba-v0.1": {"num_hidden_layers": 8, "num_experts": 4, "vocab_size": 32768},
    "mamba-2.8b": {"num_hidden_layers": 16},
}
"""What is made smaller in a model's config, so that it fits the smaller GPU."""
SHAPES = (
    ("Trainer", "falcon-h1-0.5b", "full", 2, 1024, False),
    ("Trainer", "falcon-h1-1.5b", "lora", 2, 1000, True),
    ("TRL SFT", "lfm2-1.2b", "qlora", 2, 1024, False),
    ("Trainer", "granite-4.0-h-1b", "lora", 2, 1024, True),
    ("Trainer", "nemotron-3-nano-4b", "lora", 1, 2048, True),
    ("Trainer", "jamba-v0.1", "lora", 1, 1024, True),
    ("Trainer", "mamba-2.8b", "full", 1, 1024, False),
)
"""TRL 1.16 reads num_experts of whatever config has experts, and so fails on Granite's."""


@dataclass(frozen=True, slots=True)
class Case:
    """One script on one GPU."""

    script: str
    model: str
    method: str
    batch: int
    tokens: int
    checkpoints: bool
    gpu: str

    @property
    def label(self) -> str:
        """The case's name in the file of results."""
        kept = "checkpoints" if self.checkpoints else "none"
        return f"{self.script} {self.model} {self.method} b{self.batch} s{self.tokens} {kept} {self.gpu}"

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, made smaller."""
        return {**find(self.model).config, **SMALLER.get(self.model, {})}

    def setup(self, kernels: tuple[str, ...] = BOTH) -> Setup:
        """What the script says, as memplan's options have it."""
        adapters = {"rank": 16, "alpha": 32, "dropout": 0.05, "targets": TARGETS}
        return resolve(
            {
                "method": self.method,
                "recipe": SCRIPTS[self.script][1],
                "micro_batch": self.batch,
                "sequence_length": self.tokens,
                "checkpointing": "non_reentrant" if self.checkpoints else "none",
                "weight_dtype": "bfloat16",
                "compute_dtype": "bfloat16",
                "gpu": self.gpu,
                "torch": "2.14",
                "mixer_kernels": kernels,
                **({} if self.method == "full" else adapters),
            }
        )


def cases() -> Iterator[Case]:
    """Every script on two GPUs."""
    yield from (Case(*shape, gpu) for shape in SHAPES for gpu in GPUS)


def dry_run(case: Case, python: str) -> dict[str, int]:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(case.config))
        script = SCRIPTS[case.script][0].replace('lora("CAUSAL_LM")', f'lora("CAUSAL_LM", {list(TARGETS)})')
        (folder / "train.py").write_text(BEFORE + HEAD + script)
        sizes = tuple(map(str, (case.batch, case.tokens, int(case.checkpoints))))
        words = ("python", str(folder / "train.py"), name, case.method, *sizes)
        request = Rehearsal(words, find_gpu(case.gpu), python=python, random_weights=True)
        found = rehearse(request).observation
    return bytes_of(found)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace."""
    from memplan.planner.trace.engine import trace

    return {"trace": bytes_of(trace(case.config, case.setup()).peak)}


PAGE = "{header}\n{rows}\n"


def page(kept: dict[str, Any]) -> str:
    """docs/state-spaces.md of the kept results."""
    return ""


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page, ("trace",))
