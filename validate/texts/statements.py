"""Statements of numbers in a sentence (statements.toml): which it makes, with what values. Precision before recall:
of the clauses that a wording touches all must be read but for connecting words, and of the others every number.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from memplan.validate.claimsfile import Claim
from memplan.validate.reading import TAKEN, B, E
from memplan.validate.texts.lexicon import CONDITIONS, TURNS
from memplan.validate.texts.match import text_of
from memplan.validate.texts.normal import clauses, normal
from memplan.validate.texts.sentences import NUMBER, Sentence
from memplan.validate.texts.slots import KINDS, compiled, plain, value_of
from memplan.validate.texts.stating import claims_of
from memplan.validate.texts.subject import methods_in
from memplan.validate.vocabulary import SWITCHES

HERE = Path(__file__).parent
_FREE = ("model", "rank", "targets", "dtype", "sequence", "batch")
"""Slots that are found outside of a wording too: in its clause, or in one before it."""
_PER = re.compile(
    r"(\d+|sixteen|eight) ?(?:bytes per (?:parameter|weight)|字节(?:/|每)参数)|每个?参数约?(?:占|需要?|是|为)?约?(\d+)字节"
)
_SETTINGS = {
    "mixed": re.compile(
        r"(?:with |in |under |using |以)?(?:(?:plain |standard )?adamw? ?(?:and|in|的)? ?)?(?:mixed[- ]precision|混合精度)(?: ?training)?(?:的)?(?: ?(?:with |and )?adamw?)?(?:为例|训练|下)?"
    ),
    "pure": re.compile(
        r"(?:with |in |under |以)?(?:(?:plain |standard )?adamw? (?:in )?)?(?:pure|everything in|纯) ?(?:bf16|bfloat16)(?: ?(?:with |and )?adamw?)?(?:训练|下)?"
    ),
}
_SWITCH = re.compile("|".join(f"{B}(?:{pattern}){E}" for pattern, _, value in SWITCHES if value is not None))
_NAMES_A_MODEL = re.compile(r"(?<!\d)(?<!\d\.)\d+(?:\.\d+)?b(?![a-z0-9])")


@dataclass(frozen=True)
class Kind:
    """One row of statements.toml; its keys are explained at the head of that file."""

    id: str
    says: tuple[str, ...]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    about: str = ""
    apart: str = ""
    least: float = 0.0


@dataclass
class Hit:
    """A wording found: its kind, its span, and what its slots mean."""

    kind: Kind
    span: tuple[int, int]
    values: dict[str, Any]
    slots: dict[str, str] = field(default_factory=dict)


@cache
def _table() -> tuple[tuple[Kind, ...], tuple[tuple[str, str], ...], frozenset[str], tuple[str, ...]]:
    """Kinds, macros, and the connecting words of both languages."""
    document = tomllib.loads((HERE / "statements.toml").read_text(encoding="utf-8"))
    kinds = tuple(_kind(row) for row in document["kind"])
    words = document["words"]
    chinese = tuple(sorted(words["zh"].split(), key=len, reverse=True))
    return kinds, tuple(document["macros"].items()), frozenset(words["en"].split()), chinese


def _kind(row: dict[str, Any]) -> Kind:
    made: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    return Kind(**made)


def statements(sentence: Sentence, name: str) -> list[Claim]:
    """The claims of a sentence that states numbers; empty where not all of it is read."""
    text = plain(text_of(sentence))
    if TURNS.search(text) or "?" in text:
        return []
    hits = _apart(list(_hits(text, sentence)))
    if not hits:
        return []
    rest = text
    for hit in hits:
        rest = _blank(rest, hit.span)
    touched = [
        c for c in clauses(text) if any(c[0] < end and start < c[1] for start, end in (h.span for h in hits))
    ]
    rest, pool = _settings(rest, hits)
    for n, hit in enumerate(hits):
        if "gpu" in hit.kind.takes and "gpu" not in hit.values:
            hit.values |= next(
                ({"gpu": h.values["gpu"]} for h in reversed(hits[:n]) if "gpu" in h.values), {}
            )
        if not _complete(hit, pool, sentence):
            return []
    if not _methods_fit(rest, sentence, hits) or not _all_read(rest, touched):
        return []
    made = [claims_of(hit.kind.id, hit.values, name, sentence.text) for hit in hits]
    return [claim for claims in made for claim in claims] if all(made) else []


def _hits(text: str, sentence: Sentence) -> Iterator[Hit]:
    """Every wording found in a text whose slots all mean something."""
    kinds, macros, _, _ = _table()
    around = plain(normal(" ".join((*sentence.above, sentence.before)))) + " " + text
    for kind in kinds:
        if kind.about and not re.search(kind.about, around):
            continue
        for wording in kind.says:
            pattern, slots = compiled(wording, macros)
            for match in pattern.finditer(text):
                start = match.start() + len(match.group()) - len(match.group().lstrip())
                clause = next((text[a:b] for a, b in clauses(text) if a <= start < b), "")
                if not match.group().strip() or (kind.apart and re.search(kind.apart, clause)):
                    continue
                values = {
                    k: value_of(slots[k], v) if k in slots else v for k, v in match.groupdict().items() if v
                }
                if None not in values.values() and _large_enough(kind, values):
                    yield Hit(kind, (start, match.end()), values, slots)


def _large_enough(kind: Kind, values: Mapping[str, Any]) -> bool:
    """Whether a count is one of parameters: no count of layers or bits."""
    counts = [values[name].amount.value for name in ("count", "n") if name in values]
    return all((min(c) if isinstance(c, tuple) else c) >= kind.least for c in counts)


def _apart(hits: list[Hit]) -> list[Hit]:
    """Hits of which no two account for the same words: the one with more slots wins, then the longer one."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda h: (-len(h.values), h.span[0] - h.span[1])):
        if not any(hit.span[0] < other.span[1] and other.span[0] < hit.span[1] for other in kept):
            kept.append(hit)
    return sorted(kept, key=lambda h: h.span)


