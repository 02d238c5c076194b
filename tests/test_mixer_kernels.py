"""Linear attention by flash-linear-attention's and causal-conv1d's kernels: the trace's own functions against
the library's, what is said of them, and the stacks that bring them.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from memplan.planner.importers.document import parse
from memplan.planner.importers.files import FORMATS, read_document
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.mixer_kernels import FAMILIES, tile

for library in ("torch", "transformers", "peft"):
    pytest.importorskip(library)
ROOT = Path(__file__).parents[1]
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 2048,
    "pad_token_id": 0,
}
QWEN = {
    "model_type": "qwen3_5_text",
    **SMALL,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
KIMI = {
    "model_type": "kimi_linear",
    **SMALL,
    "num_key_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}


def setup_of(**said: Any) -> Setup:
    sizes = {"micro_batch": 2, "sequence_length": 100, "gpu": "a100-80gb", "mixer_kernels": ("fla",)}
    return resolve({**sizes, **said})


@contextmanager
def flas_own() -> Iterator[None]:
    """The trace with fla's functions in the place of ours; a launch does nothing."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.kda import chunk_kda
    from triton.runtime.jit import KernelInterface

    from memplan.planner.run import mixer_kernels

    def kernel(name: str, setup: Setup) -> Any:
        function = chunk_kda if "kimi" in name else chunk_gated_delta_rule
        known = inspect.signature(function).parameters

        def called(*given: Any, **named: Any) -> Any:
            return function(*given, **{key: value for key, value in named.items() if key in known})

        return called

    def launched(self: Any, grid: Any) -> Any:
        return lambda *given, **named: None

    with (
        patch.object(mixer_kernels, "_kernel", kernel),
        patch.object(KernelInterface, "__getitem__", launched),
    ):
        yield


