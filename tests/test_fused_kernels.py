"""Liger's kernels: the trace's own functions against the library's, the formula against the trace, and the
keys that turn them on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

import memplan
from memplan.planner.importers.document import parse
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.fused_kernels import DEFAULT, FUSED_KERNELS, LIGER, LORA

for library in ("torch", "transformers", "peft"):
    pytest.importorskip(library)
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "formula_vs_trace.py"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
    "pad_token_id": 0,
}
PLAIN = {"method": "full", "recipe": "raw", "attention": "sdpa-math"}
ADAPTED = {"method": "lora", "recipe": "hf", "checkpointing": "non_reentrant", "padded": True}
WITH_ROW = [name for name in LIGER if name not in ("mixtral", "qwen3_moe")]


def setup_of(**fields: Any) -> Setup:
    sizes = {"micro_batch": 2, "sequence_length": 128, "gpu": "a100-80gb"}
    return resolve({**sizes, "fused_kernels": tuple(FUSED_KERNELS), **fields})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formula_vs_trace", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUICK = ("llama", "phi3", "gemma3_text")


@pytest.mark.parametrize(
    "model_type", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in WITH_ROW]
)
@pytest.mark.parametrize("said", [PLAIN, ADAPTED], ids=["full", "lora"])
def test_the_formula_has_the_traces_tensors(
    model_type: str, said: dict[str, Any], script: ModuleType
) -> None:
    """Every component of every moment of the step within 0.1 % of the moment's peak."""
    found = script.compare({"model_type": model_type, **SMALL}, setup_of(**said))
    moments = {name: m["apart"] for name, m in found["moments"].items() if name in script.STEP_MOMENTS}
    assert moments
    for apart in moments.values():
        assert abs(apart["total"]) <= 1e-3 and apart["worst"] <= 1e-3, (moments, found["rows"])


SAVING = {"loss": "fused", "dropout": 0.05, "targets": ("all-linear",), "recipe": "axolotl"}


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"method": "lora", **SAVING}, id="lora"),
        pytest.param({"method": "qlora", "checkpointing": "non_reentrant", **SAVING}, id="qlora"),
    ],
)
def test_adapter_kernels_hold_the_same_in_both_engines(said: dict[str, Any], script: ModuleType) -> None:
    """axolotl's three, and less than without them; of an MLP whose adapters are some of its layers', none."""
    config = {"model_type": "qwen3", **SMALL}
    setup = setup_of(**said, fused_kernels=LORA)
    found = script.compare(config, setup)
    for name, moment in found["moments"].items():
        if name in script.STEP_MOMENTS:
            assert abs(moment["apart"]["total"]) <= 1e-3 >= moment["apart"]["worst"], found["rows"]
    fused, plain = (memplan.plan(config, each) for each in (setup, setup.with_(fused_kernels=())))
    assert fused.moment("backward").allocated_bytes < plain.moment("backward").allocated_bytes
    some = setup.with_(targets=("gate_proj",))
    fused, plain = (memplan.plan(config, each) for each in (some, some.with_(fused_kernels=())))
    assert fused.peak == plain.peak


