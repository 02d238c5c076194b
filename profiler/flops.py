"""Floating-point operations of one real training step, counted by torch's own counter; recomputation counts
as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def counted(step: Callable[[], Any]) -> int | None:
    """FLOP of one call of `step`. None where nothing was counted.

    torch.utils.flop_counter knows matrix products, convolutions and SDPA; bitsandbytes' 4-bit product is
    added here. Element-wise operations are left out, which is below 1 % of a transformer's step.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_bitsandbytes()) as counter:
        step()
    total = int(counter.get_total_flops())
    return total or None


def _bitsandbytes() -> dict[Any, Any]:
    """FLOP of bitsandbytes' fused 4-bit product (bitsandbytes 0.50 _ops.py gemm_4bit); empty where the
    library is absent or older.
    """
    import sys

    if "bitsandbytes" not in sys.modules:
        return {}
    import torch

    def product(a_shape: Any, b_shape: Any, shape_b: Any, *_: Any, **__: Any) -> int:
        return int(2 * math.prod(a_shape) * shape_b[0])

    found = {}
    for name in ("gemm_4bit",):
        packet = getattr(torch.ops.bitsandbytes, name, None)
        if packet is not None:
            found[packet] = product
    return found
