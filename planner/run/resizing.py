"""Embedding and head with other rows than the checkpoint has, as transformers makes them."""

from __future__ import annotations

from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.run.model import reason
from memplan.planner.tables.errors import UsageError


def resize(model: Any, setup: Setup) -> None:
    """`resize_token_embeddings` to the setup's vocabulary; nothing where the setup has none. Raises
    UsageError where the model's class cannot.
    """
    if setup.vocabulary is None:
        return
    try:
        model.resize_token_embeddings(setup.vocabulary)
    except (NotImplementedError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"vocabulary {setup.vocabulary}: {type(model).__name__} cannot be resized: {reason(error)}"
        ) from None
