"""Setups of state-space models that no trace runs in time without mamba-ssm's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.mixer_kernels import LOOPED, STATE_SPACES


def by_kernels(config: Mapping[str, Any], setup: Setup) -> Setup:
    """The setup as a trace runs it: with the kernels where plain torch's scan goes through the tokens one by
    one, and these are too many for that.
    """
    return setup.with_(mixer_kernels=STATE_SPACES) if _too_long(config, setup) else setup


def uncounted(config: Mapping[str, Any], setup: Setup) -> Iterator[str]:
    """What `by_kernels` leaves out."""
    if _too_long(config, setup):
        kind = config.get("model_type")
        yield (
            f"what the scan of a {kind} model keeps in plain torch, every token's state: it runs token by "
            f"token, and more than {LOOPED[str(kind)]:,} take a trace too long, so that mamba-ssm's scan is "
            f"counted (where that is installed: --set mixer_kernels={','.join(STATE_SPACES)})"
        )


def _too_long(config: Mapping[str, Any], setup: Setup) -> bool:
    most = LOOPED.get(str(config.get("model_type")))
    return most is not None and setup.sequence_length > most and "mamba-ssm" not in setup.mixer_kernels
