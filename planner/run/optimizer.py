"""OPTIMIZERS' rows as real optimizer objects: torch's, transformers' and those of libraries of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, OPTIONAL, require, require_optimizer
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.low_rank import no_layer, targets
from memplan.planner.tables.optimizer_row import Optimizer
from memplan.planner.tables.optimizers import OPTIMIZERS, trained_by

LR = 1e-5


class Several:
    """Optimizers that step as one, each over its own parameters."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    @property
    def state(self) -> dict[Any, Any]:
        """States by parameter, as torch.optim.Optimizer.state."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups, as torch.optim.Optimizer.param_groups."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step of each part."""
        for part in self.parts:
            part.step()


class InBackward(Several):
    """An optimizer for each parameter, which steps as soon as its gradient is whole and lets it go
    (torchtune 0.6 training/memory.py OptimizerInBackwardWrapper, register_optim_in_bwd_hooks).
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__(parts)
        for part in parts:
            (parameter,) = part.param_groups[0]["params"]
            parameter.register_post_accumulate_grad_hook(partial(_apply, part))

    def step(self) -> None:
        """Nothing: every parameter is updated already."""

    def watch(self, note: Callable[[torch.Tensor], None]) -> None:
        """Call `note` with every parameter before it is updated: its gradient is gone after the backward."""

        def noted(part: Any, *_: Any) -> None:
            note(part.param_groups[0]["params"][0])

        for part in self.parts:
            part.register_step_pre_hook(noted)


class Behind:
    """LOMO or AdaLomo: its own hooks step a parameter when the next one's gradient comes, and its own
    backward the last one (lomo-optim 0.1.1 lomo.py; accelerate 1.15 accelerator.py lomo_backward).
    """

    def __init__(self, model: nn.Module, made: Any) -> None:
        self.made, self.param_groups = made, made.param_groups
        self.named = dict(model.named_parameters())

    @property
    def state(self) -> dict[Any, Any]:
        """States by parameter, as torch.optim.Optimizer.state."""
        kept = {key: value for key, value in vars(self.made).items() if key.startswith("exp_avg_sq")}
        return {
            parameter: {key: states[name] for key, states in kept.items() if name in states}
            for name, parameter in self.named.items()
        }

    def backward(self, loss: torch.Tensor) -> None:
        """The backward of a loss, and the steps in it."""
        self.made.fused_backward(loss, LR)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: every gradient is gone."""

    def step(self) -> None:
        """Nothing: every parameter is updated already."""

    def watch(self, note: Callable[[torch.Tensor], None]) -> None:
        """Call `note` with every parameter before it is updated: its gradient is gone after the backward."""
        for parameter in self.named.values():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(note)


def _apply(part: Any, parameter: torch.Tensor) -> None:
    part.step()
    part.zero_grad(set_to_none=True)


def make_optimizer(model: nn.Module, setup: Setup) -> Any:
    """The optimizer over the trainable parameters, in one group or in the loop's two (decayed or not). Where
    a row leaves some to another optimizer, both as one; in the backward, one for each parameter.
    """
    row = OPTIMIZERS[setup.optimizer]
    if row.behind:
        require_optimizer(row.name, row.library)
        return Behind(model, _class(row)(model, lr=LR))
    if setup.optimizer_in_backward:
        trained = [p for group in _groups(model, setup) for p in group]
        return InBackward([_made(model, setup, [[p]]) for p in trained])
    return _made(model, setup, _groups(model, setup))


def _made(model: nn.Module, setup: Setup, grouped: list[list[torch.Tensor]]) -> Any:
    row = OPTIMIZERS[setup.optimizer]
    embedding = {id(p) for p in _embeds(model)}
    groups: dict[str, list[dict[str, Any]]] = {}
    for group in grouped:
        shares: dict[str, list[Any]] = {name: [] for name in (row.name, row.others) if name is not None}
        for p in group:
            shares[trained_by(row, p.ndim, id(p) in embedding).name].append(p)
        for name, share in shares.items():
            if share or row.others is None:
                groups.setdefault(name, []).append({"params": share, "weight_decay": 0.0})
    if row.low_rank:
        groups = {row.name: _projected(model, setup, [p for group in grouped for p in group])}
    made = []
    for name in sorted(groups, key=[row.name, row.others].index):
        part = OPTIMIZERS[name]
        mode = setup.optimizer_mode if part is row else part.modes[0]
        made.append(_by_itself(_make(part, groups[name], mode)))
        if setup.loop.embeddings_32bit and part.arguments.get("optim_bits") == 8:
            _keep_embeddings_32bit(made[-1], model)
    return made[0] if len(made) == 1 else Several(made)


