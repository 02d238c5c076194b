"""memplan.fit, memplan.compare, memplan.oom: the commands' answers in Python. Computes nothing itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memplan import api
from memplan.planner.answers.oom import OutOfMemoryMessage, read_oom
from memplan.planner.answers.oom_explain import cards_that_hold, explain
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import budget, find_gpu

if TYPE_CHECKING:
    from memplan.planner.answers.compare import Column
    from memplan.planner.answers.fit.decide import Prefer
    from memplan.planner.answers.search import Fit


@dataclass(frozen=True, slots=True)
class OutOfMemoryAnswer:
    """What an out-of-memory error says: the message's figures in bytes, the explanation in sentences, the
    GPUs that hold what was asked for, and what would have fitted where a model was named.
    """

    message: OutOfMemoryMessage
    explanation: tuple[str, ...]
    gpus: tuple[str, ...]
    advice: tuple[str, ...]


def fit(
    model: api.ModelLike,
    setup: Setup | None = None,
    *,
    prefer: Prefer = "quality",
    tasks: int = 1,
    serve: bool = False,
    **fields: Any,
) -> Fit:
    """What fits a GPU, as `memplan fit`: `memplan.fit("llama-7b", gpu="rtx-3090").decision.method`.

    `fields` are Setup fields or the command line's names (batch, seq, checkpointing=True). Raises UsageError
    where no GPU is named.
    """
    from memplan.planner.answers.search import fit as search

    found, complete = api.request(model, setup, **fields)
    if complete.gpu is None:
        raise UsageError("fit needs a GPU: gpu='rtx-3090' (memplan list gpus), or a budget such as '23.5GiB'")
    gpu = find_gpu(complete.gpu)
    if api.traced_alone(found, complete):
        return api.fit_by_trace(found, complete, gpu, prefer=prefer, tasks=tasks, serve=serve)
    error = api.recorded_accuracy("formula").margin
    return search(found.spec(), complete, gpu, error=error, prefer=prefer, tasks=tasks, serve=serve)


def compare(
    model: api.ModelLike,
    setup: Setup | None = None,
    *,
    methods: Iterable[str] | None = None,
    engine: str | None = None,
    **fields: Any,
) -> tuple[Column, ...]:
    """Methods side by side, as `memplan compare`: each with its `prediction`, or `error`, why it has none.

    `methods` by name; default: full, lora, adalora, qlora. Raises UsageError.
    """
    from memplan.planner.answers.compare import METHODS_COMPARED, columns

    found, complete = api.request(model, setup, **fields)
    gpu = find_gpu(complete.gpu) if complete.gpu is not None else None
    error = api.recorded_accuracy("formula").margin

    def predict(this: Setup) -> Prediction:
        return api.predict(found, this, engine)

    names = METHODS_COMPARED if methods is None else tuple(methods)
    spec = None if api.traced_alone(found, complete) else found.spec()
    return tuple(columns(spec, complete, predict, dict.fromkeys(names), gpu, error))


def oom(log: str, model: api.ModelLike | None = None, **fields: Any) -> OutOfMemoryAnswer:
    """torch's out-of-memory error in a log's text, explained, as `memplan oom`; with a model and the fields
    of its setup, what would have fitted. Raises UsageError where the log has no such error.
    """
    from memplan.planner.answers.search import advise

    message = read_oom(log)
    host = message.device == "host"
    checkpoint, advice = None, []
    if model is not None:
        found, setup = api.request(model, **fields)
        if host:
            checkpoint = 2 * found.spec().parameters
        elif message.capacity is None:
            raise UsageError("the message does not state the GPU's capacity: use memplan.fit with a GPU")
        else:
            room = message.capacity - (message.other_processes or 0)
            advice = advise(found.spec(), setup, budget(f"{room}B"))
    gpus = tuple(gpu.name for gpu in cards_that_hold(message))
    return OutOfMemoryAnswer(message, tuple(explain(message, checkpoint)), gpus, tuple(advice))
