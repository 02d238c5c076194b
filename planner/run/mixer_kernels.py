"""Linear attention and convolution by the packages that a setup says are installed, in place of what a
transformers model runs without them.

Its code looks each function up by the name of the one in plain torch, which the package's replaces (5.24
integrations/hub_kernels.py use_kernel_func_from_hub_with_fallback).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.causal_convolution import convolved, updated
from memplan.planner.run.delta_rules import GatedDeltaRule, KimiDeltaRule
from memplan.planner.run.launches import Launches
from memplan.planner.run.selective_scans import Inner, SelectiveScan
from memplan.planner.run.state_space_mixer import Mixer, Shape
from memplan.planner.run.state_spaces import ChunkScan
from memplan.planner.tables.mixer_kernels import FUNCTIONS, ONE_TOKEN, UNFUSED, tile

Kernel = Callable[..., Any]


@contextmanager
def functions(base: nn.Module, setup: Setup, launch: Launches) -> Iterator[None]:
    """While active, the functions that the code of a model's modules looks up are those of the packages that
    the setup names, and of plain torch for all others, whatever is installed here; `launch`: the launches of
    the run so far.
    """
    with ExitStack() as stack:
        for code, name, kernel in _replaced(base, setup, launch):
            stack.enter_context(patch.object(code, name, kernel))
        yield


def _replaced(base: nn.Module, setup: Setup, launch: Launches) -> Iterator[tuple[Any, str, Kernel]]:
    """(the module of code, the function's name, the function) of each; on a CPU no package's runs."""
    taken = setup.mixer_kernels if setup.device == "cuda" else ()
    unfused = (setup.recipe, str(base.config.model_type)) in UNFUSED  # type: ignore[union-attr]
    for code in dict.fromkeys(sys.modules[type(module).__module__] for module in base.modules()):
        for name in (*FUNCTIONS, *ONE_TOKEN):
            found = getattr(code, name, None)
            if found is not None:
                ours = FUNCTIONS.get(name) in taken
                yield code, name, _kernel(name, setup, launch, unfused) if ours else inspect.unwrap(found)


def _kernel(name: str, setup: Setup, launch: Launches, unfused: bool) -> Kernel:
    made = {**_CONVOLUTIONS, **_state_spaces(launch, unfused)}.get(name)
    return _delta_rule(name, setup) if made is None else made


def _delta_rule(name: str, setup: Setup) -> Kernel:
    def gated(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        **_: Any,
    ) -> Any:
        given = (query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel)
        if name == "chunk_kimi_delta_attention":
            return KimiDeltaRule.apply(*given)
        halves = value.element_size() == query.element_size() == 2
        return GatedDeltaRule.apply(*given, tile(setup.gpu, key.shape[-1], halves))

    return gated


_CONVOLUTIONS: dict[str, Kernel] = {"causal_conv1d_fn": convolved, "causal_conv1d_update": updated}


def _whole(*weights: torch.Tensor) -> bool:
    """Whether a function that multiplies by these itself can: no packed one, which a real device refuses."""
    return all(each.is_floating_point() and not hasattr(each, "quant_state") for each in weights)


_PACKED = (
    "mamba-ssm multiplies by the weights of out_proj itself, which are quantized: leave out_proj out of the "
    "quantization, or mamba-ssm out of mixer_kernels"
)


def _state_spaces(launch: Launches, unfused: bool) -> dict[str, Kernel]:
    """mamba-ssm's functions, as a modeling file calls them; `unfused`: the mixer's answers None where it
    cannot multiply, upon which the model calls its parts.
    """

    def mixer(
        projected: torch.Tensor,
        taps: torch.Tensor,
        taps_bias: torch.Tensor | None,
        dt_bias: torch.Tensor,
        a: torch.Tensor,
        *,
        D: torch.Tensor,
        chunk_size: int,
        headdim: int,
        ngroups: int,
        outproj_weight: torch.Tensor,
        outproj_bias: torch.Tensor | None = None,
        rmsnorm_weight: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        if not _whole(outproj_weight):
            if unfused:
                return None
            raise RuntimeError(_PACKED)
        shape, out = Shape(chunk_size, headdim, ngroups), (rmsnorm_weight, outproj_weight, outproj_bias)
        return Mixer.apply(launch, shape, projected, taps, taps_bias, dt_bias, a, D, *out)

    def chunks(
        x: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        *,
        chunk_size: int,
        D: torch.Tensor | None = None,
        dt_bias: torch.Tensor | None = None,
        return_final_states: bool = False,
        **_: Any,
    ) -> Any:
        return ChunkScan.apply(launch, x, dt, a, b, c, chunk_size, D, dt_bias, return_final_states)

    def inner(
        projected: torch.Tensor,
        taps: torch.Tensor,
        taps_bias: torch.Tensor | None,
        of_x: torch.Tensor,
        of_dt: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: None,
        c: None,
        d: torch.Tensor,
        *,
        delta_bias: torch.Tensor,
        b_rms_weight: torch.Tensor | None = None,
        c_rms_weight: torch.Tensor | None = None,
        dt_rms_weight: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        if not _whole(of_x, of_dt, weight):
            raise RuntimeError(_PACKED.replace("out_proj", "its projections"))
        norms = tuple(each is not None for each in (b_rms_weight, c_rms_weight, dt_rms_weight))
        given = (projected, taps, taps_bias, of_x, of_dt, weight, bias, a, d, delta_bias)
        return Inner.apply(launch, norms, *given)

    def scan(
        u: torch.Tensor,
        dt: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        D: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
        delta_bias: torch.Tensor | None = None,
        return_last_state: bool = False,
        **_: Any,
    ) -> Any:
        return SelectiveScan.apply(u, dt, a, b, c, D, z, delta_bias, return_last_state)

    def step(state: torch.Tensor, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty_like(x)  # one more token, the state written over in place

    return {
        "mamba2_split_conv1d_scan_combined": mixer,
        "mamba2_chunk_scan": chunks,
        "mamba_inner_fn": inner,
        "mamba_selective_scan": scan,
        "mamba2_selective_state_update": step,
        "mamba_selective_state_update": step,
    }
