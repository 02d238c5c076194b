"""Llama 4's experts as a checkpoint with `linearized` in its name has them: a Linear per expert and
projection, so that bitsandbytes quantizes them (axolotl 0.19 monkeypatch/models/llama4/modeling.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def linearize(model: nn.Module) -> None:
    """Replace every layer's experts, whose two parameters hold them all, on the device that they are on."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Llama4TextExperts":
                setattr(module, name, _LinearExperts(child))


class _LinearExperts(nn.Module):
    """E experts of width I over hidden states of width H, one after the other."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        like = {"device": fused.down_proj.device, "dtype": fused.down_proj.dtype}
        hidden, inner = fused.hidden_size, fused.expert_dim

        def each(inputs: int, outputs: int) -> nn.ModuleList:
            made = (nn.Linear(inputs, outputs, bias=False, **like) for _ in range(fused.num_experts))
            return nn.ModuleList(made)

        self.gate_projs, self.up_projs = each(hidden, inner), each(hidden, inner)
        self.down_projs = each(inner, hidden)
        self.act_fn = fused.act_fn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(E x tokens, H), by expert -> the same shape."""
        by_expert = hidden_states.view(len(self.gate_projs), -1, hidden_states.shape[-1])
        found = torch.zeros_like(by_expert)
        for i, (gate, up, down) in enumerate(
            zip(self.gate_projs, self.up_projs, self.down_projs, strict=True)
        ):
            gated = gate(by_expert[i])
            found[i] = down(up(by_expert[i]) * self.act_fn(gated))
        return found.view(-1, hidden_states.shape[-1])
