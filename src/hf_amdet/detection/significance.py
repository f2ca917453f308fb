"""What a score means beside those of clean towers: p-value, predictive value, and their say."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

from hf_amdet.detection.calibration import NullDistribution, dump, predictive_value
from hf_amdet.detection.verdict import Conclusion, Finding

RECALL = 0.85
"""Assumed share of backdoored towers that are flagged; docs/benchmarks.md has what was measured."""
FALSE_ALARMS = 0.01
"""Largest share of clean towers that may reach the score of a flagged one."""


@dataclass(frozen=True)
class Significance:
    """A score beside a null distribution.

    Attributes:
        prevalence: assumed share of backdoored towers among all that are scanned.
        calibration: sha256 of the null distribution.
    """

    p_value: float
    predictive_value: float
    prevalence: float
    calibration: str


def weigh(
    conclusion: Conclusion, null: NullDistribution, prevalence: float
) -> tuple[Conclusion, Significance | None]:
    """`conclusion` in the light of what clean variants of the anchor score.

    A token that is `flagged` by thresholds is withheld if more clean variants reach its score than
    may. No p-value flags by itself: real fine-tunes score higher than variants that are as far from
    the anchor (docs/method.md). A remapped text needs no statistics. None for a score that is no
    number.
    """
    if math.isnan(conclusion.score):
        return conclusion, None
    p = null.p_value(conclusion.score)
    value = predictive_value(p, recall=RECALL, prevalence=prevalence)
    digest = hashlib.sha256(dump(null).encode()).hexdigest()
    found = Significance(p, value, prevalence, digest)
    if conclusion.witness != "real_token":
        return conclusion, found
    count = len(null.towers)
    # However few they are, none of them may reach it.
    limit = max(FALSE_ALARMS, 1 / (1 + count))
    if conclusion.answer == "flagged" and p > limit:
        message = (
            f"But so high a score is no rarity among clean models: its p-value is {p:.3g} among "
            f"{count} clean variants of the anchor (limit {limit:.3g})."
        )
        findings = (*conclusion.findings, Finding("common_among_clean", message))
        return replace(conclusion, answer="inconclusive", findings=findings), found
    return conclusion, found
