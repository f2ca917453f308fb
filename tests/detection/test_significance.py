"""What a calibration may say: withhold `flagged`, and never make it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_amdet.detection.calibration import NullDistribution, NullTower
from hf_amdet.detection.significance import weigh
from hf_amdet.detection.verdict import Conclusion, Finding


def null(*scores: float) -> NullDistribution:
    towers = tuple(NullTower("moved", 0.1, 0.1, score) for score in scores)
    heads: dict[str, Any] = dict.fromkeys(
        ("family", "anchor", "anchor_digest", "profile", "settings_sha256"), "x"
    )
    return NullDistribution(
        1, **heads, prompts_sha256="x", dtype="fp32", seed=0, tool="0", towers=towers
    )


def conclusion(answer: Any = "flagged", score: float = 0.6, **changes: Any) -> Conclusion:
    findings = (Finding("real_token", "why"),)
    return Conclusion(answer, 0, score, (), findings, **{"witness": "real_token", **changes})


def test_a_score_that_no_clean_variant_reaches_stays_flagged() -> None:
    answer, found = weigh(conclusion(), null(*[0.1] * 99), 0.01)

    assert answer == conclusion()
    assert found is not None
    assert found.p_value == pytest.approx(0.01)
    assert found.predictive_value == pytest.approx(0.0085 / (0.0085 + 0.0099))
    assert found.prevalence == 0.01


@pytest.mark.parametrize(("higher", "answer"), [(0, "flagged"), (1, "inconclusive")])
def test_of_few_variants_none_may_reach_a_flagged_score(higher: int, answer: str) -> None:
    weighed, _ = weigh(conclusion(), null(*[0.1] * 9, *[0.7] * higher), 0.01)

    assert weighed.answer == answer
    assert ("common_among_clean" in [f.code for f in weighed.findings]) is (higher > 0)
    assert weighed.findings[0].code == "real_token"


def test_of_many_variants_one_in_a_hundred_may() -> None:
    one, two = (null(*[0.1] * (298 - n), *[0.7] * n) for n in (1, 4))

    assert weigh(conclusion(), one, 0.01)[0].answer == "flagged"
    assert weigh(conclusion(), two, 0.01)[0].answer == "inconclusive"


@pytest.mark.parametrize("answer", ["inconclusive", "natural", "no_evidence"])
def test_no_p_value_makes_another_answer_worse(answer: str) -> None:
    asked = conclusion(answer, witness=None)

    assert weigh(asked, null(*[0.0] * 5_000), 0.01)[0] == asked


def test_a_remapped_text_needs_no_statistics() -> None:
    asked = conclusion(score=1.0, witness="tokenizer")

    assert weigh(asked, null(1.0, 1.0), 0.01)[0] == asked


def test_a_score_that_is_no_number_has_no_p_value() -> None:
    asked = conclusion("inconclusive", math.nan)

    assert weigh(asked, null(0.1), 0.01)[1] is None


def test_the_same_null_distribution_has_the_same_name_and_another_one_another() -> None:
    names = [weigh(conclusion(), given, 0.01)[1] for given in (null(0.1), null(0.1), null(0.2))]

    assert names[0] == names[1]
    assert names[0] is not None
    assert names[2] is not None
    assert names[0].calibration != names[2].calibration