def _blank(text: str, span: tuple[int, int]) -> str:
    return text[: span[0]] + TAKEN * (span[1] - span[0]) + text[span[1] :]


def _settings(rest: str, hits: list[Hit]) -> tuple[str, dict[str, list[tuple[int, Any]]]]:
    """What is named outside of the wordings and asked for by one of them: slot -> (place, value); blanked."""
    wanted = {slot for hit in hits for slot in (*hit.kind.needs, *hit.kind.takes)}
    pool: dict[str, list[tuple[int, Any]]] = {}
    for slot, pattern in _SETTINGS.items():
        match = pattern.search(rest) if slot in wanted else None
        if match:
            pool[slot] = [(match.start(), True)]
            rest = _blank(rest, match.span())
    for slot in _FREE:
        if slot not in wanted:
            continue
        for match in list(re.finditer(KINDS[slot][0], rest)):
            value = value_of(slot, match.group())
            if value is not None:
                pool.setdefault(slot, []).append((match.start(), value))
                rest = _blank(rest, match.span())
    return rest, pool


def _complete(hit: Hit, pool: Mapping[str, list[tuple[int, Any]]], sentence: Sentence) -> bool:
    """Fill in what a hit needs and may take, from its own slots, its sentence, the sentences before; False where
    something that it needs is nowhere.
    """
    for slot in (*hit.kind.needs, *hit.kind.takes):
        if slot in hit.values:
            continue
        own = next(
            (
                k
                for k in ("in", "of", "at", "how", "s", "family")
                if hit.slots.get(k) in (slot, *(["family"] if slot == "model" else [])) and k in hit.values
            ),
            None,
        )
        if own is not None:
            hit.values[slot] = hit.values[own]
            continue
        near = [value for place, value in pool.get(slot, ()) if place < hit.span[1]] or [
            value for _, value in pool.get(slot, ())[:1]
        ]
        value = near[-1] if near else _carried(slot, sentence) if slot in hit.kind.carries else None
        if value is None and slot == "model" and "checkpoint" in hit.values:
            value = "of the checkpoint"
        if value is None and slot in hit.kind.needs:
            return False
        if value is not None:
            hit.values[slot] = value
    return True


def _carried(slot: str, sentence: Sentence) -> Any:
    """What the sentences before name, if it is one alone; else the nearest heading that names one."""
    for said in (sentence.before, *reversed(sentence.above)):
        text = plain(normal(said))
        if slot == "per":
            found = {
                float({"sixteen": 16, "eight": 8}.get(m[0] or m[1], m[0] or m[1])) for m in _PER.findall(text)
            }
        else:
            if slot == "model" and not _NAMES_A_MODEL.search(text):
                continue
            found = {value_of(slot, m.group()) for m in re.finditer(KINDS[slot][0], text)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _methods_fit(rest: str, sentence: Sentence, hits: list[Hit]) -> bool:
    """Whether no other method is spoken of than those that the kinds are about."""
    allowed = {method for hit in hits for method in hit.kind.methods}
    if not allowed:
        return not methods_in(rest) or all(
            m in ("full", "lora", "qlora", "peft") for _, m in methods_in(rest)
        )
    named = {method for _, method in methods_in(rest)}
    if named:
        return named <= allowed
    earlier = methods_in(normal(sentence.before)) or methods_in(normal(" ".join(sentence.above)))
    others = [method for _, method in earlier if method != "full"]  # what an adapter is compared with
    return not others or others[-1] in allowed


def _all_read(rest: str, touched: list[tuple[int, int]]) -> bool:
    """Whether of the touched clauses nothing but connecting words is left, and of the others no number, no setting
    and no condition.
    """
    for start, end in touched:
        if _unread(rest[start:end]):
            return False
        rest = _blank(rest, (start, end))
    for clause in clauses(rest):
        if not _unread(rest[clause[0] : clause[1]]):  # settings and connecting words alone
            rest = _blank(rest, clause)
    return not any(pattern.search(rest) for pattern in (NUMBER, _SWITCH, CONDITIONS))


def _unread(clause: str) -> str:
    """What of a clause is neither read nor a connecting word; empty where all is."""
    _, _, english, chinese = _table()
    for _, method in methods_in(clause):
        clause = (
            re.sub(
                rf"{B}(?:q-?lora|lora|full(?: fine-?tuning)?|全参数?(?:量)?(?:微调)?|全量微调){E}",
                " ",
                clause,
            )
            if method
            else clause
        )
    clause = re.sub(r"[a-z][a-z'-]*", lambda m: " " if m.group() in english else m.group(), clause)
    for word in chinese:
        clause = clause.replace(word, " ")
    return re.sub(r"[^\w]|¦|_", "", clause)
