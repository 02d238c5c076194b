"""Claims checked: parts -> verdict of each claim -> the document memplan.claims/1. No verdict is stored
anywhere; all are computed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memplan.planner import __version__
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.progress import telling
from memplan.profiler.localized_message import LocalizedMessage
from memplan.validate.checks import CHECKS
from memplan.validate.chinese import in_language
from memplan.validate.claimsfile import Claim, ClaimsFile, Conflict, Part, read_claims
from memplan.validate.conditions import conditions
from memplan.validate.evaluation_context import EvaluationContext
from memplan.validate.evidence_kinds import beside, counted, kind_of, kinds_of
from memplan.validate.kept import Kept
from memplan.validate.numbers import amount, shown, word
from memplan.validate.sweep import Boundary, PartResult, Verdict, check_part, holds

SHIPPED = Path(__file__).with_name("claims.toml")
CLAIMS_SCHEMA = "memplan.claims/1"
VERDICTS: tuple[Verdict, ...] = ("supported", "refuted", "depends", "not_checkable")


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its verdict and the results of its parts."""

    claim: Claim
    verdict: Verdict
    parts: tuple[PartResult, ...]
    conditions: tuple[str, str] = ("", "")  # what it was found under, in English and in Chinese

    @property
    def evidence(self) -> str:
        """The evidence of the deciding parts, in English."""
        return self.said()

    def said(self, lang: str = "en") -> str:
        """The sentences that carry the verdict, then what the file wants told beside it."""
        told = _telling(self.verdict, self.parts)
        also = [part for part in self.parts if part.part.tell and part not in told]
        parts = [said(part, lang) for part in told] + [f"{_ALSO[lang]}{said(part, lang)}" for part in also]
        return _STOP[lang].join(parts)

    def to_document(self) -> dict[str, Any]:
        """This claim as one entry of the memplan.claims/1 document."""
        claim = self.claim
        return {
            "id": claim.id,
            "reading": claim.reading,
            "zh": claim.zh,
            "sources": [{"document": s.document, "quote": s.quote} for s in claim.sources],
            "verdict": self.verdict,
            "parts": [{**part.to_document(), "kind": kind_of(part) or None} for part in self.parts],
            "kinds": kinds_of(self.parts),
            "conditions": self.conditions[0] or None,
            "conditions_zh": self.conditions[1] or None,
            "evidence": self.evidence,
            "evidence_zh": self.said("zh"),
        }


@dataclass(frozen=True)
class SideResult:
    """One side of a conflict: what a document says, and the verdict on it."""

    document: str
    quote: str
    claimed: Any
    relation: str
    verdict: Verdict


@dataclass(frozen=True)
class ConflictResult:
    """Whether the sides exclude each other, and which of them the arbiter finds true."""

    conflict: Conflict
    contradict: bool
    sides: tuple[SideResult, ...]
    evidence: LocalizedMessage
    condition: tuple[Boundary, ...] = ()

    def said(self, lang: str = "en") -> str:
        """What the arbiter found, with where it changes."""
        evidence = self.evidence.text(in_language(lang))
        where = "; ".join(boundary.said(lang) for boundary in self.condition)
        return f"{where}{_BRACKETS[lang].format(evidence)}" if where else evidence

    def to_document(self) -> dict[str, Any]:
        """This conflict as one entry of the memplan.claims/1 document."""
        return {
            "id": self.conflict.id,
            "about": self.conflict.about,
            "zh": self.conflict.zh,
            "contradict": self.contradict,
            "evidence": self.said(),
            "evidence_zh": self.said("zh"),
            "sides": [
                {
                    "document": s.document,
                    "quote": s.quote,
                    "claimed": list(s.claimed) if isinstance(s.claimed, tuple) else s.claimed,
                    "relation": s.relation,
                    "verdict": s.verdict,
                }
                for s in self.sides
            ],
        }


def load(path: str | Path | None = None) -> ClaimsFile:
    """A claims file, the shipped one by default. Raises UsageError with file, line and key."""
    return read_claims(path or SHIPPED, {name: (kind.reads, kind.needs) for name, kind in CHECKS.items()})


