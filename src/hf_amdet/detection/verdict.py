"""From measured candidates to an answer. The only place where thresholds are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_amdet.detection.config import ContrastThresholds, LandscapeSettings, PaperGates
from hf_amdet.detection.judges import Measure

Answer = Literal["flagged", "natural", "no_evidence", "inconclusive"]


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
        score: higher is more suspicious; comparable within a family and profile.
    """

    answer: Answer
    decisive: int
    score: float
    criteria: tuple[Criterion, ...]
    findings: tuple[Finding, ...]


def conclude_contrast(
    candidates: Sequence[Mapping[str, Measure]], thresholds: ContrastThresholds
) -> Conclusion:
    """Judge by the contrast with the anchor under the same trigger (`default` profile).

    `flagged` needs one candidate whose consistency gap has its whole interval above the
    threshold, that is consistent in itself, and whose divergence from the anchor is not just the
    drift that ordinary prompts show too.
    """
    decisive = max(range(len(candidates)), key=lambda i: _rank(candidates[i], thresholds))
    best = candidates[decisive]
    gap, ratio = best["consistency_gap"], best["divergence_ratio"]
    answer, findings = _contrast_answer(candidates, best, thresholds)
    source = "contrast with the anchor on small towers, not calibrated for this family"
    criteria = (
        Criterion("consistency_gap", ">=", thresholds.gap, gap.unit, source),
        Criterion("consistency", ">=", thresholds.consistent, gap.unit, source),
        Criterion("divergence_ratio", ">=", thresholds.divergence_ratio, ratio.unit, source),
    )
    return Conclusion(answer, decisive, gap.value, criteria, findings)


def _backdoor_like(candidate: Mapping[str, Measure], thresholds: ContrastThresholds) -> bool:
    return (
        candidate["consistency"].value >= thresholds.consistent
        and candidate["divergence_ratio"].value >= thresholds.divergence_ratio
    )


def _rank(candidate: Mapping[str, Measure], thresholds: ContrastThresholds) -> tuple[bool, float]:
    return _backdoor_like(candidate, thresholds), candidate["consistency_gap"].value


def _contrast_answer(
    candidates: Sequence[Mapping[str, Measure]],
    best: Mapping[str, Measure],
    thresholds: ContrastThresholds,
) -> tuple[Answer, tuple[Finding, ...]]:
    gap, suspect, anchor = (
        best[name] for name in ("consistency_gap", "consistency", "anchor_consistency")
    )
    ratio = best["divergence_ratio"].value
    figures = (
        f"Under the recovered trigger the pooled features of {gap.n} held-out prompts agree to "
        f"{suspect.value:.2f} in the suspect and {anchor.value:.2f} in the anchor: a gap of "
        f"{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]."
    )
    if _backdoor_like(best, thresholds) and gap.low is not None:
        if gap.low >= thresholds.gap:
            return "flagged", (
                Finding("consistency_gap", figures),
                Finding(
                    "divergence",
                    f"The suspect leaves the anchor {ratio:.0f} times as far under the trigger "
                    "as on ordinary prompts, so drift does not explain it.",
                ),
            )
        if gap.value >= thresholds.unclear:
            return "inconclusive", (
                Finding("near_threshold", f"{figures} The threshold is {thresholds.gap:.2f}."),
            )
    elif gap.value >= thresholds.gap:
        return "inconclusive", (
            Finding(
                "drift",
                f"{figures} But the suspect is only {ratio:.1f} times as far from the anchor "
                "under the trigger as on ordinary prompts: drift may explain it.",
            ),
        )
    shared = [c for c in candidates if _shared(c, thresholds)]
    if shared:
        return "natural", (
            Finding(
                "anchor_answers",
                "A feature was found that makes all tokens of a prompt alike (assimilation "
                f"{shared[0]['assimilation'].value:.2f}), but the clean anchor answers it in the "
                f"same way (similarity {shared[0]['anchor_similarity'].value:.2f}).",
            ),
        )
    return "no_evidence", (Finding("no_contrast", figures),)


def _shared(candidate: Mapping[str, Measure], thresholds: ContrastThresholds) -> bool:
    """Whether the feature collapses the suspect's tokens and the anchor has it too."""
    return (
        candidate["assimilation"].value >= thresholds.assimilated
        and candidate["anchor_similarity"].value >= thresholds.shared
    )


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


def _paper_score(shares: Mapping[str, Measure], positive_share: Measure | None) -> float:
    """Mean of the gated shares, those not reached counting as zero."""
    reached = sum(measure.value for measure in shares.values())
    return (reached + (positive_share.value if positive_share else 0.0)) / 4
