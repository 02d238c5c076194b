"""The conditions that a claim's verdict was found under, in one line: GPUs, offloading, weights,
checkpointing, sequence, optimizer, and the versions of the libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from memplan.planner.inputs.setup import Setup
from memplan.planner.tables.errors import UsageError
from memplan.profiler.localized_message import LocalizedMessage
from memplan.validate.claimsfile import Part
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.numbers import number
from memplan.validate.sweep import PartResult

_BYTES = {"peak", "step_peak", "device", "rows", "host"}
_LISTED = 3  # so many values are listed, of more only the least and the most

Text = tuple[str, str]
"""English and Chinese."""


def conditions(results: Iterable[PartResult], context: EvaluationContext) -> Text:
    """The line in English and in Chinese; empty where the verdict hangs on no setting, as a count does."""
    deciding = [r for r in results if r.part.decides and r.verdict != "not_checkable"]
    setups = [setup for r in deciding if _of_memory(r.part) for setup in _setups(r.part, context)]
    found: list[Text] = []
    for say in _SAID if setups else ():
        told = say(setups)
        if told[0]:
            found.append(told)
    versions = _versions(deciding)
    if versions:
        found.append((versions, versions))
    return "; ".join(en for en, _ in found), "；".join(zh for _, zh in found)


def _of_memory(part: Part) -> bool:
    """Whether a part speaks of the memory of a run: what a setting moves."""
    if part.check in ("fits", "dry_run", "row_dtype"):
        return True
    terms = (*part.args.get("of", ()), *part.args.get("per", ()))
    named = {part.args.get("quantity", ""), *(term.get("quantity", "") for term in terms)}
    return part.check == "quantity" and bool(named & _BYTES)


def _setups(part: Part, context: EvaluationContext) -> list[Setup]:
    """The settings of a part, resolved: at both ends of what it leaves open."""
    over = part.over
    key = over.key.removeprefix("setup.") if over is not None and over.key.startswith("setup.") else ""
    ends: tuple[Any, ...] = (None,)
    if over is not None and key:
        ends = over.values or (over.low, over.high)
    model = part.model or (str(over.values[0]) if over is not None and over.key == "model" else "")
    per = [{**term.get("setup", {})} for term in part.args.get("per", ()) if "setup" in term]
    made = []
    for end in ends:
        fields = {**part.setup, **({key: end} if key else {})}
        for each in ({}, *per):
            try:
                made.append(context.setup(model or "llama-7b", {**fields, **each}))
            except UsageError:
                continue
    return made


def _values(setups: list[Setup], value: Callable[[Setup], Any]) -> list[Any]:
    """What the settings hold of one thing, each once, in their order."""
    return list(dict.fromkeys(value(setup) for setup in setups))


def _gpus(setups: list[Setup]) -> Text:
    found = _values(setups, lambda s: (s.gpus, s.parallel if s.gpus > 1 or s.parallel != "none" else ""))
    en = [f"{n} GPU{'s' if n > 1 else ''}{f' ({how})' if how else ''}" for n, how in found]
    zh = [f"{n} 张卡{f'（{how}）' if how else ''}" for n, how in found]
    return " or ".join(en), " 或 ".join(zh)


def _offload(setups: list[Setup]) -> Text:
    names = {
        "none": ("nothing offloaded", "不卸载"),
        "optimizer": ("states offloaded", "状态卸载"),
        "all": ("parameters and states offloaded", "参数与状态卸载"),
    }
    found = [names[value] for value in _values(setups, lambda s: s.offload)]
    return " or ".join(en for en, _ in found), " 或 ".join(zh for _, zh in found)


def _weights(setups: list[Setup]) -> Text:
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    found = _values(setups, lambda s: s.quant_type if s.quant_type != "none" else short[s.weight_dtype])
    return f"{' or '.join(found)} weights", f"{' 或 '.join(found)} 权重"


def _checkpointing(setups: list[Setup]) -> Text:
    trained = [s for s in setups if s.method != "inference"]
    found = set(_values(trained, lambda s: s.checkpointing != "none"))
    return {
        frozenset(): ("", ""),
        frozenset({True}): ("checkpointing", "开检查点"),
        frozenset({False}): ("no checkpointing", "不开检查点"),
    }.get(frozenset(found), ("with and without checkpointing", "开与不开检查点"))


def _numbers(setups: list[Setup], name: str) -> str:
    found = sorted(_values(setups, lambda s: getattr(s, name)))
    if len(found) <= _LISTED:
        return ", ".join(number(n) for n in found)
    return f"{number(found[0])}–{number(found[-1])}"


def _sequence(setups: list[Setup]) -> Text:
    told = _numbers(setups, "sequence_length")
    return f"sequence {told}", f"序列 {told}"


def _batch(setups: list[Setup]) -> Text:
    told = _numbers(setups, "micro_batch")
    return f"batch {told}", f"批 {told}"


def _optimizer(setups: list[Setup]) -> Text:
    found = _values([s for s in setups if s.method != "inference"], lambda s: s.optimizer)
    told = ", ".join(found[:_LISTED])
    return told, told


def _release(setups: list[Setup]) -> Text:
    told = ", ".join(f"torch {version}" for version in _values(setups, lambda s: s.torch))
    return told, told


_SAID: tuple[Callable[[list[Setup]], Text], ...] = (
    _gpus,
    _offload,
    _weights,
    _checkpointing,
    _sequence,
    _batch,
    _optimizer,
    _release,
)


def _versions(deciding: list[PartResult]) -> str:
    """The libraries that facts were read from, with their versions."""
    found: dict[str, None] = {}
    for result in deciding:
        if result.part.check == "library_fact" and isinstance(result.evidence, LocalizedMessage):
            values = result.evidence.values
            found[f"{values['library']} {values['version']}"] = None
    return ", ".join(found)
