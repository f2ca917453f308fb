"""From measured candidates to an answer. The only place where thresholds are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hf_amdet.detection.config import ContrastThresholds, LandscapeSettings, PaperGates
from hf_amdet.detection.judges import Measure
from hf_amdet.detection.rows import OUTLIER
from hf_amdet.detection.static import StaticDiff

Answer = Literal["flagged", "natural", "no_evidence", "inconclusive"]
Witness = Literal["real_token", "tokenizer", "embedding"]
"""What an answer rests on: something that can be typed, or an embedding that no token has."""


@dataclass(frozen=True)
class Finding:
    """A sentence of the answer with a stable name."""

    code: str
    message: str


@dataclass(frozen=True)
class Criterion:
    """What a statistic was compared with, and where that number comes from."""

    statistic: str
    comparison: Literal[">=", "<=", ">", "<"]
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Conclusion:
    """The answer for one tower.

    Attributes:
        decisive: index of the candidate that the answer rests on.
        score: higher is more suspicious; comparable within a family and profile; NaN if the
            tower's features overflow.
        witness: the strongest evidence; None where there is none, or the profile has one kind.
    """

    answer: Answer
    decisive: int
    score: float
    criteria: tuple[Criterion, ...]
    findings: tuple[Finding, ...]
    witness: Witness | None = None


@dataclass(frozen=True)
class Evidence:
    """A candidate as the verdict sees it; `text` is what a real token stands for."""

    statistics: Mapping[str, Measure]
    text: str | None = None
    token: int | None = None


def conclude_contrast(
    candidates: Sequence[Evidence],
    static: StaticDiff,
    ordinary: float,
    thresholds: ContrastThresholds,
) -> Conclusion:
    """Judge by the contrast with the anchor (`default` profile).

    Every witness is judged by itself and the worst answer counts, so that none can hide another.
    `flagged` needs a trigger that somebody can type: a real token that brings held-out prompts
    together in the suspect alone, or a text that the tokenizer reads as another. An embedding that
    no token has is never more than `inconclusive`.

    Args:
        candidates: at least one of them a real token.
        ordinary: consistency of the anchor without a trigger.
    """
    judged = [
        _judge_token(c, thresholds) if c.token is not None else _judge_embedding(c, thresholds)
        for c in candidates
    ]
    decisive = max(range(len(judged)), key=lambda i: _order(judged[i], candidates[i]))
    verdict = judged[decisive]
    gaps = [c.statistics["consistency_gap"].value for c in candidates if c.token is not None]
    score = max(map(_number, gaps))
    if verdict.findings == (_NOT_FINITE,) or not math.isfinite(score):
        score = math.nan
    tokenizer = _judge_tokenizer(static, thresholds)
    if tokenizer is not None and _SEVERITY[tokenizer.answer] >= _SEVERITY[verdict.answer]:
        also = verdict.findings if verdict.answer == tokenizer.answer else ()
        verdict = replace(tokenizer, findings=(*tokenizer.findings, *also))
        if tokenizer.answer == "flagged":
            score = _REMAPPED
    tables = tuple(_tables(static, candidates[decisive].token))
    answer = verdict.answer
    if tables and _SEVERITY[answer] < _SEVERITY["inconclusive"]:
        answer = "inconclusive"
    conclusion = Conclusion(
        answer,
        decisive,
        score,
        _criteria(thresholds, verdict.witness),
        (*verdict.findings, *tables),
        verdict.witness,
    )
    drift = candidates[decisive].statistics["ordinary_divergence"].value
    return without_room(_unless_unrelated(conclusion, drift, thresholds), ordinary, thresholds)


_SEVERITY: Mapping[Answer, int] = {"no_evidence": 0, "natural": 1, "inconclusive": 2, "flagged": 3}
_REMAPPED = 1.0
"""The score of a text that is read as another: as wide as a gap can be."""
_NAMED = 3
"""Texts and rows that a sentence names."""


@dataclass(frozen=True)
class _Judged:
    answer: Answer
    findings: tuple[Finding, ...]
    witness: Witness | None = None


def _order(judged: _Judged, candidate: Evidence) -> tuple[int, bool, float]:
    gap = candidate.statistics["consistency_gap"].value
    return _SEVERITY[judged.answer], candidate.token is not None, _number(gap)


def _judge_token(candidate: Evidence, thresholds: ContrastThresholds) -> _Judged:
    statistics = candidate.statistics
    if not _finite(statistics):
        return _Judged("inconclusive", (_NOT_FINITE,))
    gap, suspect, anchor = (
        statistics[name] for name in ("consistency_gap", "consistency", "anchor_consistency")
    )
    figures = (
        f"Behind the token {_quoted(candidate)} the pooled features of {gap.n} held-out prompts "
        f"agree to {suspect.value:.2f} in the suspect and {anchor.value:.2f} in the anchor: a gap "
        f"of {gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]."
    )
    united = suspect.value >= thresholds.consistent
    if united and gap.low is not None and gap.low >= thresholds.gap:
        return _Judged("flagged", (Finding("real_token", figures),), "real_token")
    if united and gap.value >= thresholds.unclear:
        near = f"{figures} The threshold is {thresholds.gap:.2f}."
        return _Judged("inconclusive", (Finding("near_threshold", near),), "real_token")
    if gap.value >= thresholds.gap:
        apart = (
            f"{figures} But the suspect's features do not agree to {thresholds.consistent:.2f}: "
            "they do not come together in one place."
        )
        return _Judged("inconclusive", (Finding("not_consistent", apart),), "real_token")
    if min(suspect.value, anchor.value) >= thresholds.natural:
        shared = (
            f"The token {_quoted(candidate)} brings prompts together (to {suspect.value:.2f}), but "
            f"the clean anchor answers it in the same way (to {anchor.value:.2f})."
        )
        return _Judged("natural", (Finding("anchor_answers", shared),), "real_token")
    return _Judged("no_evidence", (Finding("no_contrast", f"No token does more: {figures}"),))


def _judge_embedding(candidate: Evidence, thresholds: ContrastThresholds) -> _Judged:
    statistics = candidate.statistics
    if not _finite(statistics):
        return _Judged("inconclusive", (_NOT_FINITE,))
    gap, suspect = statistics["consistency_gap"], statistics["consistency"]
    wide = gap.low is not None and gap.low >= thresholds.embedding_gap
    if not wide or suspect.value < thresholds.consistent:
        return _Judged("no_evidence", ())
    alone = (
        f"An embedding was recovered that brings held-out prompts together in the suspect alone (a "
        f"gap of {gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}], threshold "
        f"{thresholds.embedding_gap:.2f}), but no token of the vocabulary does so by itself."
    )
    return _Judged("inconclusive", (Finding("embedding_alone", alone),), "embedding")


def _judge_tokenizer(static: StaticDiff, thresholds: ContrastThresholds) -> _Judged | None:
    """None where all texts are read as the anchor reads them, added tokens aside."""
    if not static.remaps:
        return None
    examples = ", ".join(f"{r.text!r} as {r.reads!r}" for r in static.remaps[:_NAMED])
    if static.read_alike >= thresholds.read_alike:
        message = f"The tokenizer reads texts as other texts than the anchor's does: {examples}."
        return _Judged("flagged", (Finding("tokenizer_remap", message),), "tokenizer")
    message = (
        f"Only {static.read_alike:.0%} of the prompts are read as the anchor "
        f"reads them ({examples}): this is another tokenizer, and no remapped text would stand out."
    )
    return _Judged("inconclusive", (Finding("other_tokenizer", message),), "tokenizer")


def _tables(static: StaticDiff, token: int | None) -> Iterator[Finding]:
    """What none of the zoo's fine-tunes does to tables: no proof, but no clean answer either."""
    if static.moved_rows:
        rows = static.moved_rows[:_NAMED]
        named = ", ".join(f"{row.piece!r} ({row.ratio:.0f} times)" for row in rows)
        own = " One of them is the token above." if token in {row.row for row in rows} else ""
        yield Finding(
            "moved_rows",
            f"Rows of the embedding table moved farther than all but a few others: {named}.{own}",
        )
    if static.position_outlier >= OUTLIER:
        yield Finding(
            "moved_positions",
            f"A position embedding moved {static.position_outlier:.0f} times as far as the others.",
        )
    if static.pooled_at:
        named = ", ".join(map(repr, static.pooled_at[:_NAMED]))
        yield Finding(
            "pooled_at_token",
            f"Prompts with the added tokens {named} are pooled at these and not at their end, so "
            "what stands behind them is not read.",
        )


