"""The words that every importer is written in: a table from a file's key to a Setup field, or to the reason
why it moves no memory.

Walking a document against such a table gives facts (field or intermediate name -> value) and one report for
every key: used, ignored (known, moves no memory), not modeled (known, moves memory, memplan does not follow
it) or unknown. Nothing is silent.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memplan.planner.inputs.setup import FIELDS, Setup
from memplan.planner.tables.errors import UsageError, shorten, shown
from memplan.planner.tables.pictures import WITHOUT_SIZES

Status = Literal["used", "ignored", "not_modelled", "unknown"]
Facts = dict[str, Any]
Reader = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What became of one key of a file; `note` says why, and never quotes a value that was not used."""

    key: str
    status: Status
    note: str = ""

    def to_document(self) -> dict[str, str]:
        """The key as the JSON of an imported file has it."""
        return {"key": self.key, "status": self.status, "note": self.note}


@dataclass(frozen=True, slots=True)
class Rule:
    """What one key means. `harmless` are the values with which a key that is not modeled moves nothing."""

    status: Status
    fact: str = ""
    read: Reader | None = None
    why: str = ""
    harmless: tuple[Any, ...] = (None, False, "none", "None", "", 0)
    inner: Mapping[str, Rule] | None = None
    errs: Literal["", "high", "low"] = ""  # which way a prediction without this is wrong, where that is known


