"""Bottleneck adapters (Houlsby et al. 2019, section 2.1): down-projection, non-linearity, up-projection,
residual; peft has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from memplan.planner.run.model import layers_of
from memplan.planner.tables.errors import UsageError


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))), H -> size -> H, with biases."""

    def __init__(self, hidden: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, size, dtype=dtype, device=device)
        self.up = nn.Linear(size, hidden, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x + up(gelu(down(x))), computed in the dtype of the bottleneck, returned in the dtype of x."""
        return x + self.up(nn.functional.gelu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


def add_bottlenecks(model: Any, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """One adapter after the attention and one after the MLP of every decoder layer. UsageError where a layer
    has neither.
    """
    hidden = model.config.get_text_config().hidden_size
    count = 0
    for layer in layers_of(model):
        for name, module in list(layer.named_children()):
            if "norm" in f"{name} {type(module).__name__}".lower() or not any(
                True for _ in module.parameters()
            ):
                continue  # GPT-2 calls its norms ln_1 and ln_2
            weighted = [
                part
                for part in module.modules()
                if part._parameters and "norm" not in type(part).__name__.lower()
            ]
            if all(isinstance(part, nn.Linear) and part.out_features != hidden for part in weighted):
                # the first half of OPT's and BERT's MLP: what joins the residual stream is the output of the
                # second
                continue
            module.bottleneck = Bottleneck(hidden, size, dtype, device)
            module.register_forward_hook(_after)
            count += 1
    if not count:
        raise UsageError(f"{type(model).__name__} has no attention or MLP modules for method 'adapter'")


def _after(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (module.bottleneck(output[0]), *output[1:])
    return module.bottleneck(output)
