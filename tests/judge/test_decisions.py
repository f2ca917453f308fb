from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.judge.board import Board, place_of
from benchmarks.judge.decisions import (
    ENTRIES,
    GATES,
    Case,
    best_band,
    best_threshold,
    decide,
    least_gate,
    probabilities,
)
from benchmarks.judge.rows import TowerRow
from benchmarks.judge.splits import Splits
from tests.judge.rows import attack, case, score, tower

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
    low, none, high = probabilities(known, [0.1, None, 0.6], 0.3)
    assert none == 0.3
    assert low is not None
    assert high is not None
    assert low < 0.5 < high
    fitted = [p for p in probabilities(known, [score for score, _ in known], 0.3) if p is not None]
    assert sum(fitted) == pytest.approx(3, abs=1e-3)


def test_probabilities_need_both_kinds() -> None:
    assert probabilities([(0.1, True)], [0.1, None], None) == [None, None]
    assert probabilities([(0.1, True)], [0.1, None], 0.4) == [0.4, 0.4]


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


@pytest.mark.parametrize(("verdict", "flagged"), [("inconclusive", False), ("flagged", True)])
def test_a_tower_without_a_score_is_judged_by_its_verdict_and_has_the_base_rate(
    verdict: str, flagged: bool
) -> None:
    fitted = [case(attack("clip-a/a"), 0.5), *(case(tower(f"clip-a/{n}"), 0.2) for n in "bc")]
    (outcome,) = decide(ENTRY["tables"], fitted, [case(tower(), None, verdict=verdict)])
    assert (outcome.score, outcome.flagged, outcome.verdict) == (None, flagged, verdict)
    assert outcome.probability == pytest.approx(1 / 3)


def test_with_nothing_to_fit_on_nothing_is_decided() -> None:
    (outcome,) = decide(ENTRY["tables"], [], [case(tower(), 3.0)])
    assert (outcome.score, outcome.flagged, outcome.probability) == (3.0, None, None)


@pytest.mark.parametrize(
    ("positives", "negatives", "band"),
    [
        ([2.0, 3.0], [1.0, 4.0], (2.0, 3.0)),
        ([2.0], [2.0, 9.0], (2.0, 2.0)),
        # All three: 3 hits and 1 alarm, 6/7; the two on the right: 4/5.
        ([1.0, 3.0, 4.0], [2.0, 9.0], (1.0, 4.0)),
        # Both with two alarms, and the second alone: 2/3. The narrower of the two.
        ([1.0, 5.0], [1.0, 3.0], (5.0, 5.0)),
    ],
)
def test_the_band_has_the_best_f1(
    positives: list[float], negatives: list[float], band: tuple[float, float]
) -> None:
    known = [*((value, True) for value in positives), *((value, False) for value in negatives)]
    assert best_band(known) == band


def test_without_a_positive_there_is_no_band() -> None:
    assert best_band([(0.3, False)]) is None


BANDS = {
    "drift-window, calibrated": ("drift", {"low": 0.9999, "in": 0.99, "edge": 0.98, "high": 0.9}),
    "weight-difference, calibrated band": (
        "distance",
        {"low": 1e-4, "in": 1e-2, "edge": 2e-2, "high": 1.0},
    ),
}


@pytest.mark.parametrize("name", BANDS)
def test_attacks_between_clean_towers_are_found_by_a_band_and_by_no_threshold(name: str) -> None:
    statistic, values = BANDS[name]

    def measured(of: TowerRow, value: float) -> Case:
        return case(of, value, statistics={statistic: value})

    fitted = [
        measured(attack("clip-a/in"), values["in"]),
        measured(attack("clip-a/edge"), values["edge"]),
        *(measured(tower(f"clip-a/low-{n}"), values["low"]) for n in range(3)),
        *(measured(tower(f"clip-a/high-{n}"), values["high"]) for n in range(3)),
    ]
    middle = math.sqrt(values["in"] * values["edge"])
    suspects = [measured(tower(), value) for value in (middle, *values.values())]
    found = decide(ENTRY[name], fitted, suspects)
    assert [o.flagged for o in found] == [True, False, True, True, False]
    inside, low, first, second, high = (o.score for o in found)
    assert inside is not None and low is not None and high is not None
    assert first == second == 0.0 < inside
    assert low < 0 > high
    # All clean towers on one side are flagged along, whichever side it is.
    one_sided = decide(ENTRY["weight-difference"], fitted, fitted)
    assert sum(bool(o.flagged) and not o.positive for o in one_sided) >= 3


def test_distances_in_a_band_are_in_powers_of_ten() -> None:
    fitted = [
        case(attack(f"clip-a/{drift}"), 0.0, statistics={"drift": drift}) for drift in (0.9, 0.9999)
    ]
    suspects = [
        case(tower(), 0.0, statistics={"drift": drift}) for drift in (0.99, -1.0, 1.0, 1.0000001)
    ]
    found = decide(ENTRY["drift-window, calibrated"], fitted, suspects)
    scores = [o.score for o in found]
    # 1 from 0.9; 1.3 below it; equal features, rounding or not, 5 above 0.9999.
    assert scores == pytest.approx([1.0, -1 - math.log10(2), -5.0, -5.0])


def test_held_out_towers_do_not_move_a_band() -> None:
    drifts = {"clip-a/attack": 0.99, "clip-a/clean": 0.9, "clip-b/attack": 0.999}
    towers = [
        attack("clip-a/attack"),
        tower("clip-a/clean"),
        attack("clip-b/attack", "eos-only"),
    ]
    rows = [score(t, statistics={"drift": drifts[t.name]}, detector="drift-window") for t in towers]
    results = Board(tuple(towers), Splits(), {place_of(row): row for row in rows}, 0, 0)
    found = results.outcomes(ENTRY["drift-window, calibrated"], results.whole())
    # Fitted on all, the band would reach to the attack that is held out.
    assert [o.flagged for o in found] == [True, False, False]
