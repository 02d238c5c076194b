"""The libraries that the trace engine and the profiler run, asked for before they are imported."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError

TRACE = ("torch", "transformers", "peft", "accelerate")
BITSANDBYTES = ("bitsandbytes",)

OPTIONAL = {
    "torchao": "torchao",
    "schedulefree": "schedulefree",
    "optimi": "torch-optimi",
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "lomo_optim": "lomo-optim",
    "grokadamw": "grokadamw",
    "torchdistx": "git+https://github.com/pytorch/torchdistx",  # no release for a torch of today
}
"""Libraries of single optimizers, which no extra installs, and their packages' names."""


def require(*names: str) -> None:
    """UsageError with the exact install command where one of `names` (default: what every trace needs) is not
    installed.
    """
    missing = [name for name in names or TRACE if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} not installed: the trace engine runs the real libraries; pip install "
            "'memplan[trace]'"
        )
    _silence()
    if names == BITSANDBYTES:
        load("bitsandbytes")


def require_optimizer(name: str, library: str) -> None:
    """UsageError where the package of OPTIONAL that has an optimizer is not installed."""
    if find_spec(library) is None:
        package = OPTIONAL[library]
        raise UsageError(
            f"{package} not installed: {name} is its optimizer, and the trace engine runs the real one; "
            f"pip install {package}, or use --engine formula"
        )


def has_causal_model(model_type: str) -> bool:
    """Whether everything is installed that a trace needs, and transformers lists a model with a language
    modeling head for a model_type: read from its table as text, since importing it takes seconds.
    """
    if any(find_spec(name) is None for name in TRACE):
        return False
    spec = find_spec("transformers")
    places = spec.submodule_search_locations if spec is not None else None
    table = Path(next(iter(places or ()), "")) / "models" / "auto" / "modeling_auto.py"
    try:
        return f'("{model_type}", ' in table.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def load(name: str) -> Any:
    """Import peft or bitsandbytes, which peft imports. bitsandbytes 0.50 backends/cpu/ops.py asks the hub for
    a CPU kernel while it is imported, where the package `kernels` is installed: memplan touches no network,
    so that package is out of sight until it has been.
    """
    if "bitsandbytes" not in sys.modules and find_spec("bitsandbytes") is not None:
        _silence()
        with out_of_sight("kernels"):
            import_module("bitsandbytes")
    return import_module(name)


@contextlib.contextmanager
def out_of_sight(package: str) -> Iterator[None]:
    """Whoever asks for this package meanwhile finds that it is not installed."""
    seen = {package: sys.modules[package]} if package in sys.modules else {}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(seen)


def _silence() -> None:
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # on import it warns of CPU kernels that it lacks: nothing about memory
