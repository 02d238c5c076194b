"""Which GPU a question speaks of, and how many of it: "8xA100 40GB", "two 3090s", "单张 24G"."""

from __future__ import annotations

import re
from functools import cache

from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.gpus import SOLD, Gpu, find_gpu, gpus, said_of
from memplan.planner.tables.units import gib
from memplan.validate.reading import Assumption, B, E, Reading
from memplan.validate.vocabulary import COUNTS

MOST_CARDS = 1024
MOST_NAMED = 4
_COUNT = "|".join(sorted(COUNTS, key=len, reverse=True))
_BEFORE = rf"(?:{B}(\d+|{_COUNT})[\s-]*(?:x|\*|张|块|卡|个|gpus?|cards?)*[\s-]*)?"


_HOST = re.compile(
    rf"{B}(?:and |with |和)?(\d+)\s*g(?:i?b)?\s*(?:of )?(?:(?:system|host|cpu|main) )?(?:ram|内存)"
)
_CONSUMER = (
    r"(?:single |one |a )?(?:consumer|gaming)(?:[- ]grade)?(?: (?:gpus?|(?:graphics )?cards?|hardware))?"
    r"|(?:单张|一张)?(?:消费级|游戏)(?:显卡|gpu|卡|硬件)?"
)


def cards_of(reading: Reading) -> list[str]:
    """Every GPU that is named; where none is, every size of one."""
    found: list[str] = []
    for look in (card, size_of_card):
        while not found or look is card or len(found) < MOST_NAMED:
            name = look(reading)
            if name is None:
                break
            found += [] if name in found else [name]
        if found:
            return found
    return found


def host_memory(reading: Reading) -> str:
    """Main memory beside a GPU, which holds nothing of what is predicted; empty where none is named."""
    match = _HOST.search(reading.text)
    return re.sub("^(?:and|with|和) ?", "", reading.take(match)) if match else ""


def consumer_cards(reading: Reading) -> tuple[str, ...]:
    """The common consumer GPUs, where a sentence speaks of consumer GPUs and names none."""
    match = re.search(f"{B}(?:{_CONSUMER})", reading.text)
    if match is None:
        return ()
    reading.take(match)
    return tuple(gpu.name for gpu in gpus().values() if gpu.kind == "consumer" and gpu.common)


