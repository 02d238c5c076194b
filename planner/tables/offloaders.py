"""OFFLOADERS: hooks that move what autograd saves to the host and back, by the stack that has them. In all of
them a tensor below 1,024 bytes stays on the GPU, and so do the output projection's.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 1024
"""Bytes below which a saved tensor stays (trl 1.16 models/activation_offloading.py min_offload_size)."""
STASH = 5
"""Saved tensors, counted with those that stay, for which a tensor under way to the host is still held
(max_fwd_stash_size).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloader:
    """One hook. `streams`: copies run beside the computation, on a stream of their own, so that the last
    tensors wait on the GPU. `spares_weights`: views of parameters stay. `shares`: a storage that is still
    under way is not sent again, and every further tensor on it stays. `whole`: a view goes as a contiguous
    copy, so that it is a storage of its own. `empties`: the allocator's cache as a step begins, where the process
    has imported bitsandbytes, as TRL does itself.
    """

    streams: bool
    spares_weights: bool
    shares: bool
    whole: bool
    empties: bool
    source: str


OFFLOADERS: dict[str, Offloader] = {
    "trl": Offloader(
        streams=True,
        spares_weights=True,
        shares=True,
        whole=False,
        empties=True,
        source="trl 1.16 models/activation_offloading.py OffloadActivations",
    ),
    "trl-synchronous": Offloader(
        streams=False,
        spares_weights=True,
        shares=False,
        whole=False,
        empties=True,
        source="the same, use_streams False",
    ),
    "axolotl": Offloader(
        streams=True,
        spares_weights=False,
        shares=True,
        whole=True,
        empties=True,
        source="axolotl 0.19 core/trainers/mixins/activation_checkpointing.py: TRL's, of adapters, which is told "
        "no parameters",
    ),
    "axolotl-synchronous": Offloader(
        streams=False,
        spares_weights=False,
        shares=False,
        whole=False,
        empties=True,
        source="the same, activation_offloading legacy",
    ),
    "torchtune": Offloader(
        streams=True,
        spares_weights=False,
        shares=False,
        whole=False,
        empties=False,
        source="torchtune 0.6.1 training/_activation_offloading.py OffloadActivations",
    ),
}
"""Values of the setting `activation_offload`."""
