"""A question in a sentence, Chinese or English, read by a small fixed grammar: no model, no guessing without saying so.

Every thing that was read is an Assumption with the words it came from; every thing that was not said has a default and says `default`.
What looks like a quantity and was not understood is an error, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.errors import UsageError, shorten
from planner.gpus import Gpu, find_gpu, gpus
from planner.models import from_catalog, index, names
from planner.units import gib

MOST_CHARACTERS = 500
NEAR = 0.12  # a size such as "33B" is the catalogue's nearest model within this share of its parameters


@dataclass(frozen=True)
class Assumption:
    """One thing that the answer rests on: the field, its value, and the words that said so (empty: a default)."""

    name: str
    value: str
    words: str = ""
    zh: str = ""  # the value in Chinese, where it is a sentence


@dataclass(frozen=True)
class Question:
    """What was read: a model, Setup fields, perhaps a card, and the language to answer in."""

    sentence: str
    lang: str
    model: str
    fields: Mapping[str, Any]
    gpu: str | None
    assumptions: tuple[Assumption, ...]


@dataclass
class _Reading:
    text: str
    found: list[Assumption] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def take(self, match: re.Match[str]) -> str:
        """The matched words, blanked out so that nothing is read twice."""
        words = match.group().strip()
        self.text = self.text[: match.start()] + " " * len(match.group()) + self.text[match.end() :]
        return words


_B = r"(?<![a-z0-9.])"  # Chinese has no word boundaries, so only Latin letters and digits bound a word
_E = r"(?![a-z0-9])"

METHODS_SAID: tuple[tuple[str, str], ...] = (
    (r"qlora|4[- ]?bit|nf4|4\s*位量化|4比特", "qlora"),
    (r"adalora", "adalora"),
    (r"dora", "dora"),
    (r"lora", "lora"),
    (r"full(?:[- ]?(?:parameter|fine[- ]?tun\w*|ft))?|全参数?(?:微调)?|全量(?:微调)?", "full"),
    (r"inference|infer|推理", "inference"),
)
SWITCHES: tuple[tuple[str, str, Any], ...] = (
    (r"(?:no|without) (?:gradient |activation )?checkpointing|(?:不用|不开|没有|无)(?:梯度)?检查点", "checkpointing", "none"),
    (r"(?:with )?(?:gradient |activation )?checkpointing|梯度检查点|检查点|gc", "checkpointing", "non_reentrant"),
    (r"paged[- ]adamw?(?:[- ]8bit)?|分页优化器", "optimizer", "paged_adamw_8bit"),
    (r"8[- ]?bit adamw?|8\s*位\s*adamw?", "optimizer", "adamw_bnb_8bit"),
    (r"float32|fp32|全精度|单精度", "weight_dtype", "float32"),
    (r"float16|fp16|半精度", "weight_dtype", "float16"),
    (r"bfloat16|bf16", "weight_dtype", "bfloat16"),
    (r"as (?:in )?(?:the |its )?paper|论文(?:设置|配方)?", "recipe", "paper"),
)
_SEQUENCE = r"seq(?:uence)?(?:[- ]?len(?:gth)?)?|context(?: length)?|序列(?:长度)?|上下文(?:长度)?|长度"
_IS = r"\s*(?:of|=|:|为|是)?\s*"
NUMBERS: tuple[tuple[str, str], ...] = (
    (rf"(?:{_SEQUENCE}){_IS}(\d+)\s*(k)?", "sequence_length"),
    (r"(\d+)\s*(k)?[- ]?(?:tokens?|context|个?\s*token|上下文)", "sequence_length"),
    (rf"(?:micro[- ]?)?(?:batch(?:[- ]?size)?|bs|批(?:次)?(?:大小)?){_IS}(\d+)", "micro_batch"),
    (rf"(?:rank|秩|r){_IS}(\d+)", "rank"),
)


def read(sentence: str, lang: str | None = None) -> Question:
    """The question of a sentence. Raises UsageError where no model is named, or where a number was not understood."""
    if not sentence.strip() or len(sentence) > MOST_CHARACTERS:
        raise UsageError(f'ask: expected a sentence of 1 to {MOST_CHARACTERS} characters, such as "65B QLoRA 48GB?"')
    reading = _Reading(re.sub(r"\s+", " ", sentence.lower().translate(_WIDE)))
    chosen = lang or ("zh" if re.search(r"[\u4e00-\u9fff]", sentence) else "en")
    _several(reading)
    gpu = _gpu(reading)
    model = _model(reading)
    for pattern, name in NUMBERS:
        _number(reading, pattern, name)
    for pattern, name, value in SWITCHES:
        if name not in reading.fields:
            _word(reading, pattern, name, value)
    for pattern, value in METHODS_SAID:
        if "method" not in reading.fields:
            _word(reading, pattern, "method", value)
    if gpu is None:
        gpu = _size_of_card(reading)
    _all_read(reading)
    if "method" not in reading.fields:
        reading.fields["method"] = "lora"
        reading.found.append(Assumption("method", "lora"))
    return Question(sentence, chosen, model, reading.fields, gpu, tuple(reading.found))


_WIDE = {ord(a): b for a, b in zip("，。？！（）：；＝×０１２３４５６７８９", ",.?!():;=x0123456789", strict=True)}


def _word(reading: _Reading, pattern: str, name: str, value: Any) -> None:
    match = re.search(f"{_B}(?:{pattern}){_E}", reading.text)
    if match:
        reading.fields[name] = value
        reading.found.append(Assumption(name, str(value), reading.take(match)))


def _number(reading: _Reading, pattern: str, name: str) -> None:
    match = None if name in reading.fields else re.search(f"{_B}(?:{pattern}){_E}", reading.text)
    if match:
        kilo = 1024 if match.lastindex == 2 and match.group(2) else 1
        value = int(match.group(1)) * kilo
        reading.fields[name] = value
        reading.found.append(Assumption(name, f"{value:,}", reading.take(match)))


def _several(reading: _Reading) -> None:
    """Several cards are read, and answered for one: sharding is not predicted."""
    match = re.search(rf"{_B}(\d+)\s*(?:x|张|块|卡)\s*(?=[a-z卡显]|\d+\s*g)", reading.text) or re.search(
        rf"{_B}(\d+)\s*(?:gpus|cards|卡){_E}", reading.text
    )
    if match and int(match.group(1)) > 1:
        reading.found.append(
            Assumption("cards", "answered for one: sharding is not predicted", reading.take(match), "按一张卡回答：尚不预测分片")
        )
    elif match:
        reading.take(match)


def _gpu(reading: _Reading) -> str | None:
    """A card by name, longest name first."""
    words = {word.lower(): gpu.name for gpu in gpus().values() for word in (gpu.name, *gpu.aliases)}
    words |= {name.split("-", 1)[1]: name for name in gpus() if re.match(r"(rtx|gtx)-\d{4}", name)}
    for gpu in sorted(gpus().values(), key=lambda gpu: (gpu.common, gpu.usable_bytes)):
        series = re.sub(r"-\d+gb$", "", gpu.name)  # "a100" alone: the most common of that series, and it is said which
        if series != gpu.name and series not in gpus():
            words[series] = gpu.name
    for word in sorted(words, key=len, reverse=True):
        pattern = r"[\s\-_]*".join(re.escape(part) for part in re.split(r"[\s\-_]+", word))
        match = re.search(f"{_B}{pattern}{_E}", reading.text)
        if match and not word.isdigit() or match and len(word) == 4:
            gpu = gpus()[words[word]]
            reading.found.append(Assumption("gpu", _card(gpu), reading.take(match), _card(gpu, "可用")))
            return gpu.name
    return None


def _card(gpu: Gpu, usable: str = "usable") -> str:
    return f"{gpu.name} ({gib(gpu.usable_bytes)} {usable})"


def _size_of_card(reading: _Reading) -> str | None:
    """48GB is a card sold as such, the most common of that size; 44GiB is a budget."""
    match = re.search(rf"{_B}(\d+(?:\.\d+)?)\s*(gib|gb|g){_E}", reading.text)
    if match is None:
        return None
    size, unit = float(match.group(1)), match.group(2)
    words = reading.take(match)
    if unit == "gib":
        reading.found.append(Assumption("gpu", f"a budget of {words}", words, f"预算 {words}"))
        return f"{size:g}GiB"
    sold = [gpu for gpu in gpus().values() if gpu.marketing_gb == size and gpu.verified]
    if not sold:
        gpu = find_gpu(f"{size:g}GB")
        said = f"a budget of {gpu.usable_bytes:,} bytes: no card is sold with {size:g} GB"
        reading.found.append(Assumption("gpu", said, words, f"预算 {gpu.usable_bytes:,} 字节（没有标称 {size:g} GB 的卡）"))
        return f"{size:g}GB"
    gpu = max(sold, key=lambda gpu: (gpu.common, gpu.usable_bytes, gpu.name))
    said = f"{_card(gpu)}, as a card sold with {size:g} GB"
    reading.found.append(Assumption("gpu", said, words, f"{_card(gpu, '可用')}，标称 {size:g} GB 的卡"))
    return gpu.name


def _model(reading: _Reading) -> str:
    """A catalogue name, longest first; else a size in parameters."""
    known = {word.lower(): word for word in (*names(), *(i for row in index().values() for i in row["ids"]))}
    for word in sorted(known, key=len, reverse=True):
        pattern = r"[\s\-_]*".join(re.escape(part) for part in re.split(r"[\s\-_]+", word))
        match = re.search(f"{_B}{pattern}{_E}", reading.text)
        if match:
            model = from_catalog(known[word])
            if model is not None:
                reading.found.append(Assumption("model", model.name, reading.take(match)))
                return model.name
    for pattern, scale in _SIZES:
        match = re.search(pattern, reading.text)
        if match:
            count = scale(match)
            name = _nearest(count, match.group().strip())
            said = f"{name}, as a model of {count / 1e9:g} billion parameters"
            reading.found.append(Assumption("model", said, reading.take(match), f"{name}，作为 {count / 1e8:g} 亿参数的模型"))
            return name
    raise UsageError("ask: no model in the sentence: name one (memplan list models) or a size such as 65B or 650亿")


_SIZES: tuple[tuple[str, Callable[[re.Match[str]], float]], ...] = (
    (rf"{_B}(\d+(?:\.\d+)?)\s*(?:b|billion)(?:\s*(?:parameters?|params|参数))?{_E}", lambda m: float(m.group(1)) * 1e9),
    (rf"{_B}(\d+(?:\.\d+)?)\s*m(?:illion)?(?:\s*(?:parameters?|params|参数))?{_E}", lambda m: float(m.group(1)) * 1e6),
    (r"(\d+(?:\.\d+)?)\s*亿(?:参数)?", lambda m: float(m.group(1)) * 1e8),
    (r"千亿(?:参数)?", lambda m: 1e11),
    (r"百亿(?:参数)?", lambda m: 1e10),
)
_PREFERRED = (
    *("llama-7b", "llama-2-7b", "llama-3.1-8b", "llama-13b", "llama-33b", "llama-65b", "llama-2-70b", "llama-3.1-405b"),
    *(
        "llama-3.2-1b",
        "llama-3.2-3b",
        "gpt2",
        "opt-350m",
        "qwen2.5-0.5b",
        "qwen2.5-14b",
        "qwen2.5-32b",
        "qwen2.5-72b",
        "mistral-large-123b",
    ),
)


def _nearest(count: float, words: str) -> str:
    """The preferred model nearest in parameters, else any model of the catalogue. Raises UsageError where none is near."""
    sizes = {name: int(row["parameters"]) for name, row in index().items()}
    # "33B" names a class of models: the class's own number in the name beats a closer count
    named = [name for name in _PREFERRED if name in sizes and name.endswith(f"-{words.replace(' ', '')}")]
    for pool in (named, [n for n in _PREFERRED if n in sizes], sorted(sizes)):
        near = [name for name in pool if abs(sizes[name] - count) <= NEAR * count]
        if near:
            return min(near, key=lambda name: abs(sizes[name] - count)) if pool is not named else near[0]
    closest = sorted(sizes, key=lambda name: abs(sizes[name] - count))[:3]
    raise UsageError(
        f"ask: no model of about {shorten(words)} in the catalogue: the nearest are {', '.join(closest)}; "
        "memplan plan takes any config.json"
    )


def _all_read(reading: _Reading) -> None:
    """A number that nothing read may change the answer: refuse rather than ignore it."""
    left = re.search(r"\d+(?:\.\d+)?\s*[a-z%亿]*", reading.text)
    if left:
        raise UsageError(
            f"ask: '{shorten(left.group().strip())}' was not understood: write sizes as 48GB, sequences as seq 2048, "
            "batches as batch 4, ranks as rank 16"
        )
