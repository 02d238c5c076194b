"""Unmodified scripts that train models with linear attention where flash-linear-attention is installed,
dry-run, and what the trace predicts of them.

`python benchmarks/mixer_dryrun.py --python CUDA_PYTHON` runs what is not in mixer_dryrun.json yet and keeps
it there; `--page > docs/linear-attention.md` writes the page. CUDA_PYTHON needs torch, transformers, peft,
trl, datasets, bitsandbytes, triton and flash-linear-attention; nothing here runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from fused_dryrun import _SFT, _TRAINER, GPUS
from script_runs import Bytes, ScriptCase, bytes_of, command, error, over_stubs, summary, table
from tasks_scripts import HEAD

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.mixer_kernels import FAMILIES, MIXER_KERNELS

KERNELS = ("fla", "causal-conv1d")
KEPT = Path(__file__).with_suffix(".json")
SCRIPTS = {
    "Trainer": (_TRAINER.replace(", use_liger_kernel=True, liger_kernel_config=CONFIG", ""), "hf"),
    "TRL SFT": (_SFT.replace("use_liger_kernel=True, ", ""), "trl"),
}
"""Script and recipe."""
SMALLER: dict[str, dict[str, Any]] = {
    "qwen3-next-80b-a3b": {"num_hidden_layers": 8, "num_experts": 32},
    "kimi-linear-48b-a3b": {"num_hidden_layers": 8, "num_experts": 8},
    "olmo-hybrid-7b": {"num_hidden_layers": 4},
}
"""What is made smaller in a model's config, so that its weights fit the smaller GPU."""
WITHOUT = ("qwen3.5-0.8b", "qwen3.5-4b", "qwen3.5-9b")
"""Models that are traced without the kernels too, which walks the chunks one by one."""
SHAPES = (
    ("Trainer", "qwen3.5-0.8b", "full", 2, 1024, False),
    ("Trainer", "qwen3.5-0.8b", "lora", 4, 1024, True),
    ("Trainer", "qwen3.5-4b", "lora", 2, 1000, True),
    ("TRL SFT", "qwen3.5-0.8b", "lora", 8, 1024, False),
    ("TRL SFT", "qwen3.5-4b", "qlora", 2, 1024, False),
    ("TRL SFT", "qwen3.5-9b", "qlora", 1, 4096, True),
    ("TRL SFT", "qwen3-next-80b-a3b", "full", 2, 1024, False),
    ("TRL SFT", "kimi-linear-48b-a3b", "full", 2, 1024, True),
    ("TRL SFT", "olmo-hybrid-7b", "full", 1, 1024, False),
)
CONVOLVED = (SHAPES[0], SHAPES[1])


@dataclass(frozen=True, slots=True)
class Case(ScriptCase):
    """A script that may have causal-conv1d beside fla."""

    convolves: bool = False

    @property
    def label(self) -> str:
        """The case's name in the file of results."""
        kept = ("checkpoints" if self.checkpoints else "none") + (" conv" if self.convolves else "")
        return f"{self.script} {self.model} {self.method} b{self.batch} s{self.tokens} {kept} {self.gpu}"

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, made smaller."""
        return {**find(self.model).config, **SMALLER.get(self.model, {})}

    def setup(self, kernels: bool = True) -> Setup:
        """What the script says, as memplan's options have it; not `kernels`: in plain torch."""
        taken = KERNELS if self.convolves else KERNELS[:1]
        adapters = {} if self.method == "full" else {"targets": ("all-linear",)}
        recipe = {"recipe": SCRIPTS[self.script][1], "mixer_kernels": taken if kernels else ()}
        return resolve({**self.said, **adapters, **recipe})


def cases() -> Iterator[Case]:
    """Every script on two GPUs, then with the convolution's package, of which `--python` has another."""
    yield from (Case(*shape, gpu) for gpu in GPUS for shape in SHAPES)
    yield from (Case(*shape, GPUS[0], True) for shape in CONVOLVED)


def dry_run(case: Case, python: str) -> Bytes:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    return over_stubs(case, case.config, HEAD + SCRIPTS[case.script][0], python)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace, and the milliseconds of computing that it took; of some cases also without the
    kernels.
    """
    from memplan.planner.run.extras import require
    from memplan.planner.trace.engine import trace

    require()
    found: dict[str, dict[str, int]] = {}
    slow = case.gpu == GPUS[0] and case.model in WITHOUT and not case.convolves
    for name, kernels in (("trace", True), *((("without", False),) if slow else ())):
        begun = process_time()
        made = trace(case.config, case.setup(kernels))
        took = round(1000 * (process_time() - begun))
        found[name] = {**bytes_of(made.peak), "milliseconds": took}
    return found


PAGE = """# Linear attention

Written by `python benchmarks/mixer_dryrun.py --page > docs/linear-attention.md`.

Qwen3.5, Qwen3-Next, Kimi Linear, Ling 3, OLMo Hybrid and others compute most of their attention as a delta
rule over chunks of 64 tokens, behind a short convolution. transformers 5.24 takes the function of a package
where that is installed, and plain torch otherwise, which is slow and holds other tensors
(integrations/hub_kernels.py `use_kernel_func_from_hub_with_fallback`). `--set mixer_kernels=fla` says that
it is:

