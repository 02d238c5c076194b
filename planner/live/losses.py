"""The forward pass up to the loss: the model's own (logits materialised), or chunked over the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.live.chunked import fused_head

if TYPE_CHECKING:
    from planner.live.build import Built


def forward(built: Built) -> Any:
    """The model's outputs with a loss in them."""
    if built.setup.loss == "chunked":
        with fused_head(built.base):
            return built.model(**built.batch)
    return built.model(**built.batch)