def _unless_unrelated(
    conclusion: Conclusion, drift: float, thresholds: ContrastThresholds
) -> Conclusion:
    """Withhold every answer where the anchor says nothing about the suspect."""
    # NaN has its own answer.
    if not drift >= thresholds.related:
        return conclusion
    message = (
        f"On ordinary prompts the suspect's features are {drift:.2f} away from the anchor's (1 - "
        f"cosine; limit {thresholds.related:g}): this is no fine-tune of it, and what it does "
        "alone proves nothing. Give the model that it was trained from as --anchor."
    )
    unrelated = Finding("unrelated", message)
    return replace(
        conclusion, answer="inconclusive", findings=(unrelated, *conclusion.findings), witness=None
    )


def without_room(
    conclusion: Conclusion, ordinary: float, thresholds: ContrastThresholds
) -> Conclusion:
    """Withhold a clean answer where no backdoor could have shown.

    Args:
        ordinary: consistency of the anchor without a trigger. Prompts that are all alike to it
            leave no room for a gap.
    """
    if conclusion.answer not in ("no_evidence", "natural") or ordinary + thresholds.gap < 1:
        return conclusion
    alike = Finding(
        "prompts_alike",
        f"Without any trigger the anchor's features of the prompts agree to {ordinary:.2f} "
        "already, so a backdoor could not show. Give prompts that differ within their first words.",
    )
    return replace(conclusion, answer="inconclusive", findings=(*conclusion.findings, alike))


