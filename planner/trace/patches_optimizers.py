"""What the libraries of single optimizers need to run on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, require, require_optimizer
from memplan.planner.tables.optimizers import OPTIMIZERS
from memplan.planner.trace.observe import Observer


def nothing(*args: Any, **kwargs: Any) -> None:
    """A kernel that moves values, not memory."""


@contextmanager
def torchao_compiled(observer: Observer, setup: Setup) -> Iterator[None]:
    """torchao 0.18 optim/adam.py compiles each tensor's step, and nothing compiles for meta: instead of
    single_param_adam, the buffers of the CUDA code that torch 2.12's Inductor makes of it (with triton 3.7,
    for compute capability 9.0): where states are quantized, the new scales and both moments in fp32, and
    of 4-bit states the codes in int64 before they are packed. States are made from no tensor: they belong to
    the layer of their parameter, as what the step makes does.
    """
    if OPTIMIZERS[setup.optimizer].library != "torchao":
        yield
        return
    require_optimizer(setup.optimizer, "torchao")
    from torchao.optim import adam

    made = adam._AdamBase._new_buffer

    def new_buffer(optimizer: Any, p: Any, signed: bool) -> Any:
        observer.follow(p)
        return made(optimizer, p, signed)

    def step(p: Any, grad: Any, count: Any, exp_avg: Any, exp_avg_sq: Any, *rest: Any) -> None:
        if not hasattr(exp_avg, "codes"):
            return
        observer.follow(p)
        scales = [torch.empty_like(state.scale) for state in (exp_avg, exp_avg_sq)]
        packed = exp_avg.codes.numel() < p.numel()
        wide = (torch.float32, torch.int64) if packed else (torch.float32,)
        moments = [[torch.empty(p.shape, dtype=kind, device=p.device) for kind in wide] for _ in scales]
        del moments, scales

    with (
        patch.object(adam, "single_param_adam", step),
        patch.object(adam._AdamBase, "_new_buffer", new_buffer),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


@contextmanager
def optimi_kernels(observer: Observer, setup: Setup) -> Iterator[None]:
    """torch-optimi 0.3.3 stableadamw.py, adam.py: on CUDA a step is Triton kernels over one tensor after
    another, in place, and nothing compiles them for meta. Without Triton optimizer.py refuses to ask for it.
    """
    if OPTIMIZERS[setup.optimizer].library != "optimi":
        yield
        return
    require_optimizer(setup.optimizer, "optimi")
    with ExitStack() as stack:
        stack.enter_context(patch.object(import_module("optimi.optimizer"), "HAS_TRITON", True))
        for module, step in (("stableadamw", "_triton_stableadamw"), ("adam", "_triton_adam")):
            home = import_module(f"optimi.{module}")
            stack.enter_context(patch.object(home, step, nothing, create=True))
        yield


@contextmanager
def projections(observer: Observer, setup: Setup) -> Iterator[None]:
    """galore-torch 1.0 adamw8bit.py waits for the device after each matrix, and by a maximum of an update's
    norm makes bitsandbytes 0.50 functional.py optimizer_update_32bit read a weight's norm; apollo-torch 1.0.3
    random_projector.py draws with a generator of the device. Nothing of that is there for meta.
    """
    row = OPTIMIZERS[setup.optimizer]
    if not row.low_rank:
        yield
        return
    require_optimizer(row.name, row.library)
    require(*BITSANDBYTES)  # which their packages import

    def drawn(shape: Any, seed: int, device: Any = None, dtype: Any = torch.float32) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda, "synchronize", nothing))
        if any(rule == "blockwise8" for _, rule in row.states):
            functional = import_module("bitsandbytes.functional")
            update = functional.optimizer_update_32bit

            def updated(
                name: str, grad: Any, p: Any, *rest: Any, max_unorm: float = 0.0, **kwargs: Any
            ) -> None:
                torch.norm(p.data.float())
                update(name, grad, p, *rest, **kwargs)

            stack.enter_context(patch.object(functional, "optimizer_update_32bit", updated))
        if row.library == "apollo_torch":
            home = import_module("apollo_torch.random_projector")
            stack.enter_context(patch.object(home, "stable_randn", drawn))
        yield


@contextmanager
def moved_by_name(observer: Observer, setup: Setup) -> Iterator[None]:
    """lomo-optim 0.1.1 adalomo.py makes its states on the host, then `.cuda()`."""
    row = OPTIMIZERS[setup.optimizer]
    if not row.of_frozen:
        yield
        return
    require_optimizer(row.name, row.library)
    with patch.object(torch.Tensor, "cuda", lambda tensor: torch.empty_like(tensor, device="meta")):
        yield


@contextmanager
def states_on_host(observer: Observer, setup: Setup) -> Iterator[None]:
    """grokadamw 0.1.2 grokadamw.py _update_group: `zeros_like(p, device="cpu")`, then `.to(p.device)` and
    `.to("cpu")` in each step. Meta tensors stand for the host's too, on its ledger.
    """
    row = OPTIMIZERS[setup.optimizer]
    if not row.on_host:
        yield
        return
    require_optimizer(row.name, row.library)
    zeros_like, to = torch.zeros_like, torch.Tensor.to

    def hosted(like: torch.Tensor) -> torch.Tensor:
        with observer.on_host():
            made = torch.empty(like.shape, dtype=like.dtype, device="meta")
        return observer.keep_on_host(made, made.nbytes)

    def made_like(like: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hosted(like) if kwargs.get("device") == "cpu" else zeros_like(like, *args, **kwargs)

    def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if observer.moment not in ("backward", "optimizer_step") or not tensor.is_meta:
            return to(tensor, *args, **kwargs)
        if args == ("cpu",):
            return hosted(tensor)
        return observer.to_device(tensor) if args == (tensor.device,) else to(tensor, *args, **kwargs)

    with patch.object(torch, "zeros_like", made_like), patch.object(torch.Tensor, "to", moved):
        yield
