"""What one process leaves: its moments, the allocator's history with the lines that asked, and who owned
what.
"""

import json
import os

import torch

from memplan_inside.lines import of_user

MOST_EVENTS = 3_000_000
_KINDS = {"alloc": 0, "free_requested": 1, "oom": 2}
_SEGMENTS = {"segment_alloc": 3, "segment_map": 3, "segment_free": 4, "segment_unmap": 4}


def write(watch):
    """The report of a process, renamed into place when it is whole."""
    from memplan_inside import values

    snapshot_file = os.environ.get("MEMPLAN_DRYRUN_SNAPSHOT")
    if snapshot_file and watch.step >= 0:
        torch.cuda.memory._dump_snapshot(snapshot_file)
    traces = torch.cuda.memory._snapshot()["device_traces"]
    lines = _Lines()
    document = {
        "process": watch.process,
        "parent": os.getppid(),
        "rank": int(os.environ.get("RANK", "0")),
        "outcome": watch.outcome,
        "error": watch.error,
        "error_line": getattr(watch, "error_line", ""),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "steps": max(watch.counts.values(), default=0),
        "optimizers": len(watch.counts),
        "expandable": "expandable_segments:true"
        in os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")).lower(),
        "moments": watch.moments,
        "marks": watch.marks,
        "claims": watch.claims,
        "notes": sorted(values.notes),
        "events": [
            [
                _event(entry, lines)
                for entry in trace
                if entry["action"] in _KINDS or entry["action"] in _SEGMENTS
            ]
            for trace in traces
        ],
        "lines": lines.table,
    }
    path = os.path.join(os.environ["MEMPLAN_DRYRUN_REPORTS"], f"report-{watch.process}.json")
    with open(path + ".part", "w") as file:
        json.dump(document, file)
    os.replace(path + ".part", path)


class _Lines:
    """Source lines by number, each once."""

    def __init__(self):
        self.table, self._numbers, self._user = [], {}, {}

    def number(self, frame):
        key = frame["filename"], frame["line"], frame["name"]
        if key not in self._numbers:
            self._numbers[key] = len(self.table)
            self.table.append(f"{key[0]}:{key[1]} {key[2]}")
        return self._numbers[key]

    def is_user(self, path):
        if path not in self._user:
            self._user[path] = of_user(path)
        return self._user[path]


def _event(entry, lines):
    """[kind, address or free bytes, bytes] and, of an allocation: the user's line, the library's line,
    recomputed or not.
    """
    action = entry["action"]
    kind = _KINDS.get(action, _SEGMENTS.get(action))
    address = entry.get("device_free" if action == "oom" else "addr", 0)
    if action not in ("alloc", "oom"):
        return [kind, address, entry.get("size", 0)]
    user = library = -1
    recomputed = nested = 0
    for frame in entry.get("frames") or ():
        path = frame["filename"]
        if "memplan_inside" in path:
            continue
        if library < 0 and "/torch/" not in path:
            library = lines.number(frame)
        if user < 0 and lines.is_user(path):
            user = lines.number(frame)
        if frame["name"] == "_engine_run_backward":
            nested = 1  # a backward pass inside a recomputation (reentrant checkpointing)
        if path.endswith("torch/utils/checkpoint.py") and not nested:
            recomputed = 1
    return [kind, address, entry.get("size", 0), user, library, recomputed]
