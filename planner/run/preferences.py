"""What TRL's trainers of pairs make of a model's outputs: the loss of a reward model.

trl 1.16 trainer/reward_trainer.py compute_loss, trainer/utils.py disable_dropout_in_model. Metrics, a number
for each pair, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from memplan.planner.run.built import Built


def called(built: Built, model: Any, batch: Mapping[str, Any]) -> Any:
    """The model's outputs for a batch, as accelerate's forward gives them: under autocast, then in fp32
    (accelerate 1.15 utils/operations.py convert_to_fp32).
    """
    with built.autocast():
        outputs = model(**batch)
    if built.setup.outputs_fp32 and built.setup.autocast != "none":
        from accelerate.utils.operations import convert_to_fp32

        outputs = convert_to_fp32(outputs)
    return outputs


def drops_nothing(model: nn.Module) -> None:
    """The probability of every dropout module to 0, as TRL's `disable_dropout` does."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def reward(built: Built) -> Any:
    """-log sigmoid(chosen - rejected): the first half of the rows is chosen."""
    outputs = called(built, built.model, {**built.batch, "use_cache": False})
    chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
    loss = -functional.logsigmoid(chosen - rejected).mean()
    return {"loss": loss, "logits": outputs.logits}


TASK_LOSSES: dict[str, Callable[[Built], Any]] = {"reward": reward}
"""Task -> the loss of its trainer; a task that is not here has the model's own."""
