from __future__ import annotations

from typing import Any

import pytest

from benchmarks.judge.decisions import (
    ENTRIES,
    GATES,
    Case,
    best_threshold,
    decide,
    least_gate,
    probabilities,
)
from tests.judge.rows import attack, case, tower

ENTRY = {entry.name: entry for entry in ENTRIES}


@pytest.mark.parametrize(
    ("positives", "negatives", "threshold"),
    [
        ([0.6, 0.8], [0.1, 0.2], 0.6),
        # Flagging from 0.8: F1 2/3; from 0.3: 2 hits, 1 alarm, 4/5.
        ([0.3, 0.8], [0.1, 0.5], 0.3),
        # From 0.9 and from 0.4 F1 is 2/3: the higher one.
        ([0.9, 0.4], [0.8, 0.7, 0.1], 0.9),
    ],
)
def test_the_threshold_has_the_best_f1_and_is_the_highest_that_has(
    positives: list[float], negatives: list[float], threshold: float
) -> None:
    known = [*((score, True) for score in positives), *((score, False) for score in negatives)]
    assert best_threshold(known) == threshold


def test_without_a_positive_there_is_no_threshold() -> None:
    assert best_threshold([(0.3, False)]) is None
    assert best_threshold([]) is None


def test_probabilities_rise_with_the_score_and_keep_the_share_of_positives() -> None:
    known = [(0.1, False), (0.2, False), (0.3, True), (0.4, False), (0.5, True), (0.6, True)]
    low, none, high = probabilities(known, [0.1, None, 0.6])
    assert none is None
    assert low is not None
    assert high is not None
    assert low < 0.5 < high
    fitted = [p for p in probabilities(known, [score for score, _ in known]) if p is not None]
    assert sum(fitted) == pytest.approx(3, abs=1e-3)


def test_probabilities_need_both_kinds() -> None:
    assert probabilities([(0.1, True)], [0.1]) == [None]


def gated(name: str, *, positive: bool = False, **statistics: float) -> Case:
    of = attack(name) if positive else tower(name)
    return case(of, 0.0, detector="paper", statistics=dict.fromkeys(GATES, 0.0) | statistics)


def test_a_gate_is_measured_in_what_is_usual_for_clean_towers() -> None:
    clean = [
        gated(f"clip-a/{n}", running_loss=-n, assimilation=n, same_target=n, anchor_similarity=-n)
        for n in (1.0, 2.0, 3.0, 4.0)
    ]
    backdoored = gated("clip-a/attack", positive=True, running_loss=-9)
    rank = least_gate([*clean, backdoored])
    suspect: dict[str, Any] = {
        "running_loss": -3.5,  # below three of four
        "assimilation": 9.0,
        "same_target": 2.5,  # above two of four: the least
        "anchor_similarity": -9.0,
    }
    assert rank(gated("clip-a/suspect", **suspect).row) == 0.5


def test_a_gate_that_was_not_measured_gives_no_rank() -> None:
    rank = least_gate([gated("clip-a/clean")])
    missing = case(tower(), 0.0, statistics={"running_loss": -1.0})
    assert rank(missing.row) is None


def test_a_verdict_decides_whatever_the_score() -> None:
    judged = [
        case(attack("clip-a/low"), 0.1, verdict="flagged"),
        case(attack("clip-a/high"), 0.9, verdict="inconclusive"),
    ]
    assert [o.flagged for o in decide(ENTRY["default"], [], judged)] == [True, False]
    fitted = [case(attack("clip-a/a"), 0.5), case(tower("clip-a/b"), 0.2)]
    calibrated = decide(ENTRY["default, calibrated threshold"], fitted, judged)
    assert [o.flagged for o in calibrated] == [False, True]


def test_a_tower_without_a_score_is_not_flagged_and_has_no_probability() -> None:
    fitted = [case(attack("clip-a/a"), 0.5), case(tower("clip-a/b"), 0.2)]
    (outcome,) = decide(ENTRY["tables"], fitted, [case(tower(), None)])
    assert (outcome.score, outcome.flagged, outcome.probability) == (None, False, None)


def test_with_nothing_to_fit_on_nothing_is_decided() -> None:
    (outcome,) = decide(ENTRY["tables"], [], [case(tower(), 3.0)])
    assert (outcome.score, outcome.flagged, outcome.probability) == (3.0, None, None)
