"""From judgements to decisions: each entry of the table, fitted on development towers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.judge.metrics import Outcome
from benchmarks.judge.rows import FLAGGED, ScoreRow, TowerRow

GATES = {"running_loss": -1, "assimilation": 1, "same_target": 1, "anchor_similarity": -1}
"""What the published gates look at, and in which direction it is suspicious."""
_LEAST = 1e-9
"""Differences below are rounding."""


@dataclass(frozen=True)
class Case:
    """A tower and what a detector said of it."""

    tower: TowerRow
    row: ScoreRow


Rank = Callable[[ScoreRow], float | None]
"""How suspicious a row is; None where it cannot be said."""


@dataclass(frozen=True)
class Entry:
    """A line of the table: a detector and how it decides.

    Attributes:
        decides: its own verdict, a fitted threshold on its rank, or a band, in which ranks are 0
            or more.
        rank: development cases -> how to rank rows.
    """

    name: str
    detector: str
    decides: Literal["verdict", "threshold", "band"]
    rank: Callable[[Sequence[Case]], Rank]


def own_score(fitted: Sequence[Case]) -> Rank:
    """The detector's own score."""
    del fitted
    return lambda row: row.score


def least_gate(fitted: Sequence[Case]) -> Rank:
    """The least, over `GATES`, of the share of clean cases that are less suspicious.

    All gates have to be passed, as published, but each is measured in what is usual for clean
    towers of this shape.
    """
    clean = {
        name: np.array(
            [
                sign * case.row.statistics[name]
                for case in fitted
                if not case.tower.positive and name in case.row.statistics
            ]
        )
        for name, sign in GATES.items()
    }

    def rank(row: ScoreRow) -> float | None:
        shares = [
            float((clean[name] < sign * row.statistics[name]).mean())
            for name, sign in GATES.items()
            if name in row.statistics and len(clean[name])
        ]
        return min(shares) if len(shares) == len(GATES) else None

    return rank


Scale = Callable[[ScoreRow], float | None]
"""A statistic of a row, on a scale on which distances mean the same everywhere."""


def drift_scale(row: ScoreRow) -> float | None:
    """-log10(1 - d) of the drift's cosine d: 1 for 0.9, 2 for 0.99, at most 9."""
    drift = row.statistics.get("drift")
    # Equal features are at 1 but for rounding.
    return None if drift is None else -math.log10(max(1 - drift, _LEAST))


def distance_scale(row: ScoreRow) -> float | None:
    """log10 of the relative weight distance, at least -9."""
    distance = row.statistics.get("distance")
    return None if distance is None else math.log10(max(distance, _LEAST))


def in_band(scale: Scale) -> Callable[[Sequence[Case]], Rank]:
    """How far inside the band with the best F1 a row is: from the nearest end, < 0 outside.

    What neither drifts nor moves at all and what does so wildly are both no injection, which no
    threshold can say.
    """

    def fit(fitted: Sequence[Case]) -> Rank:
        known = [
            (value, case.tower.positive)
            for case in fitted
            if (value := scale(case.row)) is not None
        ]
        band = best_band(known)

        def rank(row: ScoreRow) -> float | None:
            value = scale(row)
            if band is None or value is None:
                return None
            return min(value - band[0], band[1] - value)

        return rank

    return fit


ENTRIES = (
    Entry("default", "default", "verdict", own_score),
    Entry("default, calibrated threshold", "default", "threshold", own_score),
    Entry("paper, published thresholds", "paper", "verdict", own_score),
    Entry("paper, calibrated", "paper", "threshold", least_gate),
    Entry("weight-difference", "weight-difference", "threshold", own_score),
    Entry(
        "weight-difference, calibrated band", "weight-difference", "band", in_band(distance_scale)
    ),
    Entry("drift-window", "drift-window", "verdict", own_score),
    Entry("drift-window, calibrated", "drift-window", "band", in_band(drift_scale)),
    Entry("tables", "tables", "threshold", own_score),
)


def decide(entry: Entry, fitted: Sequence[Case], judged: Sequence[Case]) -> list[Outcome]:
    """What `entry` says of `judged`, with nothing fitted on anything but `fitted`."""
    rank = entry.rank(fitted)
    known = [
        (score, case.tower.positive) for case in fitted if (score := rank(case.row)) is not None
    ]
    threshold = 0.0 if entry.decides == "band" and known else best_threshold(known)
    scores = [rank(case.row) for case in judged]
    chances = probabilities(known, scores, _base_rate(fitted))
    outcomes = []
    for case, score, chance in zip(judged, scores, chances, strict=True):
        flagged: bool | None
        # A verdict without a figure is all that there is.
        if entry.decides == "verdict" or (score is None and threshold is not None):
            flagged = case.row.verdict == FLAGGED
        elif threshold is None or score is None:
            flagged = None
        else:
            flagged = score >= threshold
        tower, verdict = case.tower, case.row.verdict
        outcomes.append(
            Outcome(
                tower.name, tower.base, tower.run, tower.positive, verdict, score, flagged, chance
            )
        )
    return outcomes


def _base_rate(fitted: Sequence[Case]) -> float | None:
    """Share of positives; None where it says nothing of the other kind."""
    labels = [case.tower.positive for case in fitted]
    return sum(labels) / len(labels) if len(set(labels)) > 1 else None


def best_threshold(known: Sequence[tuple[float, bool]]) -> float | None:
    """The score from which flagging has the best F1 on `known`, the highest of several.

    Returns:
        None where `known` holds no positive.
    """
    labels = [positive for _, positive in known]
    if not any(labels):
        return None
    precision, recall, thresholds = precision_recall_curve(labels, [score for score, _ in known])
    # The curve ends in a point without a threshold.
    total = np.maximum(precision[:-1] + recall[:-1], np.finfo(float).tiny)
    f1 = 2 * precision[:-1] * recall[:-1] / total
    return float(max(thresholds[f1 >= f1.max() - 1e-12]))


def best_band(known: Sequence[tuple[float, bool]]) -> tuple[float, float] | None:
    """The ends, both in it, of the band with the best F1 on `known`, the narrowest of several.

    Returns:
        None where `known` holds no positive.
    """
    # Of equal F1 the narrowest begins and ends at a positive.
    ends = sorted({value for value, positive in known if positive})
    ours = np.sort([value for value, positive in known if positive])
    others = np.sort([value for value, positive in known if not positive])
    best: tuple[float, float, tuple[float, float]] | None = None
    for start, low in enumerate(ends):
        for high in ends[start:]:
            hits, alarms = (
                int(np.searchsorted(of, high, "right") - np.searchsorted(of, low, "left"))
                for of in (ours, others)
            )
            f1 = 2 * hits / (hits + alarms + len(ours))
            if best is None or (f1, low - high) > best[:2]:
                best = f1, low - high, (low, high)
    return None if best is None else best[2]


def probabilities(
    known: Sequence[tuple[float, bool]], scores: Sequence[float | None], base_rate: float | None
) -> list[float | None]:
    """Platt's: a logistic curve of the score, fitted on `known`.

    Returns:
        `base_rate` where there is no score, or where `known` is of one kind.
    """
    labels = [positive for _, positive in known]
    if len(set(labels)) < 2:
        return [base_rate] * len(scores)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit([[score] for score, _ in known], labels)
    return [
        base_rate if score is None else float(model.predict_proba([[score]])[0, 1])
        for score in scores
    ]
