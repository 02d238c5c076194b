"""What a formula's prediction assumed, and what a user should know before trusting it: sentences."""

from __future__ import annotations

from collections.abc import Iterator

from planner.dtypes import itemsize
from planner.gpus import find_gpu
from planner.methods import METHODS
from planner.parameters import NEVER_QUANTISED
from planner.recipes import RECIPES
from planner.setup import Setup
from planner.symbolic import Symbolic
from planner.units import gib


def assumptions(symbolic: Symbolic, setup: Setup) -> Iterator[str]:
    """What was taken for granted, most telling first."""
    recipe = RECIPES[setup.recipe]
    yield f"recipe {setup.recipe}: {recipe.summary}"
    yield from (text for about, text in recipe.notes if _applies(about, setup))
    yield from symbolic.spec.notes
    if symbolic.device.assumed and symbolic.device.kind == "cuda":
        yield "no card named: kernels as on compute capability 8.0"
    yield "steady state: the second step or a later one, when optimizer states and cuBLAS workspaces exist"
    yield "reserved is allocated rounded up to 2 MiB segments: the formula does not predict fragmentation (--engine trace does)"
    if setup.attention == "sdpa-efficient":
        yield "sdpa-efficient: grouped key and value heads are repeated before the call"


def _applies(about: str, setup: Setup) -> bool:
    """Whether a word about a setting's default says anything of this setup: nobody chose the setting, and the method reads it."""
    if setup.origins.get(about) in ("user", "import") or (about == "quant_type" and setup.quant_type == "none"):
        return False
    reads = METHODS[setup.method].reads
    return about in reads or not any(about in row.reads for row in METHODS.values())


def warnings(symbolic: Symbolic, setup: Setup) -> Iterator[str]:
    """What can surprise."""
    if setup.quant_type != "none" and symbolic.spec.model_type in NEVER_QUANTISED:
        yield f"transformers does not quantise the linear layers of {symbolic.spec.architecture}: their class is not nn.Linear itself"
    yield from _unquantised_experts(symbolic, setup)
    yield from _no_bfloat16(setup)
    if METHODS[setup.method].trains == "last_layers" and setup.checkpointing != "none":
        yield "only the last layers are trained: checkpointing keeps the inputs of frozen layers too and can need more memory than none"


def _unquantised_experts(symbolic: Symbolic, setup: Setup) -> Iterator[str]:
    """Experts that are 3-D parameters: transformers 5.23 integrations/bitsandbytes.py converts nn.Linear and Conv1D alone."""
    experts = [stored for stored in symbolic.inventory.base if stored.role == "expert"]
    if setup.quant_type == "none" or not experts:
        return
    size = sum(itemsize(stored.dtype) * stored.elements.evaluate({}) * stored.count for stored in experts)
    half = "; without the fp32 upcast of k-bit preparation they would take half (--set kbit_prepare=false)" if setup.kbit_prepare else ""
    yield (
        f"{gib(size)} of expert weights stay in {experts[0].dtype}: they are 3-D parameters, and bitsandbytes quantises linear layers alone"
        + half
    )


def _no_bfloat16(setup: Setup) -> Iterator[str]:
    """Cards before Ampere: torch 2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp check_dtypes_sm80 and below."""
    gpu = find_gpu(setup.gpu) if setup.gpu else None
    if gpu is None or gpu.capability is None or gpu.capability >= (8, 0) or "bfloat16" not in (setup.weight_dtype, setup.autocast):
        return
    yield f"{gpu.name} has no bfloat16 units: it is slow there, and fused attention refuses it (--dtype float16 --autocast float16)"
