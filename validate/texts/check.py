"""A text checked: every sentence with its claims, their verdicts, one sentence why, the condition and the wording
that would be right; the sentences that were not read; counts; and the claims as a claims file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memplan.planner import __version__
from memplan.planner.inputs.textfile import read_text
from memplan.planner.tables.errors import UsageError, shorten
from memplan.planner.tables.progress import telling
from memplan.profiler.localized_message import LocalizedMessage, said
from memplan.validate.chinese import in_language
from memplan.validate.claims import ClaimResult, check_claim
from memplan.validate.claimsfile import Claim
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.kept import Kept
from memplan.validate.numbers import amount
from memplan.validate.sweep import PartResult
from memplan.validate.texts.fitting import fitting
from memplan.validate.texts.html import text_of_html
from memplan.validate.texts.lexicon import FIELD
from memplan.validate.texts.match import matches
from memplan.validate.texts.normal import normal
from memplan.validate.texts.printed import printed
from memplan.validate.texts.sentences import NO_CLAIM, NUMBER, Sentence, sentences
from memplan.validate.texts.state import stated
from memplan.validate.texts.statements import statements
from memplan.validate.verdict_sentence import MOST_NAMES, limit, verdict_sentence

SCHEMA = "memplan.check/1"
MOST_BYTES = 2 * 2**20
"""A book's chapter has 50 kB; ten times the longest is no text that one checks sentence by sentence."""
STATUSES = ("supported", "refuted", "depends", "not_checkable", "not_understood", "no_claim")


@dataclass(frozen=True)
class Checked:
    """One sentence with what came of it; `why_unread` says why nothing of it was read."""

    sentence: Sentence
    status: str
    results: tuple[ClaimResult, ...] = ()
    why_unread: LocalizedMessage | None = None

    def unread(self, lang: str = "en") -> str:
        """Why it was not read, in words; empty where it was."""
        return "" if self.why_unread is None else self.why_unread.text(in_language(lang))

    def to_document(self) -> dict[str, Any]:
        """This sentence as one entry of the memplan.check/1 document."""
        one = self.sentence
        return {
            "line": one.line,
            "start": one.start,
            "end": one.end,
            "kind": one.kind,
            "text": one.text,
            "status": self.status,
            "number": has_number(one),
            "why_unread": self.unread() or None,
            "why_unread_zh": self.unread("zh") or None,
            "claims": [
                {
                    **result.to_document(),
                    "sentence": verdict_sentence(result),
                    "sentence_zh": verdict_sentence(result, "zh"),
                    "condition": condition(result) or None,
                    "condition_zh": condition(result, "zh") or None,
                    "corrected": corrected(result) or None,
                    "corrected_zh": corrected(result, "zh") or None,
                }
                for result in self.results
            ],
        }


def read_document(path: Path) -> str:
    """The text of a file: HTML by its tags, else as it stands. Raises UsageError naming what is wrong with it."""
    text = read_text(path, MOST_BYTES)
    if path.suffix.lower() in (".html", ".htm", ".xhtml") or text[:200].lstrip().lower().startswith(
        ("<!doctype html", "<html")
    ):
        text = text_of_html(text)
    if not any(character.isalpha() for character in text):
        raise UsageError(f"'{shorten(str(path))}' holds no text")
    return text


def has_number(sentence: Sentence) -> bool:
    """Whether a sentence holds a number, in digits or in words."""
    return NUMBER.search(sentence.text.lower()) is not None


def read_sentence(sentence: Sentence, name: str = "1") -> tuple[list[Claim], LocalizedMessage | None]:
    """The claims of one sentence, with ids from `name`; where there are none, why it was not read."""
    found, why = matches(sentence)
    claims = [stated(match, name, sentence.text) for match in found]
    more = statements(sentence, name)
    claims = more if len(more) > len(claims) else claims
    claims = claims or fitting(sentence, name) or printed(sentence, name)
    many = len(claims) > 1
    return [
        replace(one, id=f"{name}{'abcdefgh'[n % 8] if many else ''}") for n, one in enumerate(claims)
    ], None if claims else why


