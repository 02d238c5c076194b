"""Which model a question speaks of: a name of the catalog, or a size such as 65B or 650亿."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from memplan.planner.inputs.families.table import FAMILIES
from memplan.planner.inputs.models import from_catalog, index, names
from memplan.planner.inputs.names import suggestions
from memplan.planner.tables.errors import UsageError, shorten
from memplan.validate.questions.lexicon import FILLER, NEUTRAL
from memplan.validate.reading import Assumption, B, E, Reading
from memplan.validate.vocabulary import FROZEN, METHODS_SAID, PAIRED, QUANTIZED, SWITCHES

NEAR = 0.12  # a size such as "33B" is the catalog's nearest model within this share of its parameters


_SIZE_AFTER = re.compile(rf"[\s\-_]*\d+(?:\.\d+)?b{E}")
_NAME_BEFORE = re.compile(r"(?<![a-z0-9])([a-z][a-z0-9.]*(?:[-_][a-z0-9.]+)*)([-_ ]?)$")
_NAME_AFTER = re.compile(r"^[\s\-_]*([a-z][a-z0-9.]*(?:-\d[a-z0-9.]*)?)")
_VERSION_BEFORE = re.compile(r"(?<![a-z0-9])([a-z]{2,}[a-z0-9.-]*)([-_ ]v?\d+(?:\.\d+)*[-_ ]+)$")


@cache
def _known() -> dict[str, str]:
    """Every name of the catalog, in lower case, longest first."""
    words = {word.lower(): word for word in (*names(), *(i for row in index().values() for i in row["ids"]))}
    return dict(sorted(words.items(), key=lambda item: -len(item[0])))


@cache
def _stems() -> dict[str, None]:
    """The catalog's names without their sizes, longest first: llama-2, qwen2.5."""
    stems = {
        re.sub(r"-\d+(?:\.\d+)?b$", "", word) for word in _known() if re.search(r"-\d+(?:\.\d+)?b$", word)
    }
    return dict.fromkeys(sorted((s for s in stems if "/" not in s), key=len, reverse=True))


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """A name as it may be written, compiled once: re keeps fewer than there are names."""
    return re.compile(f"{B}{_spaced(word)}{E}")


def _spaced(word: str) -> str:
    return r"[\s\-_]*".join(re.escape(part) for part in re.split(r"[\s\-_]+", word))


def named_models(reading: Reading) -> list[str]:
    """Every model of the catalog that is named in full, in the order of the sentence. Raises UsageError where
    another size of it follows ("mistral 13b").
    """
    found: dict[int, str] = {}
    for word, name in _known().items():
        if word.split("-")[0].split("/")[0] not in reading.text:
            continue
        match = _pattern(word).search(reading.text)
        model = from_catalog(name) if match else None
        if match is None or model is None:
            continue
        after = _SIZE_AFTER.match(reading.text[match.end() :])
        if after and not re.search(r"\db$", match.group()):
            raise _not_known(f"{match.group()}{after.group()}")
        if model.name not in found.values():
            said = reading.take(match)
            found[match.start()] = model.name
            reading.found.append(Assumption("model", model.name, said))
    return [name for _, name in sorted(found.items())]


def sized_models(reading: Reading) -> list[str]:
    """Every model that is named by its size alone, or by its size and its family apart ("1.5B qwen2.5").
    Raises UsageError for a name that the catalog lacks.
    """
    found: list[str] = []
    for pattern, scale in _SIZES:
        for match in list(re.finditer(pattern, reading.text)):
            size, count = match.group().strip(), scale(match)
            _refuse_other_names(reading.text[: match.start()], size)
            stem = _stem(reading, match)
            words = f"{count / 1e9:g}b" if count >= 1e9 else f"{count / 1e6:g}m"
            if stem is not None:
                family = stem.group().replace(" ", "-")
                ways = (f"{family}-{count / 1e9:g}b", f"{family}-{count / 1e6:g}m")
                name = next((_known()[way] for way in ways if way in _known()), None)
                model = None if name is None else from_catalog(name)
                if model is None:
                    raise _not_known(f"{stem.group()} {size}")
                reading.found.append(
                    Assumption("model", model.name, f"{reading.take(match)} {reading.take(stem)}")
                )
                found.append(model.name)
                continue
            name = _nearest(count, words)
            said = f"{name}, a model of {count / 1e9:g} billion parameters"
            chinese = f"{name}，作为 {count / 1e8:g} 亿参数的模型"
            reading.found.append(Assumption("model", said, reading.take(match), chinese))
            found.append(name)
    return list(dict.fromkeys(found))


def _stem(reading: Reading, size: re.Match[str]) -> re.Match[str] | None:
    """A family that is named apart from its size. Raises UsageError where the word beside the size is a name
    that the catalog lacks.
    """
    for word in _stems():
        match = _pattern(word).search(reading.text)
        if match:
            return match
    before, after = (
        _NAME_BEFORE.search(reading.text[: size.start()]),
        _NAME_AFTER.match(reading.text[size.end() :]),
    )
    beside = [before.group(1)] if before else []
    beside += [after.group(1)] if after and re.search(r"[\d]", after.group(1)) else []
    for word in beside:
        if not _plain(word):
            raise _not_known(f"{word} {size.group().strip()}")
    return None


def _plain(word: str) -> bool:
    """Whether a word beside a size is an ordinary one, no name."""
    known = (
        FROZEN,
        QUANTIZED,
        *(p for p, _ in METHODS_SAID),
        *(p for p, _, _ in SWITCHES),
        *(f"(?:{p})" for p in PAIRED.values()),
    )
    plain = word in FILLER or word in NEUTRAL or word in NO_NAMES
    return plain or any(re.fullmatch(pattern, word) for pattern in known)


def _not_known(name: str) -> UsageError:
    close = suggestions(name.strip().replace(" ", "-"), (word for word in _known() if "/" not in word))
    meant = f" (did you mean {' or '.join(close)}?)" if close else ""
    return UsageError(
        f"ask: '{shorten(name.strip())}' is not in the catalog{meant}: give a hub id or its config.json to "
        "memplan plan"
    )


def _refuse_other_names(before: str, size: str) -> None:
    """`chatglm3-6b` is no 6B Llama: a name that the catalog lacks is refused, not interpreted as its size."""
    match, version = _NAME_BEFORE.search(before), _VERSION_BEFORE.search(before)
    if version and not _plain(version.group(1)):  # "phi 5 14b": a name, its version, its size
        raise _not_known(f"{version.group()}{size}")
    if match and (match.group(2) in ("-", "_") or re.search(r"\d", match.group(1))):
        stem = f"{match.group(1).replace(' ', '-')}"
        if stem not in _stems():
            raise _not_known(f"{match.group()}{size}")


_NO_NAMES = """
    class scale parameter param sized dense decoder pretrained base finetune finetuning than versus vs between
    either both another an other same need needs needed require requires with without and or on for of the to
    in at is bit bits tuning adapter adapters quantized
"""
NO_NAMES = frozenset(_NO_NAMES.split())
"""Words that stand beside a size and are no model's name."""


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
