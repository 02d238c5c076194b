"""FACTS: mechanical facts read from the installed libraries, by name: a default, a dtype, a count, seen by
running tiny CPU models.

Each probe returns (value, evidence). They execute the library's own code, so a library that changes its mind
changes the answer.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from importlib.metadata import version

from memplan.profiler.facts.adapters import ADAPTERS
from memplan.profiler.facts.memory import MEMORY
from memplan.profiler.facts.models import Finding, Probe
from memplan.profiler.facts.nf4 import NF4
from memplan.profiler.facts.quantized import QUANTIZED
from memplan.profiler.localized_message import said

FACTS: dict[str, tuple[Probe, str]] = {**ADAPTERS, **NF4, **QUANTIZED, **MEMORY}


@cache
def read_fact(name: str) -> Finding:
    """The value of a fact and where it was read. KeyError for an unknown name; ImportError where the library
    is not installed.
    """
    import torch

    probe, library = FACTS[name]
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            value, evidence = probe()
    finally:
        logging.disable(quiet)
    return value, said(
        "{evidence} ({library} {version})", evidence=evidence, library=library, version=version(library)
    )
