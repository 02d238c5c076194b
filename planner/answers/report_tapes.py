"""A structure's step for the page: the tape's log and what its buffers are, from which the page finds the
rows at the peak of any setup as `Program.breakdowns` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan.planner.answers.report_tables import PageTables
from memplan.planner.formula.program import Symbolic
from memplan.planner.formula.tape.peaks import component_of, why_of
from memplan.planner.formula.tape.tape import Tape

if TYPE_CHECKING:
    from memplan.planner.formula.forward.decoder import Guard


def written_structure(structure: Symbolic, tables: PageTables) -> dict[str, Any]:
    """What holds under every guard: `rows` of a batch for each example, the windows, and the load's states,
    each the place of its rows.
    """
    loading = [[name, [tables.rows(s.rows) for s in states]] for name, states in structure.loading.items()]
    return {"rows": structure.rows, "windows": list(structure.windows), "loading": loading}


def written_guard(structure: Symbolic, guard: Guard, tables: PageTables) -> dict[str, Any]:
    """A guard's resident rows and tapes."""
    program = structure.program(guard)
    return {
        "single": guard.single,
        "windows": list(guard.windows),
        "resident": tables.rows(program.resident),
        "tapes": [_tape(tape, names, tables) for tape, names in program.tapes()],
    }


def _tape(tape: Tape, names: tuple[str, ...], tables: PageTables) -> dict[str, Any]:
    """`items`: "kind size" of each kind of buffer; `log`: n where one of the n-th kind is born, ~n where one
    goes, "n:count,..." where several do at once; `marks`: after how many events a moment begins.
    """
    items: dict[tuple[int, int], int] = {}
    which = []
    known: dict[tuple[object, ...], int] = {}  # shapes and sizes by identity: to hash them is slow
    for info in tape.infos:
        component, why = component_of(info), why_of(info)
        same = (info.name, id(info.shape), info.dtype, component, why, id(info.size))
        if same not in known:
            kind = tables.kind(info.name, info.shape, info.dtype, component, why)
            known[same] = items.setdefault((kind, tables.size(info.size)), len(items))
        which.append(known[same])
    log = []
    for index, change in tape.log:
        if index < 0:
            log.append(",".join(f"{which[each]}:{count}" for each, count in change.items()) or ":")
        else:
            log.append(str(which[index] if change > 0 else ~which[index]))
    return {
        "names": list(names),
        "marks": [list(mark) for mark in tape.marks],
        "items": tables.text("items", " ".join(f"{kind} {size}" for kind, size in items)),
        "log": tables.text("log", " ".join(log)),
    }