def _make(row: Optimizer, groups: list[dict[str, Any]], mode: str) -> Any:
    if row.library == "bitsandbytes" or row.low_rank:  # GaLore's and APOLLO's packages import it
        require(*BITSANDBYTES)
    if row.library in OPTIONAL:
        require_optimizer(row.name, row.library)
    modes: dict[str, Any] = {"foreach": mode == "foreach"} if "foreach" in row.modes else {}
    if mode == "fused":
        modes = {"fused": True}
    arguments = {
        key: getattr(torch, value) if key.endswith("_dtype") else value
        for key, value in row.arguments.items()
    }
    made = _class(row)(groups, lr=LR, **arguments, **modes)
    for group in made.param_groups if not row.low_rank else ():
        group.update(row.group)
    if row.trains:
        made.train()
    return made


def _class(row: Optimizer) -> Any:
    module, _, cls = row.cls.rpartition(".")
    return getattr(import_module(module), cls)


def _projected(model: nn.Module, setup: Setup, trained: list[torch.Tensor]) -> list[dict[str, Any]]:
    """The parameters in two groups: those whose gradients stay whole, then those that are projected, here in
    every step: one that makes new projections is part of every longer run (transformers 5.24
    trainer_optimizer.py _setup_low_rank_optimizer; update_proj_gap is 200 there).
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and targets(setup.optim_targets, name, module is head)
    }
    chosen = {id(p) for name, p in model.named_parameters() if name in names}
    if not chosen:
        raise UsageError(no_layer(setup.optim_targets))
    low = {
        "rank": setup.optim_rank,
        "update_proj_gap": 1,
        "scale": 1.0,
        "proj_type": setup.optim_projection,
        **OPTIMIZERS[setup.optimizer].group,
    }
    shares = [[p for p in trained if (id(p) in chosen) == projects] for projects in (False, True)]
    return [
        {"params": share, "weight_decay": 0.0, **(low if projects else {})}
        for projects, share in enumerate(shares)
        if share
    ]


def _groups(model: nn.Module, setup: Setup) -> list[list[torch.Tensor]]:
    """The trainable parameters as the loop groups them."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not setup.loop.decay_groups:
        return [[p for _, p in named]]
    from transformers.trainer_pt_utils import get_parameter_names

    # transformers 5.24 trainer.py get_decay_parameter_names
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(model, [nn.LayerNorm], forbidden))
    return [[p for name, p in named if (name in decayed) == decays] for decays in (True, False)]


def _embeds(model: Any) -> Iterator[torch.Tensor]:
    """The weights of embeddings and of the output projection, a trained copy of it included; not what an
    adapter adds to them.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
    head = model.get_output_embeddings()
    if head is not None:
        shapes = {tuple(p.shape) for p in head.parameters() if not p.requires_grad} or {
            tuple(p.shape) for p in head.parameters()
        }
        yield from (p for p in head.parameters() if p.ndim == 2 and tuple(p.shape) in shapes)


def _by_itself(optimizer: Any) -> Any:
    """bitsandbytes' optimizers ask one manager a process, which keeps what another model's training overrode,
    by a parameter's place in its group (0.50 optim/optimizer.py GlobalOptimManager.index2config): ours gets
    one of its own.
    """
    if hasattr(optimizer, "mng"):
        optimizer.mng = object.__new__(type(optimizer.mng))  # its constructor refuses
        optimizer.mng.initialize()
    return optimizer


def _keep_embeddings_32bit(optimizer: Any, model: nn.Module) -> None:
    """The Trainer's override for every nn.Embedding (transformers 5.24 trainer.py create_optimizer)."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})
