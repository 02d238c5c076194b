"""OPTIMIZERS' rows as real optimizer objects: torch's, bitsandbytes' and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.extras import BITSANDBYTES, require
from memplan.planner.tables.optimizers import OPTIMIZERS

LR = 1e-5


def _torch(cls: str, **fixed: Any) -> Callable[[Any, str], Any]:
    def make(groups: Any, mode: str) -> Any:
        return getattr(torch.optim, cls)(
            groups, lr=LR, **fixed, **({"fused": True} if mode == "fused" else {"foreach": mode == "foreach"})
        )

    return make


def _bnb(cls: str, **fixed: Any) -> Callable[[Any, str], Any]:
    """How transformers 5.23 trainer_optimizer.py constructs bitsandbytes' optimizers."""

    def make(groups: Any, mode: str) -> Any:
        require(*BITSANDBYTES)
        import bitsandbytes as bnb

        return getattr(bnb.optim, cls)(groups, lr=LR, **fixed)

    return make


def _adafactor(groups: Any, mode: str) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=LR, scale_parameter=False, relative_step=False)


MAKERS: dict[str, Callable[[Any, str], Any]] = {
    "adamw_torch": _torch("AdamW"),
    "adamw_torch_fused": _torch("AdamW"),
    "sgd": _torch("SGD"),
    "rmsprop": _torch("RMSprop"),
    "adagrad": _torch("Adagrad"),
    "adafactor": _adafactor,
    "adamw_bnb_8bit": _bnb("AdamW", optim_bits=8),
    "adamw_8bit": _bnb("AdamW", optim_bits=8),
    "paged_adamw_8bit": _bnb("AdamW", optim_bits=8, is_paged=True),
    "paged_adamw_32bit": _bnb("AdamW", optim_bits=32, is_paged=True),
    "lion_32bit": _bnb("Lion", optim_bits=32),
    "lion_8bit": _bnb("Lion", optim_bits=8),
    "paged_lion_32bit": _bnb("Lion", optim_bits=32, is_paged=True),
    "paged_lion_8bit": _bnb("Lion", optim_bits=8, is_paged=True),
    "rmsprop_bnb": _bnb("RMSprop", optim_bits=32),
    "rmsprop_bnb_32bit": _bnb("RMSprop", optim_bits=32),
    "rmsprop_bnb_8bit": _bnb("RMSprop", optim_bits=8),
    "ademamix": _bnb("AdEMAMix", optim_bits=32),
    "ademamix_8bit": _bnb("AdEMAMix", optim_bits=8),
    "paged_ademamix_32bit": _bnb("AdEMAMix", optim_bits=32, is_paged=True),
    "paged_ademamix_8bit": _bnb("AdEMAMix", optim_bits=8, is_paged=True),
}
assert MAKERS.keys() == OPTIMIZERS.keys(), "every optimizer of the table can be made"


def make_optimizer(model: nn.Module, setup: Setup) -> Any:
    """The optimizer over the trainable parameters: one group in a plain loop, the Trainer's two (decayed or
    not) elsewhere.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not setup.loop.decay_groups:
        return _by_itself(MAKERS[setup.optimizer]([p for _, p in named], setup.optimizer_mode))
    from transformers.trainer_pt_utils import get_parameter_names

    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(get_parameter_names(model, [nn.LayerNorm], forbidden))
    groups = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 0.0},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = _by_itself(MAKERS[setup.optimizer](groups, setup.optimizer_mode))
    if getattr(getattr(optimizer, "args", None), "optim_bits", None) == 8:
        _keep_embeddings_32bit(optimizer, model)
    return optimizer


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
    """The Trainer's override for every nn.Embedding (transformers 5.23 trainer.py create_optimizer)."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})