@cache
def _card_words() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Every wording of a GPU as a pattern, longest first, and the GPU. Compiled once: re
    keeps fewer."""
    words = {word.lower(): gpu.name for gpu in gpus().values() for word in (gpu.name, *gpu.aliases)}
    words |= {name.split("-", 1)[1]: name for name in gpus() if re.match(r"(rtx|gtx)-\d{4}", name)}
    for gpu in sorted(gpus().values(), key=lambda gpu: (gpu.common, gpu.usable_bytes)):
        series = re.sub(
            r"-\d+gb$", "", gpu.name
        )  # "a100" alone: the most common of that series, and it is said which
        if series != gpu.name and series not in gpus():
            words[series] = gpu.name
    made = []
    for word in sorted(words, key=len, reverse=True):
        if word.isdigit() and len(word) != 4:
            continue
        name = r"[\s\-_]*".join(re.escape(part) for part in re.split(r"[\s\-_]+", word))
        size = r"(?:[\s\-_,(]*(?:with |有)?(?<![\d.])(\d+)\s*g(?:i?b|igs?|igabytes?)?\)?(?![a-z0-9]))?"
        ahead = r"(?:(?<![\d.])(\d+)\s*g(?:i?b|igs?)?[\s\-]+)?(?<![a-wyz0-9.])"
        pattern = rf"{_BEFORE}{ahead}{name}(?:s|卡)?{size}(?:\s*[x*]\s*(\d+))?{E}"
        made.append((re.compile(pattern), words[word]))
    return tuple(made)


def card(reading: Reading) -> str | None:
    """A GPU by name, longest name first, with how many of it and a size beside it ("8xA100 40GB")."""
    for pattern, named in _card_words():
        match = pattern.search(reading.text)
        if match:
            before, ahead, behind, after = match.groups()
            gigabytes = behind or ahead
            gpu = _of_size(gpus()[named], int(gigabytes) if gigabytes else None)
            said = reading.take(match)
            reading.found.append(Assumption("gpu", _card(gpu), said, _card(gpu, "可用")))
            _count(reading, before or after, said)
            return gpu.name
    return None


def _of_size(gpu: Gpu, gigabytes: int | None) -> Gpu:
    """The GPU of that series that is sold with so many GB. Raises UsageError where none is."""
    if gigabytes is None or gpu.marketing_gb == gigabytes:
        return gpu
    series = re.sub(r"-\d+gb$", "", gpu.name)
    sizes = {g.marketing_gb: g for g in gpus().values() if re.sub(r"-\d+gb$", "", g.name) == series}
    if gigabytes in sizes:
        return sizes[gigabytes]
    sold = " or ".join(f"{size:g} GB" for size in sorted(s for s in sizes if s is not None))
    raise UsageError(f"ask: {series} is sold with {sold}, not {gigabytes} GB: name the GPU or the size alone")


def _count(reading: Reading, text: str | None, words: str) -> None:
    if text is None:
        return
    count = COUNTS[text] if text in COUNTS else int(text)
    if not 1 <= count <= MOST_CARDS:
        raise UsageError(f"ask: '{words}': expected 1 to {MOST_CARDS} GPUs")
    if count > 1 and "gpus" not in reading.fields:
        reading.say("gpus", count, words)


def how_many(reading: Reading, gpu: str | None) -> None:
    """How many GPUs, where it stands apart from their name, and the strategy that shares among them."""
    pattern = rf"{B}(\d+|{_COUNT})\s*(?:x(?=\s*(?:gpus?|cards?))|张|块|卡|个?gpu|gpus?|cards?)(?:显?卡)?"
    match = re.search(pattern, reading.text)
    if match:
        _count(reading, match.group(1), reading.take(match))
    if "gpus" in reading.fields and "parallel" not in reading.fields:
        reading.fields["parallel"] = "fsdp"
        reading.found.append(Assumption("parallel", "fsdp"))
    if "parallel" in reading.fields and "gpus" not in reading.fields and gpu is not None:
        raise UsageError(
            f"ask: {reading.fields['parallel']} on how many GPUs? write them before the GPU's name: 8xA100"
        )


def _card(gpu: Gpu, usable: str = "usable") -> str:
    return f"{gpu.name} ({gib(gpu.usable_bytes)} {usable})"


def size_of_card(reading: Reading) -> str | None:
    """48GB is a GPU sold as such, of the smallest usable size (as after --gpu); 44GiB is a budget."""
    match = re.search(
        rf"{_BEFORE}{B}(\d+(?:\.\d+)?)\s*(gib|gb|g(?:igs?|igabytes?)?){E}(?:的?显存|的?显卡|的?卡)?",
        reading.text,
    )
    if match is None:
        return None
    size, unit = float(match.group(2)), match.group(3)
    words = reading.take(match)
    _count(reading, match.group(1), words)
    if unit == "gib":
        reading.found.append(Assumption("gpu", f"a budget of {words}", words, f"预算 {words}"))
        return f"{size:g}GiB"
    gpu = find_gpu(f"{size:g}GB")
    if gpu.kind != SOLD:
        said = f"a budget of {gpu.usable_bytes:,} bytes: no GPU is sold with {size:g} GB"
        reading.found.append(
            Assumption("gpu", said, words, f"预算 {gpu.usable_bytes:,} 字节（没有标称 {size:g} GB 的卡）")
        )
        return f"{size:g}GB"
    zh = f"标称 {size:g} GB 的显卡中可用显存最小的：{gib(gpu.usable_bytes)}"
    reading.found.append(Assumption("gpu", said_of(gpu), words, zh))
    return gpu.name
