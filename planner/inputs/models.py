"""find: a catalog name, a Hugging Face id, a directory, a config.json, a dict or a ModelSpec -> Model.
Reads at most two small files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from memplan.planner.inputs import names as spellings
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.jsonfile import read_json
from memplan.planner.inputs.spec import ModelSpec
from memplan.planner.tables.errors import NetworkError, UsageError, shorten, shown

CATALOG = Path(__file__).parent / "catalog"
INDEX = (
    "index.json"  # file stem -> {"ids": [Hugging Face ids], "aliases": [other names], "parameters": total}
)
# An entry is a config.json as its publisher has it, plus "memplan": a "note" where something must be said of
# it, the "source" of its numbers, and the total that is "published" for it elsewhere.


@dataclass(frozen=True)
class Model:
    """A model that was found: its config as its publisher wrote it, and where it came from."""

    name: str
    config: dict[str, Any]
    source: str
    note: str = ""
    from_file: bool = False  # read from a path: its name alone does not find it
    _spec: list[ModelSpec] = field(default_factory=list, repr=False, compare=False)

    def spec(self) -> ModelSpec:
        """The parsed config. Raises UsageError where a key is wrong or the formula lacks the family."""
        if not self._spec:
            spec = read_config(self.config, self.name)
            self._spec.append(replace(spec, notes=(self.note, *spec.notes)) if self.note else spec)
        return self._spec[0]

    @property
    def typed(self) -> str:
        """What a person types for this model: its name, or the file that it was read from."""
        return self.source if self.from_file else self.name


def find(model: str | Path | Mapping[str, Any] | ModelSpec | Model) -> Model:
    """The Model that `model` names. A path wins over the catalog only where it looks like a path or holds a
    '/'.

    Raises UsageError for a name that is not known, a folder without config.json, or a file that is not a
    config.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, ModelSpec):
        return Model(model.name, dict(model.config), "ModelSpec", _spec=[model])
    if isinstance(model, Mapping):
        return Model(_name_of(model), dict(model), "dict")
    if isinstance(model, Path):
        return _from_path(model)
    if not isinstance(model, str) or not model.strip():
        raise UsageError(f"model {shown(model)}: expected a name, a path, a dict or a ModelSpec")
    text = model.strip()
    address = None if "\0" in text else spellings.hub_address(text)
    if address is None and _looks_like_path(text):
        return _from_path(_expanded(text))
    text = address or text
    found = from_catalog(text)
    if found is not None:
        return found
    if text.count("/") == 1:
        return _from_hub(text)
    if _is_folder(text):
        return _from_path(_expanded(text))
    raise spellings.refusal(text, _index())


def from_catalog(text: str) -> Model | None:
    """The catalog's entry under a file name, an alias or a Hugging Face id, in any case, or under the name of
    a variant that has the same architecture, which its note then says; None where there is none.
    """
    key = text.strip().lower().replace("_", "-").replace(" ", "-")
    stem = key if _is_entry(key) else _by_alias().get(text.strip().lower(), _by_alias().get(key))
    if stem is not None:
        return _entry(stem)
    account, slash, name = text.strip().rpartition("/")
    if slash and (account.lower() not in _publishers() or _is_cached(text.strip())):
        return None
    found = spellings.variant(name, _spelled())
    if found is None:
        return None
    entry = _entry(found.entry, found.note(text.strip()), found.quantization)
    return (
        replace(entry, config={**entry.config, spellings.LINEAR_EXPERTS: True})
        if found.linear_experts
        else entry
    )


def _entry(stem: str, note: str = "", quantization: dict[str, Any] | None = None) -> Model:
    config = read_json(CATALOG / f"{stem}.json")
    if quantization is not None:
        config["quantization_config"] = quantization
    own = config.pop("memplan", {}).get("note", "")
    return Model(stem, config, f"catalog ({stem}.json)", "; ".join(filter(None, (note, own))))


