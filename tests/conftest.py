"""What a training step holds, counted twice: from the trace's storages, and from real tensors on the CPU. For
the trace's tests.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)
# the same examples on every day: what fails there fails here, with CI=1
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report pages hold what is near the setup asked for, since the rest costs seconds each; a test of that
    takes it back.
    """
    from memplan.planner.answers import report_structures

    monkeypatch.setattr(report_structures, "MOST_EVENTS", 0)


@dataclass
class Held:
    """Bytes by component after the second step, and elements. A storage counts once, by the name of the first
    tensor that holds it.
    """

    weights: dict[str, int]  # parameters and buffers
    gradients: int
    optimizer_states: int
    # sizes of what the last forward saved for backward: no weights, no batch, nothing that step one saved
    saved: Counter[int]
    trainable: int  # elements
    total: int

    def differences(self, other: Held) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, as (self, other); of tables only what differs."""
        found = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        found = {name: (one, two) for name, (one, two) in found.items() if one != two}
        for name, (one, two) in found.items():
            if isinstance(one, dict):
                odd = [key for key in {**one, **two} if one.get(key) != two.get(key)]
                found[name] = ({k: one.get(k) for k in odd}, {k: two.get(k) for k in odd})
        return found


def traced(config: dict[str, Any], setup: Any) -> Held:
    """What the trace says, every layer run."""
    from memplan.planner.trace.device.target import target_of
    from memplan.planner.trace.events.record import record

    log, facts = record(config, setup, target_of(setup), full=True)
    spans = [range(mark.begin, mark.end) for mark in log.marks if (mark.step, mark.moment) == (1, "forward")][
        -1:
    ]
    alive = [s for s in log.storages if s.died is None]
    by = {
        part: sum(s.nbytes for s in alive if s.component == part)
        for part in ("gradients", "optimizer_states")
    }
    saved = Counter(s.nbytes for s in log.storages if s.saved and any(s.born in span for span in spans))
    weights = {s.name: s.nbytes for s in alive if s.component == "weights"}
    return Held(weights, **by, saved=saved, trainable=facts.trainable, total=facts.total)


class Saved:
    """Announcer of a real step that notes every storage saved in each forward. It holds the storages, so that
    no address is used twice.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        self.held = [tensor.untyped_storage() for tensor in known]
        self.storages: dict[int, int] = {}
        self.known = {storage._cdata for storage in self.held}

    @contextmanager
    def announce(self, moment: str, step: int = -1) -> Iterator[None]:
        import torch

        from memplan.planner.run.owners import kept_by_contexts

        if moment != "forward":
            yield
            return
        self.known |= self.storages.keys()
        self.storages = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        with kept_by_contexts(self._pack), hooks:
            yield

    def _pack(self, tensor: Any) -> Any:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            storage = part.untyped_storage()
            self.held.append(storage)
            if storage._cdata not in self.known:
                self.storages[storage._cdata] = storage.nbytes()
        return tensor


def real(config: dict[str, Any], setup: Any) -> Held:
    """What two steps on the CPU hold: the same build and step, real tensors."""
    from memplan.planner.run import step
    from memplan.planner.run.build import build
    from memplan.planner.run.built import logical_numel
    from memplan.planner.run.model import quiet
    from memplan.planner.run.owners import quantization_constants

    with quiet():
        built = build(config, setup, "cpu")
        named = [*built.model.named_parameters(), *built.model.named_buffers()]
        watcher = Saved([*(tensor for _, tensor in named), *built.batch.values()])
        for index in range(2):
            step.run(built, watcher, index)
    weights: dict[int, tuple[str, int]] = {}
    modules = built.model.named_modules()
    constants = [
        (f"{path}.{key}", tensor)
        for path, module in modules
        for key, tensor in quantization_constants(module)
    ]
    for name, tensor in [*built.model.named_parameters(), *built.model.named_buffers(), *constants]:
        weights.setdefault(tensor.untyped_storage()._cdata, (name, tensor.untyped_storage().nbytes()))
    parameters = list(built.model.parameters())
    states = [
        t for state in built.optimizer.state.values() for t in state.values() if hasattr(t, "untyped_storage")
    ]
    importance = getattr(getattr(built.model, "base_model", None), "rankallocator", None)  # AdaLoRA's
    states += [
        t for name in ("ipt", "exp_avg_ipt", "exp_avg_unc") for t in getattr(importance, name, {}).values()
    ]
    return Held(
        weights={name: nbytes for name, nbytes in weights.values() if nbytes},
        gradients=_bytes(p.grad for p in parameters if p.grad is not None),
        optimizer_states=_bytes(states),
        saved=Counter(nbytes for nbytes in watcher.storages.values() if nbytes),
        trainable=sum(logical_numel(p) for p in parameters if p.requires_grad),
        total=sum(logical_numel(p) for p in parameters),
    )


def _bytes(tensors: Iterable[Any]) -> int:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --cov, the lines that run are noted in the first case of each test alone: noting them takes more
    than running them, and the other cases of a parametrized test run the same lines.
    """
    seen: set[tuple[Any, ...]] = set()
    for item in items:
        function = getattr(item, "originalname", item.name)
        key = (item.path, getattr(item, "cls", None), function)
        if key in seen or hasattr(getattr(item, "obj", None), "hypothesis"):
            item.add_marker(pytest.mark.no_cover)
        seen.add(key)


@pytest.fixture(autouse=True)
def overrides_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer's 8-bit optimizer leaves its overrides in bitsandbytes' one manager a process, by place: each
    test begins without them.
    """
    optim = getattr(sys.modules.get("bitsandbytes"), "optim", None)
    if optim is not None:
        monkeypatch.setattr(optim.GlobalOptimManager, "_instance", None)


@pytest.fixture(scope="session")
def held() -> SimpleNamespace:
    """`held.traced(config, setup)` and `held.real(config, setup)`: what a step holds, by the trace and on the
    CPU.
    """
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return SimpleNamespace(traced=traced, real=real)


@pytest.fixture(scope="session")
def shipped_claims(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The shipped claims, checked once a run of pytest: `.file`, `.context`, `.results` by id. The first
    process that asks computes them, the others wait and read what it kept.
    """
    pytest.importorskip("bitsandbytes")  # facts are read by running the libraries
    from filelock import FileLock

    from memplan.validate.claims import check, load
    from memplan.validate.evaluation_context import EvaluationContext
    from memplan.validate.kept import open_kept

    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file = load()
    context = EvaluationContext(models=file.models)
    with FileLock(common / "claims.lock"):
        kept = open_kept(context, file.models, common)
        results = check(file, context, kept)
        kept.write()
    return SimpleNamespace(
        file=file, context=context, results={result.claim.id: result for result in results}, kept=kept
    )
