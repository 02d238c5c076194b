"""Names as people type them -> the catalog's entry: variants, mirrors, quantized copies, short forms, hub
URLs; and what to suggest for a name that is not there.

A variant is a name from which words are left out that do not change the architecture (`-instruct`, a date,
`-bnb-4bit`). What is left must be an entry, an alias or the last part of an id, and nothing else is guessed:
a word that is not in the tables below makes it another model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from memplan.planner.tables.errors import UsageError, nearest, shorten

# Accounts that copy others' checkpoints, in the same architecture and most often in another precision.
_MIRRORS = """
    unsloth nousresearch mlx-community lmstudio-community thebloke bartowski ggml-org hugging-quants
    huggingface-quants redhatai neuralmagic nm-testing casperhansen maziyarpanahi quantfactory solidrust
    axolotl-ai-co axolotl-quants modelcloud kaitchup iqbalhazza isotr0py huggyllama daryl149 alpindale
    mistral-community mhenrichsen mapika cyankiwi cpatonn qwen second-state intel amd nvidia openvino
    techxgenus shuyuej inferact
"""
MIRRORS = frozenset(_MIRRORS.split())
HOSTS = frozenset(("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"))
# Words that say how weights are stored: the architecture is the same, the bytes are not.
STORED = re.compile(
    r"""-(?:unsloth|bnb|[2-8]bit|int[48]|i?q[1-8](?:-(?:k(?:-(?:xl|[sml]))?|[01]|xxs|xs|nl|[sml]))?|gptq|awq|
    fp8|fp4|nvfp4|mxfp4|nf4|w4a16|w8a16|w8a8|w4a8|hqq|aqlm|exl[23]|eetq|gguf|mlx|ggml|quantized|quant|dynamic|
    block|marlin|g(?:32|64|128)|autoround|qat|torchao|ud)(?=-|$)""",
    re.VERBOSE,
)
STORED_AS: dict[str, dict[str, Any]] = {
    # unsloth 2026.10 and transformers' own 4-bit examples: nf4, double quantization, 16-bit products
    "bnb": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "fp8": {"quant_method": "fp8"},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "mxfp4": {"quant_method": "mxfp4"},
    "nvfp4": {"quant_method": "nvfp4"},
}
"""What a checkpoint's name says of its quantization_config, by the word in it."""
EIGHT = frozenset(("8bit", "int8", "w8a16", "w8a8"))
FOUR = frozenset(("4bit", "nf4"))
TUNED = re.compile(
    r"-(?:instruct|instruction|it|chat|base|pt|hf|think|thinking|reasoning|sft|dpo|bf16|fp16|f16|16bit|dequantized|linearized)(?=-|$)"
)
DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{2}-\d{4}|\d{8}|\d{6}|\d{4})(?=-|$)")
SIZE = re.compile(r"(?<![a-z0-9.])(?:\d+x)?(\d+(?:\.\d+)?)([bmt])(?![a-z0-9])")
MOST_CHARACTERS = 200
LINEAR_EXPERTS = "linear_experts"
"""The key of a config whose copy holds Llama 4's experts as Linear layers (a word of ours)."""