@dataclass(slots=True)
class Imported:
    """A training file as memplan understands it: `fields` go to
    `memplan.planner.inputs.setup.resolve(imported=...)`.
    """

    format: str
    source: str
    model: str | None
    fields: dict[str, Any]
    keys: list[KeyReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beside: list[str] = field(
        default_factory=list
    )  # other files that this one names: an accelerate or DeepSpeed file
    named_attention: str = ""  # the kernel that the file names, where `fields` has the nearest in its place
    before_ampere: dict[str, Any] = field(default_factory=dict)
    """Of code that asks whether the GPU has bfloat16: the fields where it has none."""
    config: dict[str, Any] = field(default_factory=dict)  # over the model's own config.json
    new_tokens: int = 0  # that its tokenizer may lack
    linear_modules: bool = False  # "all linear layers" are meant by name, as its stack lists them
    row_multiple: int = 1  # in steps of which its vocabulary then grows

    def fields_on(self, gpu: str | None) -> dict[str, Any]:
        """The Setup fields on the GPU that is named, which decides what code that asks it does."""
        from memplan.planner.tables.gpus import find_gpu

        capability = find_gpu(gpu).capability if gpu is not None and self.before_ampere else None
        return self.before_ampere if capability is not None and capability < (8, 0) else self.fields

    def by_status(self, status: Status) -> list[KeyReport]:
        """The keys of one status, in the file's order."""
        return [report for report in self.keys if report.status == status]

    def not_modelled(self) -> list[str]:
        """What the file asks for that is not counted, and that could make the run need more."""
        high = tuple(f"{report.key} is not modeled" for report in self.by_status("not_modelled"))
        less = [w for w in self.warnings if w.startswith(high) and w.endswith(SIDE["high"])]
        uncounted = [
            f"{report.key} ({report.note})"
            for report in self.by_status("not_modelled")
            if not any(w.startswith(f"{report.key} is not modeled") for w in less)
        ]
        start, end = UNMODELED.split("{}")
        larger = [
            f"{w.partition(end)[0]} (its states may be larger than those assumed)"
            for w in self.warnings
            if w.startswith(start) and f"{end}: assuming" in w and not w.endswith(SIDE["high"])
        ]
        return uncounted + larger

    def to_document(self) -> dict[str, Any]:
        """What was read of the file, as JSON has it."""
        fields = {
            key: list(value) if isinstance(value, tuple) else value for key, value in self.fields.items()
        }
        return {
            "format": self.format,
            "source": self.source,
            "model": self.model,
            "fields": fields,
            "keys": [report.to_document() for report in self.keys],
            "warnings": self.warnings,
            "notes": self.notes,
        }


UNMODELED = "optimizer {} is not modeled"
SIDE = {
    "": "",
    "high": ", so the prediction errs on the high side",
    "low": ", so the prediction errs on the low side",
}


def use(fact: str, read: Reader | None = None, why: str = "") -> Rule:
    """A key that sets `fact`: a Setup field, or an intermediate name that starts with an underscore."""
    return Rule("used", fact, read, why)


PICTURES, TOWER = WITHOUT_SIZES


def frozen(key: str, value: Any) -> str:
    """What a switch that freezes a part says of it. Raises UsageError."""
    return "frozen" if flag(key, value) else "trained"


def not_modelled(
    why: str,
    harmless: Iterable[Any] = (),
    errs: Literal["", "high", "low"] = "",
    matters: Reader | None = None,
) -> Rule:
    """A key that moves memory and that no Setup field follows: a warning where it is set to something that
    matters, which `matters` says of a value where that is no short list.
    """
    off = (None, False, "none", "None", "", 0, *harmless)
    return Rule("not_modelled", read=matters, why=why, harmless=off, errs=errs)


def nested(rules: Mapping[str, Rule]) -> Rule:
    """The rule of a mapping whose keys have rules of their own."""
    return Rule("used", inner=rules)


def ignored(why: str, names: str) -> dict[str, Rule]:
    """A table of keys (separated by blanks; `*` matches) that are known and move no memory of the training
    step.
    """
    return {name: Rule("ignored", why=why) for name in names.split()}


def walk(
    rules: Mapping[str, Rule], document: Mapping[Any, Any], prefix: str = ""
) -> tuple[Facts, list[KeyReport], list[str]]:
    """Facts, one report for each key, and warnings, of a parsed document. UsageError where a used key's value
    makes no sense.
    """
    facts: Facts = {}
    reports: list[KeyReport] = []
    warnings: list[str] = []
    for raw, value in document.items():
        key = shorten(prefix + str(raw))
        rule = find_rule(rules, str(raw))
        if rule is None:
            reports.append(KeyReport(key, "unknown"))
            close = next((name for name in rules if "*" not in name and one_edit(str(raw), name)), None)
            meant = f" (did you mean {close}?)" if close and len(str(raw)) > 3 else ""
            warnings.append(f"unknown key {key}{meant}: memplan does not know whether it moves memory")
        elif rule.inner is not None and isinstance(value, Mapping):
            inner_facts, inner_reports, inner_warnings = walk(rule.inner, value, f"{prefix}{raw}.")
            facts |= inner_facts
            reports += inner_reports or [KeyReport(key, "ignored", "empty")]
            warnings += inner_warnings
        elif value is None and rule.status != "ignored":
            reports.append(KeyReport(key, "ignored", "empty"))
        elif rule.status == "used" and rule.fact:
            facts[rule.fact] = rule.read(key, value) if rule.read else value
            _within_bounds(rule.fact, key, facts[rule.fact])
            reports.append(KeyReport(key, "used", rule.why))
        elif rule.status == "not_modelled":
            harmless = any(value == item and type(value) is type(item) for item in rule.harmless)
            harmless = harmless or (rule.read is not None and not rule.read(key, value))
            reports.append(
                KeyReport(key, "ignored" if harmless else "not_modelled", "off" if harmless else rule.why)
            )
            if not harmless:
                warnings.append(f"{key} is not modeled: {rule.why}{SIDE[rule.errs]}")
        elif rule.inner is not None:
            raise bad(key, value, "a mapping")
        else:
            reports.append(KeyReport(key, "ignored", rule.why))
    return facts, reports, warnings


def _within_bounds(fact: str, key: str, value: Any) -> None:
    """UsageError naming the file's key where a number is beyond what the Setup field takes."""
    if fact in FIELDS and type(value) in (int, float):
        from memplan.planner.inputs.checking import check_number

        check_number(Setup, fact, key, value)


def one_edit(word: str, known: str) -> bool:
    """Whether one letter more, less or other, or two neighbors swapped, make `word` the known one: a key
    further away is another key.
    """
    if abs(len(word) - len(known)) > 1 or word == known:
        return False
    pairs = enumerate(zip(word, known, strict=False))
    at = next((n for n, (one, other) in pairs if one != other), min(len(word), len(known)))
    one, other = word[at:], known[at:]
    swapped = one[:2] == other[:2][::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]


def find_rule(rules: Mapping[str, Rule], key: str) -> Rule | None:
    """The rule for one key: its own, else that of a pattern, else None."""
    if key in rules:
        return rules[key]
    return next(
        (rule for pattern, rule in rules.items() if "*" in pattern and fnmatch.fnmatchcase(key, pattern)),
        None,
    )


def bad(key: str, value: Any, expected: str) -> UsageError:
    """The error for a value that a used key cannot have."""
    return UsageError(f"{key} is {shown(value)}: expected {expected}")


def integer(key: str, value: Any) -> int:
    """A whole number, also as text (launch lines and some YAML files quote them)."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**12:
        raise bad(key, value, "a whole number of at least 1")
    return value


def number(key: str, value: Any) -> float | int:
    """A finite number, also where it is written as text. Raises UsageError otherwise."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise bad(key, value, "a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 10**12:
        raise bad(key, value, "a number")
    return value


TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")


def flag(key: str, value: Any) -> bool:
    """A truth value in any of its spellings. Raises UsageError otherwise."""
    if isinstance(value, str) and value.lower() in (*TRUE, *FALSE):
        return value.lower() in TRUE
    if not isinstance(value, bool) and value not in (0, 1):
        raise bad(key, value, "true or false")
    return bool(value)


def text(key: str, value: Any) -> str:
    """A name of 1 to 1,000 characters. Raises UsageError otherwise."""
    if not isinstance(value, str) or not value.strip() or len(value) > 1000:
        raise bad(key, value, "a name")
    return value.strip()


def names(key: str, value: Any) -> tuple[str, ...]:
    """Module names: a list, or text separated by commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise bad(key, value, "a list of module names")
    return tuple(part.strip() for part in parts if part.strip())


def whole_numbers(key: str, value: Any) -> tuple[int, ...]:
    """Numbers from 0: a list, or one of them."""
    parts = value if isinstance(value, list) else [value]
    if not all(type(part) is int and part >= 0 for part in parts):
        raise bad(key, value, "whole numbers from 0")
    return tuple(parts)


def one_of(table: Mapping[str, Any]) -> Reader:
    """A reader for a key with a closed set of values."""

    def read(key: str, value: Any) -> Any:
        found = str(value).lower() if isinstance(value, (str, bool, int)) else ""
        if found not in table:
            raise bad(key, value, f"one of {', '.join(table)}")
        return table[found]

    return read


def one_of_text(*legal: str) -> Reader:
    """A reader that accepts these words only."""
    return one_of({word: word for word in legal})


DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
    "torch.half": "float16",
    "torch.float": "float32",
    "auto": None,
}
dtype = one_of(DTYPES)
STORAGE = {"uint8": "uint8", "torch.uint8": "uint8", **{key: value for key, value in DTYPES.items() if value}}


def setup_fields(facts: Facts) -> dict[str, Any]:
    """The facts that are Setup fields: those that do not start with an underscore and have a value."""
    return {key: value for key, value in facts.items() if not key.startswith("_") and value is not None}
