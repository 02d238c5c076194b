"""read_file: whatever a person has (a training file, a script, a notebook, a shell file, a text) as what it
says.
"""

from __future__ import annotations

from pathlib import Path

from memplan.planner.importers.document import read_text
from memplan.planner.importers.files import read_training_file
from memplan.planner.importers.pieces import take_apart
from memplan.planner.importers.rules import Imported
from memplan.planner.importers.shell import read_shell
from memplan.planner.importers.snippet import read_snippet
from memplan.planner.tables.errors import UsageError

SHELL = (".sh", ".bash", ".slurm", ".sbatch")
SOURCES = (".py", ".ipynb", ".md", ".txt")


def read_file(path: Path) -> Imported:
    """The setup that a file describes. A text or a notebook whose Python says nothing is read for the launch
    lines in it. UsageError where there is neither.
    """
    if path.suffix in SHELL:
        return read_shell(read_text(path), path.name, path.parent)
    if path.suffix not in SOURCES:
        return read_training_file(path)
    source = read_text(path)
    try:
        return read_snippet(source, path.name)
    except UsageError:
        shell = take_apart(source, path.name).shell
        if not shell.strip():
            raise
    return read_shell(shell, path.name, path.parent)
