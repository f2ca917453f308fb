from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.judge.metrics import (
    Interval,
    Outcome,
    aurocs,
    f1s,
    flagged_share,
    measure,
    ranks,
    resample,
)
from tests.judge.rows import outcome


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def by_hand() -> list[Outcome]:
    """Three of four positives and one of three negatives flagged; one negative has no score,
    and a probability all the same.
    """
    positives = [(0.9, True), (0.8, True), (0.4, True), (0.1, False)]
    negatives = [(0.5, True), (0.2, False), (None, False)]
    return [
        *(outcome(True, s, flagged=f, run=f"p{s}", probability=s) for s, f in positives),
        *(
            outcome(False, s, flagged=f, run=f"n{s}", probability=0.3 if s is None else s)
            for s, f in negatives
        ),
    ]


def test_figures_are_those_computed_by_hand() -> None:
    found = measure(by_hand(), generator())
    assert (found.positives, found.negatives, found.unscored) == (4, 3, 1)
    assert found.recall is not None
    assert found.false_alarms is not None
    assert (found.recall.k, found.recall.n) == (3, 4)
    assert (found.false_alarms.k, found.false_alarms.n) == (1, 3)
    assert found.precision == pytest.approx(3 / 4)
    assert found.f1 == pytest.approx(3 / 4)
    # Pairs of the four positives with the three negatives, of which one is behind all others.
    assert found.auroc == pytest.approx((3 + 3 + 2 + 1) / 12)
    errors = [0.1, 0.2, 0.6, 0.9, 0.5, 0.2, 0.3]
    assert found.brier == pytest.approx(sum(e**2 for e in errors) / 7)
    assert found.cross_entropy == pytest.approx(-sum(math.log(1 - e) for e in errors) / 7)


def test_giving_no_score_where_it_is_hard_does_not_pay() -> None:
    honest = [outcome(True, 0.9), outcome(True, 0.1), outcome(False, 0.5), outcome(False, 0.2)]
    silent = [honest[0], outcome(True, None), *honest[2:]]
    assert measure(silent, generator()).auroc == measure(honest, generator()).auroc == 0.5
    both = [outcome(True, None), outcome(False, None)]
    assert measure(both, generator()).auroc == 0.5


def test_where_nothing_could_be_fitted_there_is_no_rank() -> None:
    outcomes = [
        outcome(positive, None, flagged=None, run=str(positive)) for positive in (True, False)
    ]
    found = measure(outcomes, generator())
    assert (found.auroc, found.auroc_interval, found.recall) == (None, None, None)


def test_a_verdict_without_a_score_ranks_before_all_scores() -> None:
    flagged = outcome(True, None, verdict="flagged")
    others = [outcome(False, 1e300), outcome(False, -1e300), outcome(False, None)]
    assert ranks([flagged, *others]) == [2, 1, 0, -1]
    assert measure([flagged, *others], generator()).auroc == 1.0


def test_verdicts_that_are_none_and_failures_are_counted() -> None:
    verdicts = ("inconclusive", "not_scanned", "error", "flagged", None)
    found = measure([outcome(True, verdict=verdict) for verdict in verdicts], generator())
    assert (found.unanswered, found.failed) == (2, 1)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 200, 0.0, 0.01828), (1, 10, 0.00253, 0.44502), (10, 10, 0.69150, 1.0)],
)
def test_bounds_are_the_known_exact_ones(k: int, n: int, low: float, high: float) -> None:
    outcomes = [outcome(False, flagged=i < k) for i in range(n)]
    share = flagged_share(outcomes, positive=False)
    assert share is not None
    assert share.bounds is not None
    assert (share.bounds.low, share.bounds.high) == pytest.approx((low, high), abs=1e-5)


def test_resamples_of_one_tower_a_run_have_the_figures_of_the_drawn_towers() -> None:
    outcomes = by_hand()
    weights = resample(outcomes, generator(), 20)
    for row, f1, area in zip(
        weights, f1s(outcomes, weights), aurocs(outcomes, weights), strict=True
    ):
        drawn = [o for o, times in zip(outcomes, row, strict=True) for _ in range(int(times))]
        alone = measure(drawn, generator())
        assert len(drawn) == len(outcomes)
        assert f1 == pytest.approx(alone.f1 if alone.f1 is not None else 0.0, nan_ok=True)
        assert area == pytest.approx(math.nan if alone.auroc is None else alone.auroc, nan_ok=True)


def test_all_towers_of_a_run_come_along_and_no_others() -> None:
    outcomes = [outcome(True, run=run, base=base) for base in "ab" for run in "rrs"]
    weights = resample(outcomes, generator(), 50)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    # A base that is drawn brings as many runs as it has.
    assert set(np.unique(weights[:, 0] + weights[:, 2])) <= {0, 2, 4}
    assert ((weights[:, 0] + weights[:, 2] + weights[:, 3] + weights[:, 5]) == 4).all()


def test_copies_of_one_run_do_not_narrow_the_interval() -> None:
    def width(copies_are_runs: bool) -> float:
        copies = [
            outcome(True, 1.0, flagged=True, run=f"copy {i}" if copies_are_runs else "copies")
            for i in range(50)
        ]
        missed = [outcome(True, 0.0, flagged=False, run=f"missed {i}") for i in range(4)]
        clean = [outcome(False, 0.5, flagged=False, run=f"clean {i}") for i in range(5)]
        interval = measure([*copies, *missed, *clean], generator()).f1_interval
        assert interval is not None
        return interval.high - interval.low

    assert width(copies_are_runs=False) > 3 * width(copies_are_runs=True)


def test_bases_are_drawn_before_runs() -> None:
    # Within a base all runs are alike, so only the draw of bases can move the figure.
    outcomes = [
        outcome(True, 1.0, flagged=base == "good", base=base, run=f"{base} {i}")
        for base in ("good", "bad")
        for i in range(40)
    ]
    assert measure(outcomes, generator()).f1_interval == Interval(0.0, 1.0)


def test_figures_that_are_not_defined_are_none() -> None:
    nothing = measure([], generator())
    assert (nothing.f1, nothing.auroc, nothing.precision, nothing.brier) == (None,) * 4
    only_clean = measure([outcome(False, 0.1), outcome(False, 0.2, run="other")], generator())
    assert (only_clean.f1, only_clean.auroc, only_clean.precision) == (None, None, None)
    assert only_clean.recall is not None
    assert only_clean.recall.bounds is None
    only_backdoored = measure([outcome(True, 0.1, flagged=True)], generator())
    assert (only_backdoored.f1, only_backdoored.auroc) == (1.0, None)


def test_one_run_gives_no_interval() -> None:
    outcomes = [outcome(True, 0.9, flagged=True), outcome(False, 0.1)]
    found = measure(outcomes, generator())
    assert (found.f1, found.auroc) == (1.0, 1.0)
    assert (found.f1_interval, found.auroc_interval) == (None, None)


def test_without_a_threshold_there_is_no_decision_but_a_rank() -> None:
    outcomes = [outcome(True, 0.9, flagged=None), outcome(False, 0.1, flagged=None)]
    found = measure(outcomes, generator())
    assert (found.recall, found.false_alarms, found.f1, found.auroc) == (None, None, None, 1.0)
