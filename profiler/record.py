"""Measurement: what one real run needed, and its document `memplan.measurement/1`. No torch here.

A record's identity is the hash of what decides its numbers: model, setup, cap, steps, GPU and library
versions. Records are found again by it, not by file name, so that an interrupted campaign does only what is
missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from memplan.planner import __version__
from memplan.planner.inputs.setup import FIELDS, Setup, checked
from memplan.planner.inputs.textfile import read_text
from memplan.planner.prediction import Peak, check_schema
from memplan.planner.tables.components import COMPONENTS
from memplan.planner.tables.defaults import BASE
from memplan.planner.tables.errors import UsageError, shown
from memplan.planner.tables.torch_versions import nearest
from memplan.profiler.expect import expect, part, sequence
from memplan.profiler.files import LARGEST, line_of, read_document, write_document
from memplan.profiler.naming import file_name as file_name
from memplan.profiler.naming import folder_of as folder_of
from memplan.profiler.naming import identity_of as identity_of
from memplan.profiler.naming import is_dry as is_dry
from memplan.profiler.naming import slug as slug

MEASUREMENT_SCHEMA = "memplan.measurement/1"
Outcome = Literal["ok", "oom", "error"]
MEASURED_COMPONENTS = (*COMPONENTS, "unattributed")
RAW = "raw"
"""The folder beside records that holds predictions, logs and snapshots; readers of records skip it."""


@dataclass(frozen=True, slots=True)
class MeasuredMoment:
    """The peaks inside one moment. `components` (with `unattributed`) add up to `allocated_bytes`;
    `reserved_bytes` is None on CPU, whose allocator caches nothing.
    """

    name: str
    allocated_bytes: int
    reserved_bytes: int | None = None
    components: Mapping[str, int] | None = None
    requested_bytes: int | None = None  # before the allocator rounds to blocks
    active_bytes: int | None = None  # allocated plus blocks that another stream still uses

    def to_document(self) -> dict[str, Any]:
        """This moment as it stands in the memplan.measurement/1 document."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """As memplan.planner.prediction.Peak, with None where the device has no such number: CPU has neither a
    cache nor a context.
    """

    moment: str
    allocated_bytes: int
    reserved_bytes: int | None = None
    context_bytes: int | None = None

    @property
    def device_bytes(self) -> int | None:
        """Reserved bytes plus the CUDA context; None where one of them was not measured."""
        if self.reserved_bytes is None or self.context_bytes is None:
            return None
        return Peak(self.moment, self.allocated_bytes, self.reserved_bytes, self.context_bytes).device_bytes

    def to_document(self) -> dict[str, Any]:
        """This peak as it stands in the memplan.measurement/1 document."""
        return {**dataclasses.asdict(self), "device_bytes": self.device_bytes}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a case ended early. `kind`: oom, exception, crash (a signal), exit (a bare exit), timeout, refused
    (a UsageError).
    """

    kind: str
    message: str
    moment: str | None = None
    requested_bytes: int | None = None  # oom: what was asked for
    free_bytes: int | None = None  # oom: what the device had free
    allocated_bytes: int | None = None  # what the process held when it failed
    reserved_bytes: int | None = None

    def to_document(self) -> dict[str, Any]:
        """This failure as it stands in the memplan.measurement/1 document."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case, measured. Bytes are ints, times are seconds; None is unknown, never zero."""

    case: str
    model: Mapping[str, Any]  # name, architecture, parameters, config
    setup: Setup
    environment: Mapping[str, Any]
    outcome: Outcome
    steps: int
    cap_bytes: int | None = None
    failure: Failure | None = None
    peak: MeasuredPeak | None = None
    step_peak: MeasuredPeak | None = None
    moments: tuple[MeasuredMoment, ...] = ()
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    retries: int | None = None
    device_bytes: int | None = None  # what NVML charges this process
    step_seconds: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    alignment: Mapping[str, Any] | None = None
    prediction: Mapping[str, Any] | None = (
        None  # memplan.prediction/1, made in the same environment before the run
    )
    recorded_at: str | None = None
    wall_seconds: float | None = None
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The hash of model, setup, cap, steps, GPU and library versions, which tells cases apart."""
        return identity_of(
            self.model.get("config") or self.model.get("name"),
            self.setup,
            self.cap_bytes,
            self.steps,
            self.environment,
        )

    @property
    def dry(self) -> bool:
        """Whether this is the record of a dry run: over stub libraries, no measurement of a GPU."""
        return is_dry(self.environment)

    def moment(self, name: str) -> MeasuredMoment:
        """The peaks of one moment; KeyError where the record has none of that name."""
        for moment in self.moments:
            if moment.name == name:
                return moment
        raise KeyError(name)

    def with_(self, **changes: Any) -> Measurement:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_document(self) -> dict[str, Any]:
        """The contract's `memplan.measurement/1`."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _STRUCTURED}
        return {
            **self.extra,
            "schema": MEASUREMENT_SCHEMA,
            "memplan_version": __version__,
            "identity": self.identity,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()},
            "setup": self.setup.to_document(),
            **{
                key: None if (value := getattr(self, key)) is None else value.to_document()
                for key in ("failure", "peak", "step_peak")
            },
            "moments": [moment.to_document() for moment in self.moments],
        }


@dataclass(frozen=True)
class _Event:
    """What an event that only one side has must say (profiler/align.py)."""

    moment: str
    kind: str
    only: str
    bytes: int
    count: int
    where: str = ""


_STRUCTURED = ("setup", "failure", "peak", "step_peak", "moments", "extra")


