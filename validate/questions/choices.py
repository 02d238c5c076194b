"""The methods and settings of a sentence, and what stands beside each other in it: two methods, two ranks, two
GPUs are two questions, or the two sides of a comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from memplan.planner.tables.errors import UsageError
from memplan.validate.questions.question import Question, Side
from memplan.validate.reading import Assumption, B, E, Reading
from memplan.validate.vocabulary import (
    CHANGED,
    FROZEN,
    METHODS_SAID,
    NUMBERS,
    OPPOSITE,
    PAIRED,
    QUANTIZED,
    SWITCHES,
    TO,
    UNQUANTIZED,
)

MOST = 6
"""Questions that one sentence may hold."""
Pairs = dict[str, tuple[Any, Any]]


def methods_of(reading: Reading) -> list[str]:
    """Every method that is named, in the order of the sentence. A 4-bit base alone is QLoRA."""
    found: dict[int, tuple[str, str]] = {}
    for pattern, method in METHODS_SAID:
        for match in list(re.finditer(f"{B}(?:{pattern}){E}", reading.text)):
            found[match.start()] = (method, reading.take(match))
    plain_base = [reading.take(m) for m in list(re.finditer(f"{B}(?:{UNQUANTIZED}){E}", reading.text))]
    quantized = [reading.take(match) for match in list(re.finditer(f"{B}(?:{QUANTIZED}){E}", reading.text))]
    frozen = re.search(f"{B}(?:{FROZEN}){E}", reading.text)
    methods = {method: words for _, (method, words) in sorted(found.items())}
    if not methods and frozen:
        methods = {"freeze": reading.take(frozen)}
    elif frozen:
        reading.take(frozen)
    if plain_base and (quantized or "qlora" in methods):
        raise UsageError(f"ask: '{plain_base[0]}' beside a 4-bit base: say which")
    if quantized:
        methods = _quantized(methods, quantized[0], reading)
    for method, words in list(methods.items())[:1]:
        reading.say("method", method, words)
    return list(methods)


def _quantized(methods: dict[str, str], words: str, reading: Reading) -> dict[str, str]:
    """What a 4-bit base says of the methods beside it. Raises UsageError where it contradicts them."""
    if not methods:
        return {"qlora": words}
    if "qlora" in methods:
        return methods
    if list(methods) == ["lora"]:
        return {"qlora": f"{words} {methods['lora']}"}
    if list(methods) == ["inference"]:
        reading.say("quant_type", "nf4", words)
        return methods
    raise UsageError(f"ask: '{words}' beside {' and '.join(methods)}: a 4-bit base is for LoRA or inference")


def numbers_of(reading: Reading) -> Pairs:
    """Batch, sequence, rank and the like; a field with two values (from 8 to 64) is a pair."""
    pairs: Pairs = {}
    for name, keyword in PAIRED.items():
        pattern = rf"{B}(?:{keyword})(?:\s*(?:从|from|of|=|:|为|是))?\s*(\d+)\s*(k)?\s*{TO}\s*(?:{keyword})?\s*(\d+)\s*(k)?{E}"
        match = re.search(pattern, reading.text)
        if match:
            first, second = _kilo(match[1], match[2]), _kilo(match[3], match[4])
            if re.search(CHANGED, match[0], re.I):  # what becomes of it is compared with what it was
                first, second = second, first
            reading.say(name, first, reading.take(match))
            pairs[name] = (first, second)
    for pattern, name in NUMBERS[:-1]:
        for match in list(re.finditer(f"{B}(?:{pattern}){E}", reading.text)):
            value = _kilo(match[1], match[2] if match.lastindex == 2 else None)
            words = reading.take(match)
            if name not in reading.fields:
                reading.say(name, value, words)
            elif value != reading.fields[name]:
                pairs[name] = (reading.fields[name], value)
    return pairs


def _kilo(number: str, kilo: str | None) -> int:
    return int(number) * (1024 if kilo else 1)


def switches_of(reading: Reading) -> Pairs:
    """Settings that are words; the last, a number in thousands of tokens, after all else."""
    pairs: Pairs = {}
    _modules(reading)
    said = [
        (match.start(), name, value, reading.take(match))
        for pattern, name, value in SWITCHES
        for match in list(re.finditer(f"{B}(?:{pattern}){E}", reading.text))
    ]
    for _, name, value, words in sorted(said, key=lambda one: one[0]):
        if value is None or reading.fields.get(name) == value:
            continue
        if name in reading.fields:
            pairs[name] = (reading.fields[name], value)
        else:
            reading.say(name, value, words)
    pattern, name = NUMBERS[-1]
    last = None if name in reading.fields else re.search(f"{B}(?:{pattern}){E}", reading.text)
    if last:
        reading.say(name, _kilo(last[1], last[2]), reading.take(last))
    return pairs


def _modules(reading: Reading) -> None:
    """Target modules by their names: q_proj, v_proj."""
    found = re.findall(rf"{B}((?:q|k|v|o|gate|up|down|qkv|out)_proj){E}", reading.text)
    if found:
        match = re.search(rf"{B}[a-z]+_proj(?:[\s,、和与and+]*[a-z]+_proj)*", reading.text)
        assert match is not None
        reading.say("targets", tuple(dict.fromkeys(found)), reading.take(match))


def expand(
    question: Question,
    reading: Reading,
    models: Sequence[str],
    gpus: Sequence[str],
    methods: Sequence[str],
    pairs: Pairs,
    before: Question | None,
) -> list[Question]:
    """One question for each combination of what is named beside each other, or one comparison of two."""
    inherited = {} if before is None else {k: v for k, v in before.fields.items() if k not in reading.fields}
    if before is not None and before.open_method:
        inherited.pop("method", None)
    fields = _agree({**inherited, **reading.fields}, reading)
    if "double_quant" in fields and "method" not in fields:
        fields["method"] = "qlora"
    open_method = "method" not in fields
    if open_method:
        fields["method"] = "lora"
        reading.found.append(Assumption("method", "lora"))
    inherited_gpu = before.gpu if before is not None and not question.gpus else None
    cards: list[Any] = [*gpus] or [inherited_gpu]
    whole = replace(
        question,
        model=models[0],
        fields=fields,
        gpu=cards[0],
        assumptions=tuple(reading.found),
        open_method=open_method,
    )
    axes = {
        "model": list(models),
        "gpu": cards,
        "method": list(methods) if len(methods) > 1 else [fields["method"]],
    }
    axes |= {name: list(values) for name, values in pairs.items()}
    if whole.intent == "saving":
        return [_compared(whole, axes)]
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise UsageError(f"ask: {count} combinations in one sentence: ask about at most {MOST}")
    if whole.intent in ("time", "why", "cost", "largest_model"):
        return [whole]
    return [_at(whole, dict(zip(axes, values, strict=True))) for values in product(*list(axes.values()))]


def _at(question: Question, values: Mapping[str, Any]) -> Question:
    fields = {k: v for k, v in values.items() if k not in ("model", "gpu")}
    changed = {k: v for k, v in fields.items() if question.fields.get(k) != v}
    kept = [a for a in question.assumptions if a.name not in changed and not _other(a, question, values)]
    told = [Assumption(name, str(value), str(value)) for name, value in changed.items()]
    told += (
        [Assumption("model", values["model"], values["model"])] if values["model"] != question.model else []
    )
    return replace(
        question,
        model=values["model"],
        gpu=values["gpu"],
        fields={**question.fields, **fields},
        assumptions=(*kept, *told),
    )


def _other(assumption: Assumption, question: Question, values: Mapping[str, Any]) -> bool:
    """Whether an assumption is about the model or GPU of another of the questions."""
    if assumption.name == "model":
        return assumption.value.split(",")[0] != str(values["model"])
    return (
        assumption.name == "gpu"
        and values["gpu"] is not None
        and not assumption.value.startswith(("a GPU sold", "a budget", values["gpu"]))
    )


def _compared(question: Question, axes: Mapping[str, list[Any]]) -> Question:
    """The first of two against the second; where one is said, against what it replaces."""
    if any(len(values) > 2 for values in axes.values()):
        raise UsageError("ask: more than two things are compared: ask about two at a time")
    first = {name: values[0] for name, values in axes.items()}
    second = {name: values[-1] for name, values in axes.items()}
    if first == second:
        fields = question.fields
        said = next((pair for pair in OPPOSITE if fields.get(pair[0]) == pair[1]), None)
        if said is not None and said[0] == "method" and (question.open_method or "rank" in fields):
            said = None
        if said is not None and said[0] == "task" and not question.open_method:
            said = None  # the task or the method: the sentence does not say which
        if said is None:
            raise UsageError(
                "ask: what is compared with what? name both, such as LoRA and QLoRA, or rank 8 and 64"
            )
        name, other = OPPOSITE[said]
        second = {**second, name: other}
    one, two = _at(question, first), _at(question, {**first, **second})
    return replace(one, against=Side(two.model, two.fields, two.gpu))


def _agree(fields: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """What one word means beside another: an 8-bit base is quantized. Raises UsageError where they clash."""
    if fields.get("quant_type") == "int8":
        if fields.get("method", "lora") not in ("lora", "qlora"):
            raise UsageError("ask: an 8-bit base is for LoRA: say LoRA, or 8-bit Adam for the optimizer")
        fields["method"] = "qlora"
    return fields