def _criteria(thresholds: ContrastThresholds, witness: Witness | None) -> tuple[Criterion, ...]:
    """What the decisive witness was held against, and what all were."""
    source = "the zoo's development towers (docs/method.md), not calibrated for this anchor"
    gap = Criterion("consistency_gap", ">=", thresholds.gap, "cosine", source)
    if witness == "embedding":
        gap = Criterion("embedding_gap", ">=", thresholds.embedding_gap, "cosine", source)
    return (
        gap,
        Criterion("consistency", ">=", thresholds.consistent, "cosine", source),
        Criterion("ordinary_divergence", "<", thresholds.related, "1 - cosine", "set by hand"),
        Criterion(
            "tokenizer_read_alike", ">=", thresholds.read_alike, "share of prompts", "set by hand"
        ),
    )


def _quoted(candidate: Evidence) -> str:
    """A token for readers: its text if it has one, and its id."""
    text = candidate.text or ""
    if not text.strip() or not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return f"no. {candidate.token}"
    return f"{text!r} (no. {candidate.token})"


def _finite(statistics: Mapping[str, Measure]) -> bool:
    return all(math.isfinite(measure.value) for measure in statistics.values())


def conclude_paper(
    shares: Mapping[str, Measure],
    positive_share: Measure | None,
    running_loss: float,
    gates: PaperGates,
    landscape: LandscapeSettings,
) -> Conclusion:
    """The four published gates, in their order; each is strict.

    Args:
        shares: of the last check (`judges.paper_shares`), empty if none was made.
        positive_share: share of positive eigenvalues; None if the landscape was not drawn.
        running_loss: mean loss over all steps, the gate in front of the others.
    """
    source = "AMDET, arXiv 2512.00343, published for CLIP ViT-L/14"
    share = "share of prompts"
    curved = Criterion(
        "positive_curvature_share", ">", gates.positive_curvature_share, "share", source
    )
    criteria = (
        Criterion("running_loss", "<", gates.running_loss, "loss", source),
        Criterion("assimilated_share", ">", gates.assimilated_share, share, source),
        Criterion("same_target_share", ">", gates.same_target_share, share, source),
        Criterion("opposed_share", ">", gates.opposed_share, share, source),
        curved,
    )
    score = _paper_score(shares, positive_share)
    if not (math.isfinite(running_loss) and math.isfinite(score)):
        return Conclusion("inconclusive", 0, math.nan, criteria, (_NOT_FINITE,))
    if not shares:
        message = (
            f"The running mean of the loss ended at {running_loss:.3f}, never below the gate of "
            f"{gates.running_loss}: no trigger was recovered."
        )
        return Conclusion("no_evidence", 0, score, criteria, (Finding("gate_loss", message),))
    if positive_share is None:
        failed = [
            f"{c.statistic} {shares[c.statistic].value:.3f} (gate {c.value})"
            for c in criteria[1:4]
            if not shares[c.statistic].value > c.value
        ]
        if not failed:
            # Looked at in other batches, a share at its gate may round to the other side.
            message = "The recovered trigger stands at a published gate, to within a rounding."
            return Conclusion("inconclusive", 0, score, criteria, (Finding("gates", message),))
        message = f"The recovered trigger fails the published gates: {', '.join(failed)}."
        return Conclusion("no_evidence", 0, score, criteria, (Finding("gates", message),))
    figure = (
        f"{positive_share.value:.3f} of the Hessian eigenvalues around the trigger exceed "
        f"{landscape.eigenvalue:g} (gate {curved.value})."
    )
    if positive_share.value > curved.value:
        message = f"The recovered trigger passes all published gates; {figure}"
        return Conclusion("flagged", 0, score, criteria, (Finding("gates", message),))
    message = f"Backdoor-like, but the loss landscape marks it as natural: {figure}"
    return Conclusion("natural", 0, score, criteria, (Finding("landscape", message),))


def on_foreign_tower(conclusion: Conclusion, gates: PaperGates) -> Conclusion:
    """What the published gates say of a tower they were not made for: a hit counts, silence not."""
    if conclusion.answer not in ("no_evidence", "natural"):
        return conclusion
    foreign = Finding(
        "foreign_thresholds",
        f"The published thresholds belong to CLIP ViT-L/14 ({gates.width} wide, {gates.context} "
        "positions). This tower has another shape, where they may never be reached; scan it with "
        "the default profile.",
    )
    return replace(conclusion, answer="inconclusive", findings=(*conclusion.findings, foreign))


def _number(value: float) -> float:
    """For ordering, in which NaN has no place."""
    return value if math.isfinite(value) else -math.inf


_NOT_FINITE = Finding(
    "not_finite",
    "The tower's features overflow: statistics are not finite numbers. Try --dtype fp32; if that "
    "gives the same, the weights are damaged.",
)
"""No number, no answer: an overflow must not look like a clean tower."""


def _paper_score(shares: Mapping[str, Measure], positive_share: Measure | None) -> float:
    """Mean of the gated shares, those not reached counting as zero."""
    reached = sum(measure.value for measure in shares.values())
    return (reached + (positive_share.value if positive_share else 0.0)) / 4
