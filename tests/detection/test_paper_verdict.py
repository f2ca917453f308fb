"""From the published gates to an answer: their order, their strictness, and failing closed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hf_amdet.detection.config import PAPER, PaperGates
from hf_amdet.detection.judges import Measure
from hf_amdet.detection.verdict import Answer, Conclusion, conclude_paper, on_foreign_tower

GATES = PAPER.gates or PaperGates()
CLEAN = ("no_evidence", "natural")

SHARES = {"assimilated_share": 1.0, "same_target_share": 1.0, "opposed_share": 1.0}


def _paper(positive: float | None = 0.95, running: float = -0.9, **changes: float) -> Conclusion:
    shares = {name: _share(value) for name, value in (SHARES | changes).items()}
    curvature = None if positive is None else _share(positive)
    return conclude_paper(shares, curvature, running, GATES, PAPER.landscape)


def _share(value: float) -> Measure:
    return Measure(value, None, None, "share of prompts", 800)


def test_all_gates_passed_is_flagged() -> None:
    conclusion = _paper()
    assert conclusion.answer == "flagged"
    assert conclusion.score == pytest.approx(3.95 / 4)


@pytest.mark.parametrize(
    ("gate", "threshold"),
    [("assimilated_share", 0.8), ("same_target_share", 0.995), ("opposed_share", 0.95)],
)
@pytest.mark.parametrize("below", [0.0, 1e-9, 0.3])
def test_a_share_at_its_gate_or_below_is_no_evidence(
    gate: str, threshold: float, below: float
) -> None:
    conclusion = _paper(None, **{gate: threshold - below})
    assert conclusion.answer == "no_evidence"
    (finding,) = conclusion.findings
    assert gate in finding.message
    assert not any(other in finding.message for other in SHARES if other != gate)


@pytest.mark.parametrize("positive", [0.8, 0.79, 0.0])
def test_too_little_positive_curvature_is_natural(positive: float) -> None:
    assert _paper(positive).answer == "natural"


def test_just_above_the_curvature_gate_is_flagged() -> None:
    assert _paper(math.nextafter(0.8, 1)).answer == "flagged"


def test_a_loss_that_never_falls_below_the_gate_is_no_evidence() -> None:
    conclusion = conclude_paper({}, None, -0.5, GATES, PAPER.landscape)
    assert (conclusion.answer, conclusion.score) == ("no_evidence", 0)
    assert "-0.500" in conclusion.findings[0].message


def test_a_loss_that_is_not_a_number_is_never_clean() -> None:
    conclusion = conclude_paper({}, None, math.nan, GATES, PAPER.landscape)
    assert conclusion.answer == "inconclusive"


@pytest.mark.parametrize("gate", SHARES)
def test_a_share_that_is_not_a_number_is_never_clean(gate: str) -> None:
    assert _paper(None, **{gate: math.nan}).answer not in CLEAN


def test_a_landscape_that_is_not_a_number_is_never_natural() -> None:
    assert _paper(math.nan).answer not in CLEAN


def test_shares_that_pass_where_no_landscape_was_drawn_are_never_clean() -> None:
    """The last look at the gates and the statistics may round a share to different sides."""
    conclusion = _paper(None)
    assert (conclusion.answer, [f.code for f in conclusion.findings]) == (
        "inconclusive",
        ["gates"],
    )


@pytest.mark.parametrize("answer", ["no_evidence", "natural", "inconclusive", "flagged"])
def test_on_a_foreign_tower_only_a_hit_counts(answer: Answer) -> None:
    conclusion = replace(_paper(), answer=answer)
    foreign = on_foreign_tower(conclusion, GATES)
    assert foreign.answer == ("inconclusive" if answer in CLEAN else answer)
    said = [f.code for f in foreign.findings if f not in conclusion.findings]
    assert said == (["foreign_thresholds"] if answer in CLEAN else [])


def test_the_gates_are_said_with_their_strictness() -> None:
    said = {c.statistic: (c.comparison, c.value) for c in _paper().criteria}
    assert said == {
        "running_loss": ("<", -0.76),
        "assimilated_share": (">", 0.8),
        "same_target_share": (">", 0.995),
        "opposed_share": (">", 0.95),
        "positive_curvature_share": (">", 0.8),
    }