def read_setup(document: Mapping[str, Any]) -> Setup:
    """The Setup of a document: keys of a newer version dropped, fields that an older one lacked filled with
    their fallback.
    """
    known = {key: value for key, value in document.items() if key in FIELDS}
    try:
        return checked({**BASE, **known}, dict.fromkeys(known, "record"))
    except UsageError as error:
        names_the_field = str(error).split(" ", 1)[0] in FIELDS
        raise UsageError(f"setup{'.' if names_the_field else ': '}{error}") from None


def _measured_setup(document: Mapping[str, Any], environment: Mapping[str, Any]) -> Setup:
    """The Setup of a record: what it ran on says whose allocator that was, where the record does not."""
    setup, version = read_setup(document), (environment.get("versions") or {}).get("torch")
    if "torch" in document or not isinstance(version, str):
        return setup
    return setup.with_(torch=nearest(version))


def from_document(document: Mapping[str, Any]) -> Measurement:
    """A Measurement from its document. Keys that this version does not know are dropped; UsageError names
    what is missing or wrong.
    """
    check_schema(document, MEASUREMENT_SCHEMA)
    outcome = document.get("outcome")
    if outcome not in get_args(Outcome):
        raise UsageError(f"outcome is {shown(outcome)}, expected {', '.join(get_args(Outcome))}")
    moments = expect(document, "moments", (list,)) or []
    environment = _typed(document, "environment", _ENVIRONMENT)
    for i, event in enumerate(
        expect(expect(document, "alignment", (dict,)) or {}, "unmatched", (list,)) or ()
    ):
        part(_Event, event or {}, f"alignment.unmatched[{i}]")
    measurement = Measurement(
        case=expect(document, "case", (str,), True),
        model=_typed(document, "model", _MODEL),
        setup=_measured_setup(expect(document, "setup", (dict,), True), environment),
        environment=environment,
        outcome=cast(Outcome, outcome),
        steps=expect(document, "steps", (int,), True),
        cap_bytes=expect(document, "cap_bytes", (int,)),
        failure=part(Failure, document.get("failure"), "failure"),
        peak=part(MeasuredPeak, document.get("peak"), "peak"),
        step_peak=part(MeasuredPeak, document.get("step_peak"), "step_peak"),
        moments=tuple(
            part(MeasuredMoment, moment or {}, f"moments[{i}]") for i, moment in enumerate(moments)
        ),
        step_seconds=sequence(document, "step_seconds", (int, float)),
        warnings=sequence(document, "warnings", (str,)),
        **{key: expect(document, key, kinds) for key, kinds in _PLAIN.items()},
    )
    if outcome == "ok" and (measurement.peak is None or not measurement.moments):
        raise UsageError("outcome is ok, but peak or moments are missing")
    _check_identity(document, measurement)
    return measurement


def _check_identity(document: Mapping[str, Any], measurement: Measurement) -> None:
    """Raises UsageError where this version wrote the record and its content has changed since."""
    stored = document.get("identity")
    if stored in (None, measurement.identity) or document.get("memplan_version") != __version__:
        return
    raise UsageError(
        f"identity is {shown(stored)}, its content gives {measurement.identity}: the record was edited or cut"
    )


def _typed(document: Mapping[str, Any], key: str, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """An object of a record, of which what is read has its type."""
    found: dict[str, Any] = expect(document, key, (dict,), True)
    for name, kind in kinds.items():
        expect({f"{key}.{name}": found.get(name)}, f"{key}.{name}", kind)
    return found


_MODEL: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "config": (dict,),
    "architecture": (str,),
    "parameters": (int,),
}
_ENVIRONMENT: dict[str, tuple[type, ...]] = {
    "device": (str,),
    "gpu": (str,),
    "capability": (list,),
    "total_bytes": (int,),
    "context_bytes": (int,),
    "versions": (dict,),
}
_PLAIN: dict[str, tuple[type, ...]] = {
    "trainable_parameters": (int,),
    "total_parameters": (int,),
    "retries": (int,),
    "device_bytes": (int,),
    "tokens_per_second": (int, float),
    "flops_per_second": (int, float),
    "alignment": (dict,),
    "prediction": (dict,),
    "recorded_at": (str,),
    "wall_seconds": (int, float),
}


def load(path: Path | str) -> Measurement:
    """Read one record. UsageError (naming the file) for another schema, a newer major version, or a
    half-written file.
    """
    path = Path(path)
    document = read_document(path)
    try:
        return from_document(document)
    except UsageError as error:
        line = line_of(read_text(path, LARGEST), str(error))
        raise UsageError(f"{path}{f', line {line}' if line else ''}: {error}") from None


def save(measurement: Measurement, path: Path | str) -> Path:
    """Write one record atomically; an existing file is never overwritten (UsageError)."""
    return write_document(Path(path), measurement.to_document())


def save_in(measurement: Measurement, folder: Path) -> Path:
    """Write one record into a folder under its own name; a repeated run of the same case gets the next
    number.
    """
    path = folder / file_name(measurement.case, measurement.identity)
    for number in range(2, 1000):
        if not path.exists():
            break
        path = path.with_name(f"{file_name(measurement.case, measurement.identity)[:-5]}.{number}.json")
    return save(measurement, path)


def scan(folder: Path) -> tuple[list[tuple[Path, Measurement]], list[str]]:
    """Every record under a folder, in order of name, and one message for each file that is none. Folders
    named `raw` are skipped.
    """
    found: list[tuple[Path, Measurement]] = []
    problems: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        if RAW in path.relative_to(folder).parts[:-1] or path.name.startswith("."):
            continue
        try:
            found.append((path, load(path)))
        except UsageError as error:
            problems.append(str(error))
    return found, problems
