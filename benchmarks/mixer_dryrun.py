"""Unmodified scripts that train models with linear attention where flash-linear-attention is installed,
dry-run, and what the trace predicts of them.

`python benchmarks/mixer_dryrun.py --python CUDA_PYTHON` runs what is not in mixer_dryrun.json yet and keeps it
there; `--page > docs/linear-attention.md` writes the page. CUDA_PYTHON needs torch, transformers, peft, trl,
datasets, bitsandbytes, triton and flash-linear-attention; nothing here runs on a GPU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from fused_dryrun import _SFT, _TRAINER, GPUS
from script_runs import bytes_of, command, error, table
from tasks_scripts import HEAD

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.gpus import find_gpu
from memplan.profiler.dryrun.rehearse import Rehearsal, rehearse

KEPT = Path(__file__).with_suffix(".json")
SCRIPTS = {
    "Trainer": (_TRAINER.replace(", use_liger_kernel=True, liger_kernel_config=CONFIG", ""), "hf"),
    "TRL SFT": (_SFT.replace("use_liger_kernel=True, ", ""), "trl"),
}
"""Script and recipe."""
SMALLER: dict[str, dict[str, Any]] = {
    "qwen3-next-80b-a3b": {"num_hidden_layers": 8, "num_experts": 32},
    "kimi-linear-48b-a3b": {"num_hidden_layers": 8, "num_experts": 16},
    "olmo-hybrid-7b": {"num_hidden_layers": 8},
}
"""What is made smaller in a model's config, so that its weights fit the smaller GPU."""
WITHOUT = ("qwen3.5-0.8b", "qwen3.5-4b", "olmo-hybrid-7b")
"""Models that are traced without the kernels too, which walks the chunks one by one."""
SHAPES = (
    ("Trainer", "qwen3.5-0.8b", "full", 2, 1024, False),
    ("Trainer", "qwen3.5-0.8b", "lora", 4, 1024, True),
    ("Trainer", "qwen3.5-4b", "lora", 2, 1000, True),
    ("TRL SFT", "qwen3.5-0.8b", "lora", 8, 1024, False),
    ("TRL SFT", "qwen3.5-4b", "qlora", 2, 1024, False),
    ("TRL SFT", "qwen3.5-9b", "qlora", 1, 4096, True),
    ("TRL SFT", "qwen3-next-80b-a3b", "lora", 2, 1024, False),
    ("TRL SFT", "kimi-linear-48b-a3b", "lora", 2, 1024, True),
    ("TRL SFT", "olmo-hybrid-7b", "full", 1, 1024, False),
)


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

    def setup(self, kernels: tuple[str, ...] = ("fla",)) -> Setup:
        """What the script says, as memplan's options have it."""
        adapters = {"rank": 16, "alpha": 32, "dropout": 0.05, "targets": ("all-linear",)}
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
    yield from (Case(*shape, gpu) for gpu in GPUS for shape in SHAPES)


def dry_run(case: Case, python: str) -> dict[str, int]:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(case.config))
        (folder / "train.py").write_text(HEAD + SCRIPTS[case.script][0])
        sizes = tuple(map(str, (case.batch, case.tokens, int(case.checkpoints))))
        words = ("python", str(folder / "train.py"), name, case.method, *sizes)
        request = Rehearsal(words, find_gpu(case.gpu), python=python, random_weights=True)
        found = rehearse(request).observation
    return bytes_of(found)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace, and the milliseconds of computing that it took; of some cases also without the
    kernels.
    """
    from memplan.planner.run.extras import require
    from memplan.planner.trace.engine import trace

    require()
    found: dict[str, dict[str, int]] = {}
    slow = case.gpu == GPUS[0] and case.tokens <= 1024 and case.model in WITHOUT
    for name, kernels in (("trace", ("fla",)), *((("without", ()),) if slow else ())):
        begun = process_time()
        made = trace(case.config, case.setup(kernels))
        took = round(1000 * (process_time() - begun))
        found[name] = {**bytes_of(made.peak), "milliseconds": took}
    return found


PAGE = """# Linear attention

Written by `python benchmarks/mixer_dryrun.py --page > docs/linear-attention.md`.

{rows}
"""


def page(kept: dict[str, Any]) -> str:
    """docs/linear-attention.md of the kept results."""
    rows = []
    for case in cases():
        if "trace" not in kept.get(case.label, ()):
            continue
        entry = kept[case.label]
        rows.append((case.label, f"{error(entry, 'trace'):+.3%}"))
    return PAGE.format(**table(("a", "b"), rows))


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page, ("trace",))
