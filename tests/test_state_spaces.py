"""State spaces by mamba-ssm's and causal-conv1d's kernels: the trace's own functions against the libraries'
code, what the kernels save, and what is refused.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.mixer_kernels import FAMILIES

for library in ("torch", "transformers", "peft"):
    pytest.importorskip(library)
BOTH = ("mamba-ssm", "causal-conv1d")
SMALL = {"hidden_size": 64, "vocab_size": 512, "num_hidden_layers": 2, "pad_token_id": 0}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}
SCANS = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "falcon_h1": {**ATTENTION, **SCANS, "mamba_d_ssm": 128, "mamba_chunk_size": 64},
    "falcon_h1 with a norm": {
        **ATTENTION,
        **SCANS,
        "mamba_d_ssm": 128,
        "mamba_chunk_size": 64,
        "mamba_rms_norm": True,
        "mamba_n_groups": 2,
    },
    "bamba": {**ATTENTION, **SCANS, "mamba_chunk_size": 64, "attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 64},
    "falcon_mamba": {"state_size": 8},
    "mamba": {"state_size": 8},
    "jamba": {
        **ATTENTION,
        "mamba_d_state": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 4,
        "num_experts": 2,
    },
    "lfm2": {**ATTENTION, "layer_types": ["conv", "full_attention"]},
}
FULL = {"method": "full", "recipe": "raw"}
ADAPTED = {"method": "lora", "recipe": "hf", "checkpointing": "non_reentrant", "targets": ("in_proj",)}


def config_of(name: str) -> dict[str, Any]:
    return {"model_type": name.partition(" ")[0], **SMALL, **CONFIGS[name]}


def setup_of(**fields: Any) -> Setup:
    sizes = {"micro_batch": 2, "sequence_length": 160, "gpu": "a100-80gb"}
    return resolve({**sizes, "mixer_kernels": BOTH, **fields})


@contextmanager
def libraries_own() -> Iterator[None]:
    """The trace with the libraries' functions in the place of ours: a launch does nothing but what triton's
    autotuner does before it, and causal-conv1d's copies a gradient as its C++ does.
    """
    import causal_conv1d.cpp_functions as convolution
    import torch
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from memplan.planner.run import mixer_kernels
    from memplan.planner.run.causal_convolution import _launched
    from memplan.planner.run.launches import CACHE_BYTES

    def timed(self: Any, *_: Any, config: Any, **__: Any) -> list[float]:
        if config is self.configs[0]:
            torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device="meta")
        return [1.0] * 3

    def convolved(**given: Any) -> None:
        _launched(given["x"], given["dout"])

    a100 = SimpleNamespace(multi_processor_count=108)
    with ExitStack() as stack:
        for each in (
            patch.object(mixer_kernels, "functions", lambda *_: nullcontext()),
            patch.object(torch.cuda, "device", lambda _: nullcontext()),
            patch.object(torch.cuda, "get_device_properties", lambda _: a100),
            patch.object(Autotuner, "_bench", timed),
            patch.object(JITFunction, "run", lambda *_, **__: None),
            patch.object(convolution, "_causal_conv1d_fwd_cpp", lambda **_: None),
            patch.object(convolution, "_causal_conv1d_bwd_cpp", convolved),
        ):
            stack.enter_context(each)
        for tuner in tuners():
            stack.enter_context(patch.object(tuner, "cache", {}))
        yield


def tuners() -> Iterator[Any]:
    import sys

    from triton.runtime.autotuner import Autotuner

    for name, module in list(sys.modules.items()):
        if name.startswith("mamba_ssm."):
            yield from {id(x): x for x in vars(module).values() if isinstance(x, Autotuner)}.values()


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None,
    reason="mamba_ssm is not here: it is no part of the dev extra",
)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("said", [FULL, ADAPTED], ids=["full", "lora"])
def test_our_functions_are_the_libraries_event_by_event(name: str, said: dict[str, Any]) -> None:
    """Every storage has the library's size, birth and death."""
    from memplan.planner.trace.engine import recorded
    from memplan.planner.trace.events.layer_extrapolation import canonical

    config, setup = config_of(name), setup_of(**said)
    ours = recorded(config, setup, full=True)[0]
    with libraries_own():
        theirs = recorded(config, setup, full=True)[0]
    assert canonical(ours.events) == canonical(theirs.events)


def test_kernels_keep_less_and_time_themselves_first() -> None:
    """Of the forward less; a first launch clears a cache of 256 MiB, which the second step does not."""
    from memplan.planner.run.launches import CACHE_BYTES
    from memplan.planner.trace.engine import recorded, trace

    config, setup = config_of("falcon_h1"), setup_of(**FULL)
    fused, plain = (trace(config, each) for each in (setup, setup.with_(mixer_kernels=())))
    kept = [each.moment("forward").components["activations"] for each in (fused, plain)]
    assert kept[0] < kept[1] / 2
    log = recorded(config, setup)[0]
    timed = [storage.born for storage in log.storages if storage.nbytes == CACHE_BYTES]
    first = next(mark for mark in log.marks if mark.moment == "optimizer_step")
    assert timed and max(timed) < first.begin
    assert any("kernels taken to be installed" in text for text in fused.assumptions)
    assert any("mamba-ssm,causal-conv1d" in text for text in plain.warnings)


def test_each_family_looks_for_its_packages() -> None:
    """Every model type of the table has a function in plain torch for each of its packages, and no other
    type of transformers has one for mamba-ssm.
    """
    import transformers

    models = Path(transformers.__file__).parent / "models"
    decorator = re.compile(r"use_kernel_func_from_hub_with_fallback\(\s*\"\w+\",\s*\"(\w+)\"")
    for path in models.glob("*/modeling_*.py"):
        found = set(decorator.findall(path.read_text(encoding="utf-8")))
        packages = {name.replace("_", "-") for name in found}
        if "mamba-ssm" in packages:
            assert set(FAMILIES[path.parent.name]) == packages, path.parent.name


def test_what_cannot_run_is_refused() -> None:
    """mamba-ssm without causal-conv1d; a packed projection that its function multiplies by."""
    from memplan.planner.trace.engine import trace

    with pytest.raises(UsageError, match="name both"):
        setup_of(mixer_kernels=("mamba-ssm",))
    pytest.importorskip("bitsandbytes")
    packed = {"method": "qlora", "targets": ("in_proj",), "micro_batch": 1, "sequence_length": 64}
    with pytest.raises(UsageError, match="leave out_proj out of the quantization"):
        trace(config_of("falcon_h1"), setup_of(**packed))
    assert trace(config_of("falcon_h1"), setup_of(**packed, recipe="axolotl")).peak.allocated_bytes


def test_a_scan_too_long_is_a_lower_bound() -> None:
    """Jamba in plain torch: what its scan keeps is said, and no GPU is promised."""
    import memplan

    made = memplan.plan(config_of("jamba"), micro_batch=1, sequence_length=2048, gpu="a100-80gb")
    assert any("token by token" in text for text in made.not_modelled)
    assert made.gpus[0].verdict is None
    said = memplan.plan(config_of("jamba"), micro_batch=1, sequence_length=2048, mixer_kernels=BOTH)
    assert not said.not_modelled and said.peak.allocated_bytes == made.peak.allocated_bytes