@contextmanager
def ligers_own(model_type: str) -> Iterator[None]:
    """The trace with Liger's functions in the place of ours; a launch does nothing."""
    import torch
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from triton.runtime.jit import JITFunction

    from memplan.planner.run import fused_kernels

    def install(base: Any, setup: Setup) -> None:
        on = {name: name in setup.fused_kernels for name in FUSED_KERNELS}
        glu, loss = on.pop("glu"), {"fused_linear_cross_entropy": False}
        _apply_liger_kernel_to_instance(model=base, swiglu=glu, geglu=glu, **on, **loss)

    name = model_type.removesuffix("_text")
    code = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    with ExitStack() as stack:
        for each in (
            patch.dict(vars(code)),
            patch.dict(vars(torch.nn.functional)),
            patch.object(fused_kernels, "install", install),
            patch.object(fused_kernels, "functions", lambda base, setup: nullcontext()),
            patch.object(JITFunction, "__getitem__", lambda self, grid: lambda *args, **kwargs: None),
        ):
            stack.enter_context(each)
        yield


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None,
    reason="liger_kernel is not here: it is no part of the dev extra",
)
@pytest.mark.parametrize("model_type", WITH_ROW)
@pytest.mark.parametrize("said", [PLAIN, ADAPTED], ids=["full", "lora"])
def test_our_functions_are_ligers_event_by_event(
    model_type: str, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every storage has the library's size, birth and death; Liger takes one multiprocessor where it sees no
    GPU.
    """
    from memplan.planner.run import fused_kernels
    from memplan.planner.trace.engine import recorded

    monkeypatch.setattr(fused_kernels, "multiprocessors", lambda gpu: 1)
    config, setup = {"model_type": model_type, **SMALL}, setup_of(**said)
    ours = recorded(config, setup, full=True)[0]
    with ligers_own(model_type):
        theirs = recorded(config, setup, full=True)[0]
    one, other = ([(s.nbytes, s.born, s.died) for s in log.storages] for log in (ours, theirs))
    assert one == other


def test_each_kernel_saves_memory() -> None:
    """Without checkpointing, where what is saved decides; rotary embedding saves nothing either way."""
    config = {"model_type": "llama", **SMALL}

    def forward(*kernels: str) -> int:
        setup = setup_of(method="full", recipe="hf", fused_kernels=kernels)
        return memplan.plan(config, setup).moment("forward").allocated_bytes

    alone, tokens = forward(), 2 * 128
    assert alone - forward("glu") >= 4 * tokens * 768 * 2  # a layer's activation output
    assert alone - forward("rms_norm") >= 8 * tokens * 256 * 4  # a norm's fp32 copy of its input
    assert forward("rope") <= alone and forward("cross_entropy") < alone


def test_what_has_no_rule_is_said() -> None:
    """Experts: a lower bound. A family without a row: its own operations, and a warning."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    made = memplan.plan({"model_type": "qwen3_moe", **SMALL, **experts}, setup_of(method="lora"))
    assert any("glu kernel in a qwen3_moe model" in text for text in made.not_modelled)
    made = memplan.plan({"model_type": "olmo", **SMALL}, setup_of(method="lora"))
    assert any("errs on the high side" in text and "olmo" in text for text in made.warnings)
    with pytest.raises(UsageError, match="run on a GPU alone"):
        setup_of(device="cpu", gpu=None)
    with pytest.raises(UsageError, match="expected names of kernels"):
        setup_of(fused_kernels="swiglu")


@pytest.mark.parametrize(
    ("stack", "text", "loss", "kernels"),
    [
        ("axolotl", "liger_rms_norm: true\nliger_glu_activation: true", "full", ("rms_norm", "glu")),
        ("axolotl", "liger_swiglu: true\nliger_rope: false", "full", ("glu",)),
        ("axolotl", "liger_fused_linear_cross_entropy: true", "fused", ()),
        ("axolotl", "adapter: lora", "full", LORA),
        ("axolotl", "adapter: lora\nlora_mlp_kernel: true", "full", ("lora_mlp",)),
        ("axolotl", "adapter: lora\nload_in_8bit: true", "full", ()),
        ("axolotl", "adapter: lora\ntrust_remote_code: true", "full", ()),
        ("trl", "use_liger_kernel: true", "chunked", DEFAULT),
        ("trl", "use_liger_kernel: true\nliger_kernel_config: {rope: false, swiglu: false}", "chunked", None),
        ("llamafactory", "enable_liger_kernel: true", "fused", DEFAULT),
        ("llamafactory", "enable_liger_kernel: false", "full", ()),
    ],
)
def test_files_turn_them_on(stack: str, text: str, loss: str, kernels: tuple[str, ...] | None) -> None:
    first = f"{'base_model' if stack == 'axolotl' else 'model_name_or_path'}: llama-7b"
    found = read_document(parse(f"{first}\n{text}\n", "a.yaml"), FORMATS[stack], "a.yaml")
    setup = resolve(imported=found.fields)
    wanted = ("rms_norm", "layer_norm") if kernels is None else kernels
    assert (setup.loss, setup.fused_kernels) == (loss, wanted)
    assert not found.not_modelled()


def test_the_page_is_what_dry_runs_showed() -> None:
    """docs/fused-kernels.md is generated; every dry run is met within 0.5 % by the trace and 2 % by the
    formula.
    """
    root = Path(__file__).parents[1]
    done = [sys.executable, str(root / "benchmarks" / "fused_dryrun.py"), "--page"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    page = subprocess.run(done, capture_output=True, text=True, check=True, env=env).stdout
    told = (root / "docs" / "fused-kernels.md").read_text(encoding="utf-8")
    assert told == page, "run: python benchmarks/fused_dryrun.py --page > docs/fused-kernels.md"
    kept = json.loads((root / "benchmarks" / "fused_dryrun.json").read_text(encoding="utf-8"))
    assert len(kept) >= 26
    for entry in kept.values():
        seen = entry["dry_run"]["allocated_bytes"]
        assert abs(entry["trace"]["allocated_bytes"] / seen - 1) <= 0.005
        assert abs(entry["formula"]["allocated_bytes"] / seen - 1) <= 0.02
