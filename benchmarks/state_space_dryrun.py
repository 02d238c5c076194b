"""Unmodified scripts that train state-space and hybrid models where mamba-ssm and causal-conv1d are
installed, dry-run, and what the trace predicts of them.

`python benchmarks/state_space_dryrun.py --python CUDA_PYTHON` runs what is not in state_space_dryrun.json yet
and keeps it there; `--page > docs/state-spaces.md` writes the page. CUDA_PYTHON needs torch, transformers,
peft, trl, datasets, bitsandbytes, triton, einops, and the Python files of mamba-ssm and causal-conv1d
(MAMBA_SKIP_CUDA_BUILD, CAUSAL_CONV1D_SKIP_CUDA_BUILD); nothing here runs on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fused_dryrun import _SFT, _TRAINER, GPUS
from script_runs import HEADER, Bytes, ScriptCase, bytes_of, command, error, over_stubs, summary, table
from tasks_scripts import HEAD

from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.mixer_kernels import LOOPED, STATE_SPACES

KEPT = Path(__file__).with_suffix(".json")
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


class Case(ScriptCase):
    """A script whose model may be made smaller."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, made smaller."""
        return {**find(self.model).config, **SMALLER.get(self.model, {})}

    @property
    def setup(self) -> Setup:
        """What the script says, as memplan's options have it."""
        adapters = {} if self.method == "full" else {"targets": TARGETS}
        recipe = {"recipe": SCRIPTS[self.script][1], "mixer_kernels": STATE_SPACES}
        return resolve({**self.said, **adapters, **recipe})


def cases() -> Iterator[Case]:
    """Every script on two GPUs."""
    yield from (Case(*shape, gpu) for shape in SHAPES for gpu in GPUS)


def dry_run(case: Case, python: str) -> Bytes:
    """Peak allocated and reserved bytes of the script, over stub libraries."""
    script = SCRIPTS[case.script][0].replace('lora("CAUSAL_LM")', f'lora("CAUSAL_LM", {list(TARGETS)})')
    return over_stubs(case, case.config, BEFORE + HEAD + script, python)


def predictions(case: Case) -> dict[str, dict[str, int]]:
    """The same of the trace's steps: random weights are not loaded, nor experts stacked."""
    from memplan.planner.trace.engine import trace

    return {"trace": bytes_of(trace(case.config, case.setup).step_peak)}


PAGE = """# State spaces

Written by `python benchmarks/state_space_dryrun.py --page > docs/state-spaces.md`.

Mamba, Falcon-Mamba, Jamba and Zamba (Mamba 1), Mamba 2, Bamba, Falcon-H1, Granite 4 hybrid, Nemotron-H and
Zamba 2 (Mamba 2) run their scans by mamba-ssm's kernels where that is installed, and these, LFM2 and LFM3
their convolutions by causal-conv1d's; else transformers runs plain torch, which keeps far more. What is
installed nobody can see from a config: plain torch is the default, as a fresh `pip install transformers` has
it, and a warning says so. `--set mixer_kernels=mamba-ssm,causal-conv1d` counts the kernels.

* The trace runs functions of its own that allocate and save what mamba-ssm 2.3.2.post1's and causal-conv1d
  1.7.0's do, in their order, without a launch; tests/test_state_spaces.py holds them against the libraries'
  own Python, event by event, where these are installed. Of two kinds of kernels the C++ was **read, not
  run**: Mamba 1's scan (csrc/selective_scan/selective_scan.cpp) and the convolution
  (csrc/causal_conv1d.cpp); of the Triton kernels of Mamba 2 nothing is ours.
* Triton times the variants of a kernel at its first launch, and has 256 MiB for that: with small models they
  decide the peak. They are counted; a process that keeps what was chosen (`TRITON_CACHE_AUTOTUNING=1`) has
  none.
* mamba-ssm's fused mixer multiplies by `out_proj.weight` itself, and computes that weight's gradient whether
  it trains or not. An adapter on it has no effect (PEFT refuses it in most of these models, and so
  `all-linear`). A quantized one fails, as it does here: axolotl 0.19 leaves it unquantized in Falcon-H1 and
  runs Nemotron-H's mixer part by part, and so does `--recipe axolotl`.
* Plain torch's scan of Mamba 1 goes through the tokens one by one. Of more tokens than a trace runs in
  minutes (Jamba {jamba:,}, Zamba {zamba:,}, Mamba {mamba:,}) the kernels' is counted, as a lower bound:
  `AT LEAST`. `--engine trace` runs it all the same.
* Not modeled: deterministic algorithms, packed rows told apart by `seq_idx`, Mamba 3.

## Checked by dry runs

Unmodified scripts on PyTorch's CUDA build without a GPU ([dry-run.md](dry-run.md)), with mamba-ssm's and
causal-conv1d's own Python and Triton kernels, of which two variants each are compiled, over stubs of the two
CUDA extensions that allocate what their C++ does: torch 2.14, triton 3.9, transformers 5.24, peft 0.21, trl
1.16, random weights. Jamba is cut to 8 layers and 4 experts, Mamba to 16 layers. Peak allocated, and by how
much the trace differs from it, and from what is reserved.

{header}
{rows}

{runs} runs. Allocated: median {trace_median:.2%}, worst {trace_worst:.2%}. None is a GPU measurement.
"""
COLUMNS = ("script", *HEADER[:7], "reserved")


def page(kept: dict[str, Any]) -> str:
    """docs/state-spaces.md of the kept results."""
    rows, judged = [], [case for case in cases() if "trace" in kept.get(case.label, ())]
    for case in judged:
        entry = kept[case.label]
        cells = (
            *case.cells(entry),
            f"{error(entry, 'trace'):+.2%}",
            f"{error(entry, 'trace', 'reserved_bytes'):+.2%}",
        )
        rows.append(cells)
    return PAGE.format(
        **LOOPED,
        **table(COLUMNS, rows),
        **summary((kept[case.label] for case in judged), ("trace",)),
    )


if __name__ == "__main__":
    command(__doc__, KEPT, cases, dry_run, predictions, page, ("trace",))
