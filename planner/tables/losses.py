"""The ways from the last hidden states to the loss.

full: whole logits, in fp32 too (transformers). chunked: TRL's tiles, made again in the backward. fused: Liger's,
gradients made in the forward. torchtune: its LinearCrossEntropyLoss; torchtune-0.6: the CEWithChunkedOutputLoss of
0.6.1 and before; both keep the log-softmax of every part. axolotl-chunked: its `chunked_cross_entropy`, of whole logits.
"""

from __future__ import annotations

from typing import Literal

Loss = Literal["full", "chunked", "fused", "torchtune", "torchtune-0.6", "axolotl-chunked"]

PARTS = 8
"""Parts of the logits (torchtune bd2a0fc7c modules/loss/cross_entropy_loss.py and 0.6.1
modules/loss/ce_chunked_output_loss.py num_output_chunks; axolotl 0.19 utils/schemas/config.py
chunked_cross_entropy_num_chunks).
"""

WITH_LOGITS = ("full", "axolotl-chunked")
"""Those whose step returns whole logits."""
