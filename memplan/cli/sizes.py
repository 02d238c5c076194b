"""The answer where no model is named: `memplan fit --gpu NAME`, and a training file whose model only its
caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan import api
from memplan.planner.answers.verdict import not_counted, uncounted_of
from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.gpus import context_bytes, find_gpu, said_of


def answer_by_size(setup: Setup, methods: Sequence[str], as_json: bool, notes: Sequence[str] = ()) -> int:
    """Print what models of every size need; 1 where a GPU is named and nothing fits it."""
    from memplan.planner import __version__
    from memplan.planner.answers.fit.sizes import SCHEMA, by_size

    gpu = find_gpu(setup.gpu) if setup.gpu else None
    found = by_size(setup, gpu, context_bytes(None), api.recorded_accuracy("formula").margin, methods)
    missing = tuple(uncounted_of(setup, gpu))
    known = (said_of(gpu) if gpu else "", not_counted(missing) if missing else "")
    said = [*notes, *filter(None, known)]
    if as_json:
        from memplan.render.json import write

        write(
            {
                "schema": SCHEMA,
                "memplan_version": __version__,
                "gpu": gpu.to_document() if gpu else None,
                "setup": setup.to_document(),
                "rows": [entry.to_document() for entry in found],
                "notes": said,
            }
        )
    else:
        from memplan.render.console import show
        from memplan.render.sizes import sizes_screen

        show(*sizes_screen(found, setup, gpu, said))
    return 1 if gpu and all(entry.error is not None or entry.verdict == "no" for entry in found) else 0
