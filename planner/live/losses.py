"""The forward pass up to the loss: the model's own (logits materialised), or chunked over the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.live.build import Built


def forward(built: Built) -> Any:
    """The model's outputs with a loss in them."""
    return built.model(**built.batch)
