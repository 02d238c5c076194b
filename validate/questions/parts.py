"""A sentence in parts, each a question of its own: "does 33B fit 24GB and 65B fit 48GB?" are two."""

from __future__ import annotations

import re

from memplan.validate.reading import B, E

_ENDS = re.compile(r"(?<=[.?!;])(?=\s|[\u3400-\u9fff])")
_JOINTS = re.compile(r"\s+(?:and|while|but)\s+|[,;]\s*(?:and\s+)?|以及|[而和、]")
_MODEL = re.compile(
    rf"{B}\d+(?:\.\d+)?\s*b{E}|\d\s*亿|[百千十]亿|{B}(?:llama|qwen|mistral|mixtral|gemma|phi|falcon|opt|gpt|bloom|yi)"
)
_GPU = re.compile(
    rf"{B}\d+(?:\.\d+)?\s*(?:gib|gb|g|gig){E}|{B}(?:[abhlt]\d{{1,3}}|[2-5]0[5-9]0|v100|rtx|mi\d{{3}}x?)"
)
_ASKS = re.compile(r"how |what |which |why |can |does |will |多|几|吗|能|省|为什么|哪")


def split(text: str) -> list[str]:
    """The parts, in order: sentences that each ask something, and halves that each name a model and a GPU."""
    pieces = [piece for piece in (one.strip() for one in _ENDS.split(text)) if piece]
    merged: list[str] = []
    for piece in pieces:
        apart = merged and _MODEL.search(merged[-1]) and _ASKS.search(merged[-1]) and _ASKS.search(piece)
        if merged and not apart:
            merged[-1] = f"{merged[-1]} {piece}"
        else:
            merged.append(piece)
    return [half for piece in merged for half in _halves(piece)]


def _halves(text: str) -> list[str]:
    for joint in _JOINTS.finditer(text):
        left, right = text[: joint.start()], text[joint.end() :]
        if all(_MODEL.search(half) and _GPU.search(half) for half in (left, right)):
            return [left, *_halves(right)]
    return [text]