def combine(parts: Iterable[PartResult]) -> Verdict:
    """The claim's verdict from its parts: every part without a case must hold; cases are alternative
    readings, and a mixture depends.
    """
    deciding = [part for part in parts if part.part.decides]
    required = [part.verdict for part in deciding if not part.part.case]
    cases = [part.verdict for part in deciding if part.part.case and part.verdict != "not_checkable"]
    if not cases and any(part.part.case for part in deciding):
        required.append("not_checkable")
    elif cases:
        required.append(cases[0] if len(set(cases)) == 1 else "depends")
    for verdict in ("refuted", "not_checkable", "depends"):
        if verdict in required:
            return verdict  # type: ignore[return-value]
    return "supported" if required else "not_checkable"


def check_claim(claim: Claim, context: EvaluationContext, kept: Kept | None = None) -> ClaimResult:
    """The verdict of one claim; what was `kept` of its parts is not found again. Raises UsageError for what
    its file got wrong, naming file, line, claim and part.
    """
    results = []
    for part in claim.parts:
        try:
            results.append(_checked(part, context, kept))
        except UsageError as error:
            where = f"{part.place.path}, line {part.place.blame(str(error))}: " if part.place else ""
            raise UsageError(f"{where}claim '{claim.id}', part '{part.what}': {error}") from None
    verdict = combine(results)
    return ClaimResult(claim, verdict, tuple(results), conditions(results, context))


def _checked(part: Part, context: EvaluationContext, kept: Kept | None) -> PartResult:
    """A part's result, kept or found. What is missing today may be there tomorrow: it is not kept."""
    found = kept.find(part) if kept is not None else None
    if found is None:
        found = check_part(part, context)
        if kept is not None and found.verdict != "not_checkable":
            kept.keep(part, found)
    return found


def _telling(verdict: Verdict, parts: tuple[PartResult, ...]) -> list[PartResult]:
    """The parts that carry the verdict: those that agree with it, or every case and boundary where it
    depends.
    """
    deciding = [p for p in parts if p.part.decides]
    if verdict == "depends":
        return [p for p in deciding if p.part.case or p.verdict == "depends"] or deciding
    return [p for p in deciding if p.verdict == verdict] or deciding


def said(result: PartResult, lang: str = "en") -> str:
    """One part in words: what, whether it holds and where, what was claimed, and the numbers found."""
    part = result.part
    label = label_of(part, lang)
    evidence = result.evidence.text(in_language(lang))
    if not part.decides and result.verdict != "not_checkable" and part.claimed == 0 and part.relation == ">":
        return f"{label}{_COLON[lang]}{evidence}"  # a number that is told, not judged
    judged = part.claimed is not True and result.verdict != "not_checkable"
    claimed = (
        f"{_COMMA[lang]}{_CLAIMED[lang]} {claim_text(part, lang)}{turning(result, lang)}" if judged else ""
    )
    where = _BRACKETS[lang].format(result.said(lang)) if result.boundaries else ""
    return f"{label}{_COLON[lang]}{_WORDS[lang][result.verdict]}{where}{claimed}{_COLON[lang]}{evidence}"


def label_of(part: Part, lang: str) -> str:
    """What a part is called: its case where it is one of several readings."""
    return ((part.case_zh or part.zh) if lang == "zh" else part.case) or part.what


def turning(result: PartResult, lang: str = "en") -> str:
    """Where a threshold that memplan chose would turn the verdict; empty for one of the text's own."""
    if not result.part.chosen or result.spread is None:
        return ""
    low, high = (amount(n, result.part.unit).text(in_language(lang)) for n in result.spread)
    if low == high:
        return {
            "en": f" (our threshold: turns at {low})",
            "zh": f"（阈值为本程序所取：取 {low} 时结论改变）",
        }[lang]
    return {
        "en": f" (our threshold: turns between {low} and {high})",
        "zh": f"（阈值为本程序所取：在 {low} 与 {high} 之间结论改变）",
    }[lang]