| package | what it runs |
|---|---|
{packages}

Model types: {families}.
Every answer about one of them says which was taken, whatever is installed where memplan runs; without the
packages a warning names the setting. On a CPU none of them runs.

| stack | default | read in |
|---|---|---|
| transformers, TRL, a plain loop | none | transformers 5.24 setup.py: no extra installs them |
| axolotl | `fla` | 0.19 pyproject.toml: fla-core 0.5.2 is a dependency, but on aarch64 |
| Unsloth | `fla` | 2026.10.9 models/loader.py: it ships fla's kernels |
| LLaMA-Factory | `fla` with `flash_attn: fa2`, else none | 0.9.5 model/patcher.py |
| ms-swift | none | 4.6 model/models/qwen.py: taken where installed; no dependency |

Without fla axolotl refuses sample packing of Qwen3-Next and Qwen3.5
(monkeypatch/models/qwen3_next/modeling.py, qwen3_5/modeling.py), LLaMA-Factory Qwen3.5 with
fa2; axolotl's READMEs have causal-conv1d uninstalled.

The trace runs functions of its own that allocate, save and free what fla's do, without a launch;
tests/test_mixer_kernels.py holds them against fla-core 0.6.0 itself, event by event, where that is
installed (0.5.2 was equal too; 0.4.1 is not). fla need not be installed. causal-conv1d's are those of
1.7.0: its Python code (causal_conv1d_interface.py, cpp_functions.py) and its C++ code
(csrc/causal_conv1d.cpp), which was read, not run: no compiler for CUDA was there. Where it copies a
gradient a stub did so in the rows marked *conv*, under its own Python code.

Not modeled: the kernels of `use_kernels=True` and its gated norm; the convolution of fla and the repeated
keys of packed rows, which axolotl and LLaMA-Factory bring (the answer is then "at least"); what Unsloth
compiles. A first run on a machine searches among configurations of each kernel, with 256 MiB beside what is
held (triton 3.9 backends/nvidia/driver.py `get_empty_cache_for_benchmark`): of Qwen3.5 0.8B cut to 4 layers
(LoRA, 1 x 256) it reserved 1,994 MiB, later runs 1,684 MiB, the trace 1,686 MiB. That is not in the
prediction, and said.

## Checked by dry runs

Unmodified scripts on PyTorch's CUDA build without a GPU ([dry-run.md](dry-run.md)): torch 2.14, triton 3.9
(each kernel's first configuration, since trying all of them compiles for minutes), flash-linear-attention
0.6.0, transformers 5.24, peft 0.21, trl 1.16, bitsandbytes 0.50, random weights. Models with a number of
layers are made smaller. Peak allocated, and by how much the trace differs from it; *without*: how much more
the trace has in plain torch.

{header}
{rows}

{runs} runs. Allocated: median {trace_median:.3%}, worst {trace_worst:.3%}. None is a GPU measurement.

## How long a trace takes

Seconds of one processor for a trace, libraries imported. Qwen3.5 27B (QLoRA, 1 x 2,048) took 6.9 with fla and
26.3 in plain torch, 9B (QLoRA, 1 x 8,192) 5.9 with fla. Below, that with fla ran first: QLoRA's has the
import of bitsandbytes in it, seconds of it.

| model | with fla | in plain torch |
|---|---|---|
{times}
"""
COLUMNS = (
    *("script", "model", "method", "micro-batch x tokens", "checkpoints", "GPU"),
    *("dry run, MiB", "trace", "reserved", "without"),
)


def page(kept: dict[str, Any]) -> str:
    """docs/linear-attention.md of the kept results."""
    judged = [case for case in cases() if "trace" in kept.get(case.label, ())]
    rows, times = [], []
    for case in judged:
        entry = kept[case.label]
        layers = SMALLER.get(case.model, {}).get("num_hidden_layers")
        script, model, *others = case.cells(entry)
        cells = (
            script + (", *conv*" if case.convolves else ""),
            model + (f", {layers} layers" if layers else ""),
            *others,
            f"{error(entry, 'trace'):+.3%}",
            f"{error(entry, 'trace', 'reserved_bytes'):+.2%}",
            f"{error(entry, 'without'):+.1%}" if "without" in entry else "",
        )
        rows.append(cells)
        if "without" in entry:
            seconds = (f"{entry[name]['milliseconds'] / 1000:.1f}" for name in ("trace", "without"))
            times.append((f"{case.model}, {case.method}, {case.batch} x {case.tokens}", *seconds))
    return PAGE.format(
        packages="\n".join(
            f"| `{name}` | {what} |" for name, what in MIXER_KERNELS.items() if name in KERNELS
        ),
        families=", ".join(f"`{name}`" for name, looked_for in FAMILIES.items() if "fla" in looked_for),
        times="\n".join(f"| {' | '.join(each)} |" for each in times),
        **table(COLUMNS, rows),
        **summary((kept[case.label] for case in judged), ("trace",)),
    )


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page, ("trace",))