@pytest.mark.skipif(
    importlib.util.find_spec("fla") is None, reason="fla is not here: it is no part of the dev extra"
)
@pytest.mark.parametrize(
    "config", [QWEN, {**QWEN, "linear_num_value_heads": 2}, KIMI], ids=["4", "2", "kimi"]
)
@pytest.mark.parametrize(
    "said",
    [
        {"method": "full", "recipe": "raw"},
        {"method": "lora", "recipe": "hf", "checkpointing": "non_reentrant"},
    ],
    ids=["full", "lora"],
)
def test_our_functions_are_flas_event_by_event(
    config: dict[str, Any], said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every storage has the library's size, birth and death; fla takes the smallest tile where it sees no
    GPU.
    """
    from memplan.planner.run import mixer_kernels
    from memplan.planner.trace.engine import recorded

    monkeypatch.setattr(mixer_kernels, "tile", lambda *_: 32)
    ours = recorded(config, setup_of(**said), full=True)[0]
    with flas_own():
        theirs = recorded(config, setup_of(**said), full=True)[0]
    one, other = ([(s.nbytes, s.born, s.died) for s in log.storages] for log in (ours, theirs))
    assert one == other


def saved_bytes(function: Any) -> int:
    import torch

    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept)


def test_what_a_delta_rule_saves() -> None:
    """Of B T tokens, H and G heads: q, k and v in two bytes, their lengths and the decay in four, beta, and
    64 numbers of a chunk; Kimi's decay is one of a channel, before and after the sum, and its chunk has two.
    """
    import torch

    from memplan.planner.run.delta_rules import GatedDeltaRule, KimiDeltaRule

    tokens, h, g, k, v = 2 * 100, 2, 4, 64, 32

    def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(2, 100, *shape, dtype=dtype, device="meta", requires_grad=True)

    q, key, value, beta = made(h, k), made(h, k), made(g, v), made(g)
    common = tokens * (2 * h * (2 * k + 4) + 2 * g * v + 2 * g)
    decay = made(g, dtype=torch.float32)
    rule = lambda: GatedDeltaRule.apply(q, key, value, decay, beta, None, False, True, 64)  # noqa: E731
    assert saved_bytes(rule) == common + tokens * (4 * g + 2 * g * 64)
    wide = made(g, k, dtype=torch.float32)
    kimi = lambda: KimiDeltaRule.apply(q, key, value, wide, beta, None, False, True)  # noqa: E731
    assert saved_bytes(kimi) == common + tokens * (2 * 4 * g * k + 2 * 2 * g * 64)


def test_a_convolution_saves_its_input_and_copies_a_gradient_laid_otherwise() -> None:
    """Channels of a token lie together where the projection made them: so does the gradient."""
    import torch

    from memplan.planner.run.mixer_kernels import CausalConvolution

    x = torch.empty(2, 100, 64, device="meta", requires_grad=True).transpose(1, 2)
    weight = torch.empty(64, 4, device="meta", requires_grad=True)
    out = CausalConvolution.apply(x, weight, None)
    assert out.stride() == x.stride() and out.shape == x.shape
    assert saved_bytes(lambda: CausalConvolution.apply(x, weight, None)) == (2 * 100 * 64 + 64 * 4) * 4
    assert [each.shape for each in torch.autograd.grad(out, (x, weight), torch.empty_like(out))] == [
        x.shape,
        weight.shape,
    ]


def test_tiles_follow_the_shared_memory_of_a_block() -> None:
    """An H200 takes 128 channels whatever the dtype, an A100 of two bytes, an RTX 4090 64, a T4 32; none more
    than the key has.
    """
    assert [tile(gpu, 128, True) for gpu in ("h200", "a100-80gb", "rtx-4090", "t4", None)] == [
        *(128, 128, 64, 32, 128)
    ]
    assert [tile(gpu, 128, False) for gpu in ("h200", "a100-80gb", "rtx-4090")] == [128, 64, 64]
    assert tile("h200", 96, True) == 128 and tile("h200", 10, True) == 16


def test_the_families_are_those_whose_code_looks_for_fla() -> None:
    """What transformers' modeling files name in front of their functions."""
    import transformers

    found = set()
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        packages = set(re.findall(r"use_kernel_func_from_hub_with_fallback\(\"\w+\", \"(\w+)\"\)", text))
        if "fla" in packages:
            found.add(path.parent.name)
            assert FAMILIES[path.parent.name] == ("fla", "causal-conv1d")
            assert "causal_conv1d" in packages
    assert found == {name for name, packages in FAMILIES.items() if "fla" in packages}


def test_an_answer_says_which_was_taken() -> None:
    """With the kernels less is held; without them a warning names the setting."""
    from memplan.planner.trace.engine import trace

    said = {"method": "full", "recipe": "raw"}
    fused, plain = (trace(QWEN, setup_of(**said, mixer_kernels=each)) for each in (("fla",), ()))
    assert any(
        text.startswith("kernels taken to be installed: flash-linear-attention") for text in fused.assumptions
    )
    assert not any("mixer_kernels" in text for text in fused.warnings)
    assert any("--set mixer_kernels=fla" in text for text in plain.warnings)
    assert fused.moment("forward").allocated_bytes < plain.moment("forward").allocated_bytes
    assert not fused.not_modelled
    packed = trace(QWEN, setup_of(**said, packed_documents=2))
    assert any("packed rows" in text for text in packed.not_modelled)
    both = trace(QWEN, setup_of(**said, mixer_kernels=("fla", "causal-conv1d")))
    assert both.moment("forward").allocated_bytes < fused.moment("forward").allocated_bytes


def test_who_brings_them() -> None:
    """axolotl depends on fla, Unsloth ships its kernels, LLaMA-Factory's fa2 needs them; a CPU runs none."""
    assert resolve({"recipe": "axolotl"}).mixer_kernels == ("fla",)
    assert resolve({"recipe": "hf"}).mixer_kernels == ()
    assert resolve({"recipe": "llamafactory", "attention": "flash_attention_2"}).mixer_kernels == ("fla",)
    assert resolve({"recipe": "axolotl", "device": "cpu"}).device == "cpu"
    text = "model: llama-7b\ntraining: {training_type: lora}\n"
    found = read_document(parse(text, "a.yaml"), FORMATS["unsloth"], "a.yaml")
    assert resolve(imported=found.fields).mixer_kernels == ("fla",)
    with pytest.raises(UsageError, match="run on a GPU alone"):
        setup_of(device="cpu", gpu=None)
    with pytest.raises(UsageError, match="expected names of packages, of fla"):
        setup_of(mixer_kernels="flash")


def test_the_page_is_what_dry_runs_showed() -> None:
    """docs/linear-attention.md is generated; every dry run is met within 0.5 %."""
    done = [sys.executable, str(ROOT / "benchmarks" / "mixer_dryrun.py"), "--page"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    page = subprocess.run(done, capture_output=True, text=True, check=True, env=env).stdout
    told = (ROOT / "docs" / "linear-attention.md").read_text(encoding="utf-8")
    assert told == page, "run: python benchmarks/mixer_dryrun.py --page > docs/linear-attention.md"
    kept = json.loads((ROOT / "benchmarks" / "mixer_dryrun.json").read_text(encoding="utf-8"))
    assert len(kept) >= 8
    for entry in kept.values():
        seen = entry["dry_run"]["allocated_bytes"]
        assert abs(entry["trace"]["allocated_bytes"] / seen - 1) <= 0.005