def check_text(text: str, context: EvaluationContext, kept: Kept | None = None) -> list[Checked]:
    """Every sentence of a text, in its order, with its verdicts."""
    checked = []
    seen: Counter[int] = Counter()
    for sentence in sentences(text):
        if sentence.kind in NO_CLAIM:
            checked.append(Checked(sentence, "no_claim", why_unread=said(sentence.kind)))
            continue
        seen[sentence.line] += 1
        name = f"line-{sentence.line}" + (f"-{seen[sentence.line]}" if seen[sentence.line] > 1 else "")
        if (
            FIELD.search(normal(sentence.text)) is None
            and FIELD.search(normal(" ".join(sentence.above))) is None
        ):
            checked.append(
                Checked(sentence, "no_claim", why_unread=said("says nothing about training memory"))
            )
            continue
        claims, why = read_sentence(sentence, name)
        if not claims:
            checked.append(
                Checked(sentence, "not_understood", why_unread=why or said("no claim of the bank"))
            )
            continue
        with telling(f"line {sentence.line}"):
            results = tuple(_result(claim, context, kept) for claim in claims)
        checked.append(Checked(sentence, _together(results), results))
    return checked


def _result(claim: Claim, context: EvaluationContext, kept: Kept | None) -> ClaimResult:
    return check_claim(claim, context, kept)


def _together(results: Iterable[ClaimResult]) -> str:
    """One status for all claims of a sentence: a refuted one refutes it."""
    verdicts = {result.verdict for result in results}
    return next(one for one in ("refuted", "depends", "not_checkable", "supported") if one in verdicts)


def condition(result: ClaimResult, lang: str = "en") -> str:
    """What the verdict hangs on: the limits of the deciding parts, else the settings that it was found under,
    else what was asked first.
    """
    limits = [_limits(part, lang) for part in result.parts if part.part.decides and part.boundaries]
    if limits:
        return in_language(lang)("; ").join(dict.fromkeys(limits))
    settings = result.conditions[1 if lang == "zh" else 0]
    if settings:
        return settings
    part = next((one.part for one in result.parts if one.part.decides), result.parts[0].part)
    return (part.zh if lang == "zh" else "") or part.what


def _limits(part: PartResult, lang: str) -> str:
    """A part's limits in words; of many names, how many of them hold."""
    return in_language(lang)("; ").join(limit(boundary, lang, MOST_NAMES) for boundary in part.boundaries)


def corrected(result: ClaimResult, lang: str = "en") -> str:
    """What would be right in the sentence's place, where it is not; empty where it is or nobody knows."""
    if result.verdict in ("supported", "not_checkable"):
        return ""
    wrong = [part for part in result.parts if part.part.decides and part.verdict in ("refuted", "depends")]
    reading = (result.claim.zh if lang == "zh" else "") or result.claim.reading
    colon = "：" if lang == "zh" else ": "
    for part in wrong:
        if part.boundaries:
            return f"{reading}{colon}{_limits(part, lang)}"
        label = (part.part.zh if lang == "zh" else "") or part.part.what
        if part.spread is not None:
            between = {"en": " to ", "zh": " 到 "}[lang]
            ends = [amount(n, part.part.unit).text(in_language(lang)) for n in dict.fromkeys(part.spread)]
            return f"{label}{colon}{between.join(ends)}"
        return f"{label}{colon}{part.evidence.text(in_language(lang))}"
    return ""


def counts(checked: Iterable[Checked]) -> dict[str, int]:
    """How many sentences of each status, and how many of those with a number were read."""
    found = Counter(one.status for one in checked)
    return {status: found[status] for status in STATUSES}


def to_document(name: str, checked: list[Checked]) -> dict[str, Any]:
    """The document of `memplan check --json` (schema memplan.check/1)."""
    return {
        "schema": SCHEMA,
        "memplan_version": __version__,
        "file": name,
        "summary": counts(checked),
        "sentences": [one.to_document() for one in checked],
    }
