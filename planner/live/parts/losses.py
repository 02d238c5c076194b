"""The forward pass up to the loss: the model's own (logits materialised), in TRL's tiles (chunked), or fused as Liger does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.live.parts import chunked, fusedloss

if TYPE_CHECKING:
    from planner.live.build import Built

LOSSES = {"chunked": chunked.loss_of, "fused": fusedloss.loss_of}


def forward(built: Built) -> Any:
    """The model's outputs with a loss in them."""
    if built.setup.loss != "full":
        with chunked.fused_head(built.base, LOSSES[built.setup.loss]):
            return built.model(**built.batch)
    return built.model(**built.batch)
