"""What a command is about: MODEL and the options, or a training file, or a launch line -> a model, a complete
Setup, and what was read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan import api
from memplan.cli.options import file_fields, given_fields
from memplan.planner.answers.verdict import withhold
from memplan.planner.inputs.models import Model, find
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.prediction import Prediction
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.pictures import WITHOUT_SIZES
from memplan.planner.tables.sdp import FLASH_2

if TYPE_CHECKING:
    from memplan.planner.importers.rules import Imported
    from memplan.planner.inputs.batches import Loader

TRAINING_FILES = (".yaml", ".yml", ".py", ".ipynb", ".md", ".sh", ".bash", ".slurm", ".sbatch")


def open_setup(imported: Imported, options: Mapping[str, Any]) -> Setup:
    """The Setup of a training file whose model is open. Raises UsageError."""
    given = given_fields(options)
    if given.get("gpu") is not None:
        given["gpu"] = api.setup_gpu(given["gpu"])
    return resolve(given, imported={**imported.fields_on(given.get("gpu")), **file_fields(options)})


@dataclass(frozen=True, slots=True)
class Subject:
    """One model under one setup; `imported` is the training file that said so, None where MODEL and the
    options did.
    """

    model: Model
    setup: Setup
    imported: Imported | None = None
    loader: Loader | None = None  # of --lengths: `setup` is that of its longest batch

    def predict(self, setup: Setup, engine: str | None = None) -> Prediction:
        """The prediction of this model under a setup, with what --lengths make of it."""
        if self.loader is None:
            return api.predict(self.model, setup, engine)
        from memplan.lengths import predict

        return predict(self.model, setup, self.loader, engine)

    def annotate(self, prediction: Prediction) -> Prediction:
        """`prediction` with what reading the training file found: its warnings and notes; the document has
        all of it.
        """
        if self.imported is None:
            return prediction
        notes = (f"interpreted as {self.imported.format} from {self.imported.source}", *self.imported.notes)
        found = prediction.with_(
            assumptions=(*notes, *prediction.assumptions),
            warnings=(
                *prediction.warnings,
                *(said for said in self.imported.warnings if not any(each in said for each in self._settled)),
            ),
            extra={**prediction.extra, "import": self.imported.to_document()},
        )
        return self.bounded(found)

    @property
    def not_modelled(self) -> tuple[str, ...]:
        """What the training file asks for and nothing counts; pictures are counted where their sizes are
        said, new tokens where the vocabulary is.
        """
        missing = () if self.imported is None else tuple(self.imported.not_modelled())
        if self.loader is not None:
            from memplan.lengths import uncounted

            missing = (*missing, *uncounted(self.model, self.setup, self.loader))
        ends = tuple(f"({each})" for each in self._settled)
        return tuple(text for text in missing if not text.endswith(ends))

    @property
    def _settled(self) -> tuple[str, ...]:
        """What would lack by the file alone, and is said elsewhere."""
        sizes = WITHOUT_SIZES if self.setup.images else ()
        if self.imported is None or self.setup.vocabulary is None:
            return tuple(sizes)
        from memplan.planner.importers.resized import NEW_ROWS

        return (*sizes, NEW_ROWS)

    def bounded(self, prediction: Prediction) -> Prediction:
        """The prediction of this subject or of a variant: a lower bound where the file asks for more."""
        return withhold(prediction, self.not_modelled)


def read_subject(model: str, options: Mapping[str, Any]) -> Subject:
    """The subject of a command line; options override --setup FILE, which overrides a training file. Raises
    UsageError, NetworkError.
    """
    if is_training_file(model):
        from memplan.planner.importers.anyfile import read_file

        return _imported(read_file(Path(model).expanduser()), options)
    found, setup = api.request(model, imported=file_fields(options), **given_fields(options))
    return _with_lengths(Subject(found, setup), options)


def _with_lengths(subject: Subject, options: Mapping[str, Any]) -> Subject:
    """The subject under the setup of the longest batch that --lengths make. Raises UsageError."""
    if options.get("lengths") is None:
        return subject
    from memplan.lengths import applied

    setup, loader = applied(subject.model, subject.setup, options["lengths"])
    return replace(subject, setup=setup, loader=loader)


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
    if not text.endswith(".json") or not os.path.isfile(text):
        return False
    from memplan.planner.importers.files import recognize
    from memplan.planner.inputs.jsonfile import read_json

    content = read_json(Path(text))
    return "model_type" not in content and recognize(content) is not None


class NoModelError(UsageError):
    """A training file that leaves its base model open: `imported` is what it says."""

    def __init__(self, imported: Imported) -> None:
        why = f" ({imported.notes[0]})" if imported.notes else ""
        super().__init__(
            f"'{shorten(imported.source)}' does not name a base model{why}: add it there, or give --model "
            "NAME"
        )
        self.imported = imported


def _imported(imported: Imported, options: Mapping[str, Any]) -> Subject:
    if options.get("base_model"):
        imported.model = options["base_model"]
    if not imported.model:
        raise NoModelError(imported)
    from memplan.planner.importers.changed import applied

    given = given_fields(options)
    model = applied(imported, find(imported.model), {*given, *file_fields(options)})
    fields = {**imported.fields_on(given.get("gpu")), **file_fields(options)}
    found, setup = api.request(model, imported=fields, **given)
    if api.unknown_family(found):
        setup = _with_its_attention(imported, found, setup)
    elif imported.named_attention:
        from memplan.planner.importers.choices import runs_instead

        setup = runs_instead(imported, setup, found.spec())
    return _with_lengths(Subject(found, setup, imported), options)


def _with_its_attention(imported: Imported, found: Model, setup: Setup) -> Setup:
    """The setup of a file for a family that the trace answers, with an attention that its class runs."""
    if setup.attention != FLASH_2 or setup.origins["attention"] == "user":
        return setup
    from memplan.planner.importers.choices import without_flash
    from memplan.planner.run.model import lacks_flash

    lacking = lacks_flash(found.config)
    return without_flash(imported, setup, lacking) if lacking else setup
