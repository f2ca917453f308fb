"""From judgements to decisions: each entry of the table, fitted on development towers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.judge.detectors import FLAGGED
from benchmarks.judge.metrics import Outcome
from benchmarks.judge.rows import ScoreRow, TowerRow

GATES = {"running_loss": -1, "assimilation": 1, "same_target": 1, "anchor_similarity": -1}
"""What the published gates look at, and in which direction it is suspicious."""


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
        by_verdict: whether its own verdict decides, in place of a threshold on its rank.
        rank: development cases -> how to rank rows.
    """

    name: str
    detector: str
    by_verdict: bool
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


ENTRIES = (
    Entry("default", "default", True, own_score),
    Entry("default, calibrated threshold", "default", False, own_score),
    Entry("paper, published thresholds", "paper", True, own_score),
    Entry("paper, calibrated", "paper", False, least_gate),
    Entry("weight-difference", "weight-difference", False, own_score),
    Entry("drift-window", "drift-window", True, own_score),
    Entry("tables", "tables", False, own_score),
)


def decide(entry: Entry, fitted: Sequence[Case], judged: Sequence[Case]) -> list[Outcome]:
    """What `entry` says of `judged`, with nothing fitted on anything but `fitted`."""
    rank = entry.rank(fitted)
    known = [
        (score, case.tower.positive) for case in fitted if (score := rank(case.row)) is not None
    ]
    threshold = best_threshold(known)
    scores = [rank(case.row) for case in judged]
    chances = probabilities(known, scores)
    outcomes = []
    for case, score, chance in zip(judged, scores, chances, strict=True):
        flagged: bool | None
        if entry.by_verdict:
            flagged = case.row.verdict == FLAGGED
        elif threshold is None:
            flagged = None
        else:
            flagged = score is not None and score >= threshold
        tower = case.tower
        outcomes.append(
            Outcome(tower.name, tower.base, tower.run, tower.positive, score, flagged, chance)
        )
    return outcomes


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


def probabilities(
    known: Sequence[tuple[float, bool]], scores: Sequence[float | None]
) -> list[float | None]:
    """Platt's: a logistic curve of the score, fitted on `known`; None without a score or a fit."""
    labels = [positive for _, positive in known]
    if len(set(labels)) < 2:
        return [None] * len(scores)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit([[score] for score, _ in known], labels)
    return [
        None if score is None else float(model.predict_proba([[score]])[0, 1]) for score in scores
    ]
