"""What a command is about: MODEL and the options, or a training file, or a launch line -> a model, a complete
Setup, and what was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan import api
from memplan.cli.options import file_fields, given_fields
from memplan.planner.inputs.models import Model
from memplan.planner.inputs.setup import Setup
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten

if TYPE_CHECKING:
    from memplan.planner.importers.rules import Imported

TRAINING_FILES = (".yaml", ".yml", ".py", ".ipynb", ".md")


@dataclass(frozen=True, slots=True)
class Subject:
    """One model under one setup; `imported` is the training file that said so, None where MODEL and the
    options did.
    """

    model: Model
    setup: Setup
    imported: Imported | None = None

    def annotate(self, prediction: Prediction) -> Prediction:
        """`prediction` with what reading the training file found: its warnings and notes; the document has
        all of it.
        """
        if self.imported is None:
            return prediction
        notes = (f"interpreted as {self.imported.format} from {self.imported.source}", *self.imported.notes)
        return prediction.with_(
            assumptions=(*notes, *prediction.assumptions),
            warnings=(*prediction.warnings, *self.imported.warnings),
            extra={**prediction.extra, "import": self.imported.to_document()},
        )


def read_subject(model: str, options: Mapping[str, Any]) -> Subject:
    """The subject of a command line; options override --setup FILE, which overrides a training file. Raises
    UsageError, NetworkError.
    """
    if is_training_file(model):
        from memplan.planner.importers.files import read_training_file

        return _imported(read_training_file(Path(model).expanduser()), options)
    found, setup = api.request(model, imported=file_fields(options), **given_fields(options))
    return Subject(found, setup)


def read_launch_line(words: Sequence[str], options: Mapping[str, Any]) -> Subject:
    """The subject of a launch line as typed (accelerate, torchrun, trl, axolotl, llamafactory-cli, ...).
    Raises UsageError.
    """
    from memplan.planner.importers.launch import read_launch

    return _imported(read_launch(list(words)), options)


def is_training_file(text: str) -> bool:
    """Whether MODEL is a file that says how to train, by its ending; a .json file is one where it is no
    model's config.
    """
    if text.endswith(TRAINING_FILES):
        return True
    if not text.endswith(".json") or not Path(text).is_file():
        return False
    from memplan.planner.importers.files import read_mapping, recognize

    content = read_mapping(Path(text))
    return "model_type" not in content and recognize(content) is not None


def _imported(imported: Imported, options: Mapping[str, Any]) -> Subject:
    if not imported.model:
        raise UsageError(
            f"'{shorten(imported.source)}' does not name a base model: add it there, or pass MODEL "
            "and the file's settings as options"
        )
    fields = {**imported.fields, **file_fields(options)}
    found, setup = api.request(imported.model, imported=fields, **given_fields(options))
    return Subject(found, setup, imported)
