"""p-values among known scores, what they are worth, and the file that keeps the scores."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from hf_amdet.detection.calibration import (
    VERSION,
    NullDistribution,
    NullTower,
    dump,
    parse,
    predictive_value,
    settings_digest,
)
from hf_amdet.detection.config import DEFAULT, PAPER
from hf_amdet.errors import UsageError


def make_null(*scores: float) -> NullDistribution:
    return NullDistribution(
        version=VERSION,
        family="clip",
        anchor="org/clean",
        anchor_digest="a" * 64,
        profile="default",
        settings_sha256="b" * 64,
        prompts_sha256="c" * 64,
        dtype="fp32",
        seed=3,
        tool="0.1.0",
        towers=tuple(NullTower("shaken", 0.01, 0.02, score) for score in scores),
    )


NULL = make_null(0.3, 0.1, 0.2)


@pytest.mark.parametrize(
    ("score", "p_value"),
    [(0.05, 1.0), (0.1, 1.0), (0.15, 0.75), (0.3, 0.5), (0.31, 0.25), (math.inf, 0.25)],
)
def test_a_p_value_counts_the_null_scores_that_are_as_high(score: float, p_value: float) -> None:
    assert NULL.p_value(score) == p_value


def test_99_towers_reach_one_in_a_hundred() -> None:
    assert make_null(*(n / 100 for n in range(99))).p_value(1.0) == pytest.approx(0.01)


def test_over_clean_towers_p_values_are_no_smaller_than_they_say() -> None:
    """Each of five scores judged by the other four: at most one in five gets 0.2."""
    scores = [0.1, 0.2, 0.2, 0.4, 0.5]
    p_values = [
        make_null(*scores[:number], *scores[number + 1 :]).p_value(score)
        for number, score in enumerate(scores)
    ]

    for p_value in p_values:
        assert sum(other <= p_value for other in p_values) / len(p_values) <= p_value


def test_no_number_has_no_p_value() -> None:
    with pytest.raises(ValueError, match="NaN"):
        NULL.p_value(math.nan)


def test_a_predictive_value_is_the_share_of_right_alarms() -> None:
    """1 % of 10,000 towers are backdoored: 97 are found beside 99 false alarms."""
    assert predictive_value(0.01, recall=0.97) == pytest.approx(97 / (97 + 99))
    assert predictive_value(0.0, recall=0.97) == 1.0
    assert predictive_value(0.01, recall=0.97, prevalence=0.5) == pytest.approx(0.97 / 0.98)


def test_what_is_written_is_read_again_and_small() -> None:
    text = dump(NULL)

    assert parse(text) == NULL
    assert dump(parse(text)) == text
    assert list(json.loads(text)) == sorted(json.loads(text))
    precise = dump(replace(NULL, towers=(NullTower("moved", 1 / 3, 2e-4 / 3, 1e-9 / 7),)))
    assert [line.strip(' ",') for line in precise.splitlines() if "0.333" in line] == [
        'strength": 0.333333'
    ]
    assert len(dump(make_null(*[1 / 3] * 99))) < 12_000


def test_what_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump(make_null(0.1, math.nan))


def _document(**changes: Any) -> str:
    return json.dumps(json.loads(dump(NULL)) | changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not even JSON"),
        ("[" * 100_000, "not even JSON"),
        ("[]", "no calibration"),
        ('{"verdict": "flagged"}', "no calibration"),
        (_document(version=2), "reads version 1"),
        (_document(towers=[]), "no towers"),
        (_document(towers=7), "no towers"),
        (_document(towers=[3]), "kind, strength, drift, score"),
        (_document(more=1), "broken"),
        (_document(seed="3"), "seed"),
        (_document(seed=True), "seed"),
        (_document(anchor=None), "anchor"),
        (dump(NULL).replace("0.3", "1e999"), "score"),
        (dump(NULL).replace("0.3", "NaN"), "NaN is no JSON number"),
        (dump(NULL).replace("0.3", '"high"'), "score"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_file_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(text)


def test_any_other_setting_gives_another_digest() -> None:
    (inversion,) = PAPER.inversions
    others = [
        DEFAULT,
        PAPER,
        replace(PAPER, prompts=PAPER.prompts + 1),
        replace(PAPER, inversions=(replace(inversion, lr=0.081),)),
        replace(PAPER, inversions=(replace(inversion, objective=DEFAULT.inversions[0].objective),)),
        replace(PAPER, landscape=replace(PAPER.landscape, radius=9.0)),
    ]

    assert len({settings_digest(profile) for profile in others}) == len(others)
    assert settings_digest(replace(PAPER, prompts=4_000)) == settings_digest(PAPER)