_WORDS: dict[str, dict[str, str]] = {
    "en": {"supported": "holds", "refuted": "fails", "depends": "depends", "not_checkable": "not checkable"},
    "zh": {"supported": "成立", "refuted": "不成立", "depends": "视条件", "not_checkable": "无法检验"},
}
_CLAIMED = {"en": "claimed", "zh": "原文"}
_ALSO = {"en": "also ", "zh": "另："}
_COLON, _COMMA, _STOP = {"en": ": ", "zh": "："}, {"en": ", ", "zh": "，"}, {"en": "; ", "zh": "；"}
_BRACKETS = {"en": " ({})", "zh": "（{}）"}


_RELATIONS = {
    "en": {"=": "", ">=": "at least ", "<=": "at most ", ">": "more than ", "<": "less than "},
    "zh": {"=": "", ">=": "至少 ", "<=": "至多 ", ">": "多于 ", "<": "不到 "},
}


def claim_text(part: Part, lang: str = "en") -> str:
    """What the text claims of a part, with its relation and unit."""
    translate = in_language(lang)
    unit = translate(part.unit if part.unit in ("", "x", "%") else f" {part.unit}")
    if isinstance(part.claimed, tuple):
        return f"{shown(part.claimed[0])} {'到' if lang == 'zh' else 'to'} {shown(part.claimed[1])}{unit}"
    about = {"en": "about ", "zh": "约 "}[lang] if part.tolerance >= 0.01 else ""
    return f"{about}{_RELATIONS[lang][part.relation]}{word(part.claimed).text(translate)}{unit}"


def check(
    file: ClaimsFile,
    context: EvaluationContext,
    kept: Kept | None = None,
) -> list[ClaimResult]:
    """Every claim of a file, in its order; each is told as a part of the progress."""
    results = []
    for number, claim in enumerate(file.claims, 1):
        with telling(f"{claim.id} ({number} of {len(file.claims)})"):
            results.append(check_claim(claim, context, kept))
    return results


def check_conflict(conflict: Conflict, context: EvaluationContext) -> ConflictResult:
    """Each side's word against one and the same arbiter."""
    sides: list[SideResult] = []
    evidence, condition = LocalizedMessage(""), tuple[Boundary, ...]()
    for side in conflict.sides:
        part = replace(
            conflict.arbiter, claimed=side.claimed, relation=side.relation, tolerance=side.tolerance
        )
        result = check_part(part, context)
        sides.append(SideResult(side.document, side.quote, side.claimed, side.relation, result.verdict))
        evidence, condition = result.evidence, result.boundaries
    return ConflictResult(conflict, _exclude(conflict), tuple(sides), evidence, condition)


def _exclude(conflict: Conflict) -> bool:
    """Whether no single value satisfies every side: tried at each side's own numbers and midway between
    them.
    """
    tried: list[Any] = []
    for side in conflict.sides:
        values = side.claimed if isinstance(side.claimed, tuple) else (side.claimed,)
        for value in values:
            tried += [value] if isinstance(value, bool | str) else [value, value * 0.999, value * 1.001]
    numbers = [v for v in tried if not isinstance(v, bool | str)]
    tried += [(a + b) / 2 for a in numbers for b in numbers]
    return not any(
        all(holds(value, s.claimed, s.relation, s.tolerance) for s in conflict.sides) for value in tried
    )


def to_document(
    file: ClaimsFile, results: list[ClaimResult], conflicts: list[ConflictResult] | None = None
) -> dict[str, Any]:
    """The document of `memplan claims --json` (schema memplan.claims/1)."""
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in VERDICTS}
    kinds = [kinds_of(result.parts) for result in results]
    document: dict[str, Any] = {
        "schema": CLAIMS_SCHEMA,
        "memplan_version": __version__,
        "file": Path(file.path).name,
        "summary": counts,
        "evidence": {"kinds": counted(kinds), "measured_or_dry_run": beside(kinds)},
        "claims": [result.to_document() for result in results],
    }
    if conflicts is not None:
        document["conflicts"] = [conflict.to_document() for conflict in conflicts]
    return document
