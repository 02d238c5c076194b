"""Which model a question speaks of: a name of the catalog, or a size such as 65B or 650亿."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import from_catalog, index, names
from memplan.planner.inputs.names import suggestions
from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.reading import Assumption, B, E, Reading

NEAR = 0.12  # a size such as "33B" is the catalog's nearest model within this share of its parameters


def model_of(reading: Reading) -> str:
    """A catalog name, longest first; else a size in parameters."""
    known = {word.lower(): word for word in (*names(), *(i for row in index().values() for i in row["ids"]))}
    for word in sorted(known, key=len, reverse=True):
        pattern = r"[\s\-_]*".join(re.escape(part) for part in re.split(r"[\s\-_]+", word))
        match = re.search(f"{B}{pattern}{E}", reading.text)
        if match:
            model = from_catalog(known[word])
            if model is not None:
                reading.found.append(Assumption("model", model.name, reading.take(match)))
                return model.name
    for pattern, scale in _SIZES:
        match = re.search(pattern, reading.text)
        if match:
            _refuse_other_names(reading.text[: match.start()], match.group().strip(), known)
            count = scale(match)
            name = _nearest(count, match.group().strip())
            said = f"{name}, a model of {count / 1e9:g} billion parameters"
            reading.found.append(
                Assumption("model", said, reading.take(match), f"{name}，作为 {count / 1e8:g} 亿参数的模型")
            )
            return name
    raise UsageError(
        "ask: no model in the sentence: name one (memplan list models) or a size such as 65B or 650亿"
    )


def _refuse_other_names(before: str, size: str, known: Mapping[str, str]) -> None:
    """`chatglm3-6b` is no 6B Llama: a name that the catalog lacks is refused, not interpreted as its size."""
    match = re.search(r"(?<![a-z0-9])([a-z][a-z0-9.]*(?:[-_][a-z0-9.]+)*)([-_ ]?)$", before)
    version = re.search(r"(?<![a-z0-9])([a-z]{2,}[a-z0-9.-]*)([-_ ]v?\d+(?:\.\d+)*[-_ ]+)$", before)
    if version and version.group(1) not in _NO_NAMES:  # "phi 5 14b": a name, its version, its size
        name = f"{version.group()}{size}"
    elif match and (match.group(2) in ("-", "_") or re.search(r"\d", match.group(1))):
        name = f"{match.group()}{size}"
    else:
        return
    close = suggestions(name, (word for word in known if "/" not in word))
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UsageError(
        f"ask: '{shorten(name)}' is not in the catalog{meant}: give a hub id or its config.json to memplan "
        "plan"
    )


_NO_NAMES = (
    "on",
    "with",
    "for",
    "of",
    "and",
    "the",
    "to",
    "in",
    "at",
    "is",
    "train",
    "tune",
    "run",
    "fit",
    "use",
)


_SIZES: tuple[tuple[str, Callable[[re.Match[str]], float]], ...] = (
    (
        rf"{B}(\d+(?:\.\d+)?)\s*(?:b|billion)(?:\s*(?:parameters?|params|参数))?{E}",
        lambda m: float(m.group(1)) * 1e9,
    ),
    (
        rf"{B}(\d+(?:\.\d+)?)\s*m(?:illion)?(?:\s*(?:parameters?|params|参数))?{E}",
        lambda m: float(m.group(1)) * 1e6,
    ),
    (r"(\d+(?:\.\d+)?)\s*亿(?:参数)?", lambda m: float(m.group(1)) * 1e8),
    (r"千亿(?:参数)?", lambda m: 1e11),
    (r"百亿(?:参数)?", lambda m: 1e10),
)
_PREFERRED = (
    "llama-7b",
    "llama-3.1-8b",
    "llama-13b",
    "llama-33b",
    "llama-65b",
    "llama-2-70b",
    "llama-3.1-405b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "gpt2",
    "opt-350m",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen2.5-72b",
    "mistral-large-123b",
)


def _in_formula(name: str) -> bool:
    """Whether the formula knows the entry's family: a size alone names no model that only a trace answers."""
    model = from_catalog(name)
    return model is not None and model.config["model_type"] in FAMILIES


def _nearest(count: float, words: str) -> str:
    """The preferred model nearest in parameters, else any model of the catalog. Raises UsageError where
    none is near.
    """
    sizes = {name: int(row["parameters"]) for name, row in index().items()}
    # "33B" names a class of models: the class's own number in the name beats a closer count
    ending = f"-{words.replace(' ', '')}"
    named = [name for name in (*_PREFERRED, *sorted(sizes)) if name in sizes and name.endswith(ending)]
    for pool in (named, [n for n in _PREFERRED if n in sizes], sorted(sizes)):
        near = [name for name in pool if abs(sizes[name] - count) <= NEAR * count and _in_formula(name)]
        if near:
            return min(near, key=lambda name: abs(sizes[name] - count)) if pool is not named else near[0]
    closest = sorted(sizes, key=lambda name: abs(sizes[name] - count))[:3]
    raise UsageError(
        f"ask: no model of about {shorten(words)} in the catalog: the nearest are {', '.join(closest)}; "
        "memplan plan takes any config.json"
    )
