"""What stands for a page in the tests of `memplan ui`: a worker process imports this by its name."""

from __future__ import annotations

import os
import time

from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError


def of_process(model: Model, setup: Setup) -> str:
    return f"{os.getpid()}"


def of_environment(model: Model, setup: Setup) -> str:
    return " ".join(f"{name}={value}" for name, value in os.environ.items())


def endless(model: Model, setup: Setup) -> str:
    while True:
        pass


def refused(model: Model, setup: Setup) -> str:
    raise UsageError("no such thing")


def wrong(model: Model, setup: Setup) -> str:
    raise ZeroDivisionError("our mistake")


def slow(model: Model, setup: Setup) -> str:
    time.sleep(0.5)
    return f"{os.getpid()}"
