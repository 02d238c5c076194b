"""What a person may write in a Setup: pydantic enforces the annotations of Setup's fields, strictly.

Apart from setup.py because making a pydantic model takes longer than a prediction: a setup that is made of
our own tables' defaults alone is not checked at run time (a test checks them all).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from memplan.planner.inputs.validation_text import refusal
from memplan.planner.tables.errors import UsageError, shown
from memplan.planner.tables.fused_kernels import FusedKernel as FusedKernel  # Setup names these
from memplan.planner.tables.losses import Loss as Loss
from memplan.planner.tables.mixer_kernels import MixerKernel as MixerKernel
from memplan.planner.tables.sdp import Attention as Attention

FloatType = Literal["bfloat16", "float16", "float32"]
Count = Annotated[int, Field(ge=1, le=10**7)]
Size = Annotated[int, Field(ge=1, le=10**9)]
Rank = Annotated[int, Field(ge=1, le=10**6)]
Alpha = Annotated[int | float, Field(gt=0, le=10**9)]
Dropout = Annotated[int | float, Field(ge=0, lt=1)]
Share = Annotated[int | float, Field(gt=0, lt=1)]
Rate = Annotated[int | float, Field(gt=0, le=1000)]
Gpus = Annotated[int, Field(ge=1, le=65536)]
Elements = Annotated[int, Field(ge=0, le=10**13)]
CheckpointQuant = Literal[
    "none",
    "bitsandbytes",
    "bitsandbytes-mixed",
    "fp8",
    "gptq",
    "awq",
    "auto-round",
    "mxfp4",
    "compressed-tensors",
    "fbgemm_fp8",
    "nvfp4",
    "hqq",
    "quanto",
    "eetq",
    "torchao",
]  # "none", and the formats of planner/inputs/quantized.py
Place = Annotated[int, Field(ge=0, le=10**4)]
Bucket = Literal["auto"] | Elements

NAME_LISTS = (
    "targets",
    "modules_to_save",
    "target_parameters",
    "trained_parameters",
    "images",
    "optim_targets",
    "fused_kernels",
    "mixer_kernels",
)
NUMBER_LISTS = ("layers_to_transform",)


@cache
def _model(record: type) -> type[BaseModel]:
    hints = get_type_hints(record, globalns=globals(), include_extras=True)
    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items() if name != "origins"}
    return create_model(record.__name__, __config__=ConfigDict(strict=True, extra="forbid"), **fields)


def check(record: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record's fields (Setup's), each present and legal; lists and comma-separated text have
    become tuples of names.

    Raises UsageError naming the first field that is wrong, its value and what was expected.
    """
    read = dict.fromkeys(NAME_LISTS, _as_tuple) | dict.fromkeys(NUMBER_LISTS, _as_numbers)
    values = {name: read[name](value) if name in read else value for name, value in values.items()}
    try:
        found = _model(record)(**values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        schema = _model(record).model_json_schema()["properties"].get(key)
        if schema is None:
            raise UsageError(f"{key} is not a setting") from None
        raise UsageError(refusal(key, schema, shown(values.get(key)))) from None
    return {name: getattr(found, name) for name in values}


def check_number(record: type, field: str, key: str, value: int | float) -> None:
    """Raises UsageError naming `key`, the word that a file has for a record's field, where the field takes no
    such number.
    """
    adapter = _of_field(record, field)
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        raise UsageError(refusal(field, adapter.json_schema(), shown(value), key)) from None


@cache
def _of_field(record: type, field: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(record, globalns=globals(), include_extras=True)[field])


def _as_tuple(value: Any) -> Any:
    """Lists (from JSON and YAML) and comma-separated text (from a command line) become tuples."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list) else value


def _as_numbers(value: Any) -> Any:
    """The same of whole numbers, and of runs of them such as 0-7; text that is none is left to the check."""
    value = _as_tuple([value] if isinstance(value, int) else value)
    if not isinstance(value, tuple):
        return value
    found: list[Any] = []
    for part in value:
        ends = str(part).split("-")
        if isinstance(part, str) and len(ends) < 3 and all(end.isdecimal() and len(end) < 6 for end in ends):
            found += range(int(ends[0]), int(ends[-1]) + 1)
        else:
            found.append(part)
    return tuple(found)
