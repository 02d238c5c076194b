"""The forward pass up to the loss: the model's own (logits materialized), in TRL's tiles (chunked), fused as
Liger does it, or of logits in parts; a task's trainer computes its loss from the outputs.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

from memplan.planner.run import (
    chunked_loss,
    distillation,
    earlier_trl,
    embeddings,
    fused_loss,
    parted_losses,
    policy,
    preferences,
    whole_logits,
)
from memplan.planner.run.built import Built

TASK_LOSSES = {
    **preferences.TASK_LOSSES,
    **whole_logits.WHOLE_LOGITS_LOSSES,
    **policy.SAMPLED_LOSSES,
    "distill": distillation.distill,
    "embed": embeddings.embed,
}
LOSSES: dict[str, chunked_loss.LossOf] = {
    "chunked": chunked_loss.loss_of,
    "fused": fused_loss.loss_of,
    "torchtune": parted_losses.torchtune,
    "torchtune-0.6": parted_losses.torchtune_06,
}


def forward(built: Built) -> Any:
    """The model's outputs with a loss in them, autocast and cast as the setup has it."""
    setup = built.setup
    earlier = earlier_trl.EARLIER_LOSSES.get(setup.task) if setup.loss == "full" else None
    task = earlier or TASK_LOSSES.get(setup.task)
    if task is not None:
        return task(built)
    if built.setup.loss == "axolotl-chunked":
        with patch.dict("transformers.loss.loss_utils.LOSS_MAPPING", {"ForCausalLM": parted_losses.axolotl}):
            return preferences.called(built, built.model, built.batch)
    if built.setup.loss != "full":
        loss_of = LOSSES[built.setup.loss]
        if built.setup.activation_offload != "none" and built.setup.loss == "chunked":
            loss_of = partial(chunked_loss.loss_of, saves_mask=True)
        # Liger's forwards and cut cross-entropy's call `self.model` (liger_kernel 0.8.5
        # transformers/model/llama4.py); trl 1.16 trainer/utils.py asks for the base model
        inner = "model" if built.setup.loss == "fused" else ""
        with chunked_loss.fused_head(built.base, loss_of, inner):
            return preferences.called(built, built.model, built.batch)
    return preferences.called(built, built.model, built.batch)