class Variant(NamedTuple):
    """An entry found under another name; `stored` are the words about precision that were left out."""

    entry: str
    stored: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The quantization_config that copies under such a name have; None where the words do not tell."""
        named = [STORED_AS[word] for word in self.stored if word in STORED_AS]
        if len(named) != 1 or (
            named[0]["quant_method"] == "bitsandbytes" and not FOUR.intersection(self.stored)
        ):
            return None
        found = dict(named[0])
        if "bits" in found and EIGHT.intersection(self.stored):
            found["bits"] = 8
        if "unsloth" in self.stored and found["quant_method"] == "bitsandbytes":
            found["llm_int8_skip_modules"] = ["layers that unsloth's dynamic quantization chose"]
        if found["quant_method"] == "bitsandbytes" and "bf16" in self.other:
            # axolotl's copies (-bnb-nf4-bf16), which its tests/e2e/multigpu/test_llama.py (0.19,
            # test_fsdp_qlora_prequant_packed) cuts with FSDP: that joins floating tensors alone
            found["bnb_4bit_quant_storage"] = "bfloat16"
        return found

    @property
    def linear_experts(self) -> bool:
        """Whether the name is of such a copy, as axolotl makes them to quantize experts."""
        return "linearized" in self.other

    def note(self, typed: str) -> str:
        """What the output says of it; empty where nothing was left out."""
        said = f"'{shorten(typed, 60)}' interpreted as {self.entry}, the same architecture"
        if self.stored:
            words = "-".join(self.stored)
            if self.quantization is not None:
                method = self.quantization["quant_method"]
                return (
                    f"{said}, its weights quantized with {method} ({words}; its own config.json is not here)"
                )
            return f"{said}: how it is stored ({words}) is not counted, weights are as the setup says"
        return said if self.other else ""


def hub_address(text: str) -> str | None:
    """The id in a hub URL (https://huggingface.co/org/name/tree/main, hf.co/org/name:Q4_K_M), None where
    `text` is none. Raises UsageError for a URL of the hub that names no model.
    """
    own = urlsplit(os.environ.get("HF_ENDPOINT") or "").hostname
    bare = re.sub(r"^(?:https?|hf)://", "", text.strip(), flags=re.IGNORECASE)
    host, _, path = bare.partition("/")
    if host.lower() not in HOSTS and (own is None or host.lower() != own.lower()):
        return None
    parts = [part for part in re.split(r"[?#]", path)[0].split("/") if part]
    parts = parts[1:] if parts[:1] == ["models"] else parts
    if len(parts) < 2 or parts[0] in ("datasets", "spaces", "docs", "papers", "collections", "blog"):
        raise UsageError(f"'{shorten(text)}' is a page of the hub, not a model: expected {host}/org/name")
    return f"{parts[0]}/{parts[1].partition(':')[0]}"


def hyphened(text: str) -> str:
    """A name in lower case with hyphens, without the company that some ids begin with (Meta-Llama-3.1-8B)."""
    key = re.sub(r"[\s_:/@-]+", "-", text.strip().lower()).strip("-")
    return key.removeprefix("meta-").removeprefix("nvidia-")


def plain(text: str) -> str:
    """A name in one spelling: 'Llama 3.1 8B', 'llama3.1-8b' and 'Meta-Llama-3.1-8B' are one word.

    A generation belongs to the word before it (llama-3 -> llama3), a size does not (gemma-2b).
    """
    return re.sub(r"(?<![a-z0-9.])([a-z]+)-(?=v?\d+(?:\.\d+)*(?:-|$))", r"\1", hyphened(text))


def table(index: Mapping[str, Mapping[str, Iterable[str]]]) -> dict[str, str]:
    """Every plain name that means one entry: entries, aliases, and the last part of ids."""
    means: dict[str, set[str]] = {}
    for entry, row in index.items():
        for name in (entry, *row["aliases"], *(one.partition("/")[2] for one in row["ids"])):
            means.setdefault(plain(name), set()).add(entry)
    return {name: min(entries) for name, entries in means.items() if len(entries) == 1}


def publishers(index: Mapping[str, Mapping[str, Iterable[str]]]) -> frozenset[str]:
    """The accounts whose names are read as variants: those that publish what the catalog has, and mirrors."""
    own = {one.partition("/")[0].lower() for row in index.values() for one in row["ids"]}
    return frozenset(own) | MIRRORS


def variant(text: str, known: Mapping[str, str]) -> Variant | None:
    """The entry that a name means once words that do not change the architecture are left out."""
    if len(text) > MOST_CHARACTERS:
        return None
    key, left = hyphened(text), []
    if plain(key) in known:
        return Variant(known[plain(key)])
    for pattern in (STORED, TUNED, DATED):
        if pattern is DATED and not SIZE.search(key):
            break  # without a size a date is what tells models apart (mistral-small-2409 has 22B, -2501 24B)
        left.append(tuple(match.group().strip("-") for match in pattern.finditer(key)))
        key = pattern.sub("", key)
        if plain(key) in known:
            return Variant(known[plain(key)], left[0], tuple(word for words in left[1:] for word in words))
    return None


def refusal(text: str, entries: Iterable[str]) -> UsageError:
    """The error for a name that means no entry: the sizes of a family, names that differ by a letter, or
    what works for any model.
    """
    shown, every = shorten(text), sorted(set(entries))
    sizes = _family(hyphened(text), every)
    if sizes:
        return UsageError(f"model '{shown}' comes in several sizes: say which: {', '.join(sizes)}")
    close = suggestions(text, every)
    if close:
        return UsageError(f"unknown model '{shown}': did you mean {' or '.join(close)}?")
    return UsageError(
        f"unknown model '{shown}': not in the catalog: give a hub id (org/name) or its config.json "
        "(memplan list models)"
    )


def suggestions(text: str, names: Iterable[str]) -> list[str]:
    """Names of the same size whose family is the same or one letter apart, nearest first, at most three."""
    key = plain(text[:MOST_CHARACTERS])
    family, sizes = _letters(key), _sizes(key)
    if not family or not sizes:
        return []
    alike = {
        name.lower(): name
        for name in names
        if _sizes(plain(_last(name))) == sizes and _one_edit(family, _letters(plain(_last(name))))
    }
    return [alike[name] for name in nearest(text, alike)]


def _family(key: str, entries: Iterable[str], most: int = 10) -> list[str]:
    """The entries whose names go on where `key` ends, smallest first; none where it has a size itself."""
    if len(key) < 3 or SIZE.search(key):
        return []
    start, goes_on = plain(key), ("-",) if key[-1].isdecimal() else ("-", *"0123456789")
    found = [
        name for name in entries if plain(name).startswith(start) and plain(name)[len(start) :][:1] in goes_on
    ]
    found.sort(key=lambda name: (min(_sizes(plain(name)), default=0.0), name))
    return [*found[:most], *(["..."] if len(found) > most else [])] if len(found) > 1 else []


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _letters(key: str) -> str:
    match = re.match(r"[a-z]+", key)
    return match.group() if match else ""


def _sizes(key: str) -> frozenset[float]:
    """Sizes in a name, in billions of parameters; its last number where none has a unit."""
    scale = {"b": 1.0, "m": 1e-3, "t": 1e3}
    found = [float(number) * scale[unit] for number, unit in SIZE.findall(key)]
    if not found and (match := re.search(r"-(\d+(?:\.\d+)?)$", key)):
        found = [float(match.group(1))]
    return frozenset(found)


def _one_edit(one: str, other: str) -> bool:
    """Whether two words are equal, or one letter more, less or other makes them so."""
    if one == other:
        return True
    if not other or abs(len(one) - len(other)) > 1:
        return False
    at = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    pairs = ((one[at + 1 :], other[at + 1 :]), (one[at + 1 :], other[at:]), (one[at:], other[at + 1 :]))
    return any(a == b for a, b in pairs)