def whole_model(model: Model) -> Model:
    """The catalog's entry of the same model with its vision tower, where it has one beside that of the
    language part, which `model` is as it stands there; else the model itself.
    """
    stem = f"{model.name}-vision"
    own = not model.from_file and _is_entry(stem) and model.config == _entry(model.name).config
    return _entry(stem) if own else model


def _is_cached(text: str) -> bool:
    """Whether the local Hugging Face cache has the repository's own config.json, which is the better word."""
    from memplan.planner.inputs.hub import REPOSITORY, cached_file

    return REPOSITORY.fullmatch(text) is not None and cached_file(text, "config.json") is not None


def index() -> dict[str, dict[str, Any]]:
    """The catalog's index: every entry with its Hugging Face ids, aliases and total parameters."""
    return dict(_index())


def names() -> list[str]:
    """Every name that the catalog knows: entries and aliases, without Hugging Face ids."""
    return sorted({*_index(), *(alias for row in _index().values() for alias in row["aliases"])})


def _looks_like_path(text: str) -> bool:
    if "\0" in text:
        raise UsageError(f"model '{shorten(text)}' holds a null character")
    if text.startswith((".", "/", "~")) or text.endswith(".json") or text.count("/") > 1 or "\\" in text:
        return True
    try:
        return "/" in text and Path(text).exists()
    except OSError:  # a name too long for the file system
        return False


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        raise UsageError(f"'{shorten(text)}' names a home folder that does not exist") from None


def _from_path(path: Path) -> Model:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        raise UsageError(f"'{shorten(str(path))}' is not a usable path") from None
    if not exists:
        raise UsageError(
            f"'{shorten(str(path))}' does not exist: expected a config.json or a folder that has one"
        )
    target = path / "config.json" if is_folder else path
    if is_folder and not target.exists():
        raise UsageError(f"folder '{shorten(str(path))}' has no config.json")
    config = read_json(target)
    if "peft_type" in config and "model_type" not in config:
        raise UsageError(
            f"'{shorten(str(target))}' is a PEFT adapter, not a model: name the base model and give this as "
            "--adapter"
        )
    folder = target.resolve().parent.name
    name = (folder if target.name == "config.json" else target.stem) or target.stem
    return Model(name, config, str(target), from_file=True)


def _from_hub(text: str) -> Model:
    """A Hugging Face id that the catalog lacks: `memplan.planner.inputs.hub` looks in the local cache, then
    asks the hub.
    """
    from memplan.planner.inputs.hub import (
        find_config,
    )  # only here: most lookups need neither its imports nor the cache

    try:
        config, source = find_config(text)
    except NetworkError as error:
        close = spellings.suggestions(
            text.partition("/")[2], (row["ids"][0] for row in _index().values() if row["ids"])
        )
        raise (NetworkError(f"{error}. The catalog has {', '.join(close)}") if close else error) from None
    return Model(text, config, source)


def _name_of(config: Mapping[str, Any]) -> str:
    given = config.get("_name_or_path")
    return given if isinstance(given, str) and given else str(config.get("model_type") or "model")


def _is_entry(key: str) -> bool:
    plain = len(key) < 100 and key.isascii() and key.replace("-", "").replace(".", "").isalnum()
    return plain and f"{key}.json" != INDEX and (CATALOG / f"{key}.json").is_file()


@cache
def _index() -> dict[str, dict[str, Any]]:
    return read_json(CATALOG / INDEX)


@cache
def _spelled() -> dict[str, str]:
    return spellings.table(_index())


@cache
def _publishers() -> frozenset[str]:
    return spellings.publishers(_index())


@cache
def _by_alias() -> dict[str, str]:
    return {name.lower(): stem for stem, row in _index().items() for name in (*row["ids"], *row["aliases"])}


def named(text: str) -> Model:
    """`find` for a name alone, a catalog entry or a Hugging Face id: no path of this machine is looked at.
    Raises UsageError, NetworkError.
    """
    text = text.strip()
    found = from_catalog(text)
    if found is not None:
        return found
    if text.count("/") == 1:
        return _from_hub(text)
    raise spellings.refusal(text, _index())
