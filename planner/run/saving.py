"""The model written after training, on one GPU: its state dict, whose tensors go to the host (safetensors 0.8
torch.py _flatten_as_ptr, planner/formula/saving.py).
"""

from __future__ import annotations

from memplan.planner.run.built import Announcer, Built
from memplan.planner.tables.components import SAVE


def run(built: Built, watcher: Announcer, step: int) -> None:
    """The save of `built`'s setup, announced as a moment of training step `step`; nothing where the setup has
    none. Of a quantized base only the adapter is written.
    """
    if not built.setup.save:
        return
    if built.setup.loop.frees_gradients:
        built.optimizer.zero_grad(set_to_none=True)
    with watcher.announce(SAVE, step):
        state = {name: parameter.detach() for name, parameter in built.model.named_parameters()}
        del state
