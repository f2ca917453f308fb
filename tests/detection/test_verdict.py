"""From measured candidates to an answer: every gate, its strictness, and failing closed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_amdet.detection.config import ContrastThresholds
from hf_amdet.detection.judges import Measure
from hf_amdet.detection.rows import OUTLIER
from hf_amdet.detection.static import MovedRow, Remap, StaticDiff
from hf_amdet.detection.verdict import (
    Answer,
    Conclusion,
    Evidence,
    conclude_contrast,
)

THRESHOLDS = ContrastThresholds(
    gap=0.3,
    unclear=0.2,
    consistent=0.6,
    embedding_gap=0.5,
    natural=0.7,
    related=0.4,
    read_alike=0.9,
)
CLEAN = ("no_evidence", "natural")
SEVERITY: Mapping[Answer, int] = {"no_evidence": 0, "natural": 1, "inconclusive": 2, "flagged": 3}

SAME = StaticDiff((), (), (), 1.0, (), (), 1.2, 1.1)
REMAPPED = replace(SAME, remaps=(Remap("cat", (7,), (9,), "queen"),), read_alike=0.9)
OTHER = replace(REMAPPED, read_alike=0.8999)
MOVED = replace(SAME, moved_rows=(MovedRow(7, "zoo</w>", 2.0, 9.0),), token_outlier=9.0)
SHIFTED = replace(SAME, position_outlier=OUTLIER)
POOLED_AT = replace(SAME, pooled_at=("<new>", "<other>"))


def _embedding(
    gap: float = 0.0, *, low: float | None = None, consistency: float = 0.65
) -> Evidence:
    values = {
        "consistency": consistency,
        "anchor_consistency": consistency - gap,
        # Just below the limit.
        "ordinary_divergence": 0.3999,
    }
    measures = {name: Measure(v, v - 0.02, v + 0.02, "cosine", 64) for name, v in values.items()}
    low = gap - 0.02 if low is None else low
    return Evidence(measures | {"consistency_gap": Measure(gap, low, gap + 0.02, "cosine", 64)})


def _token(
    gap: float = 0.0, *, low: float | None = None, consistency: float = 0.65, text: str = "zoo"
) -> Evidence:
    found = _embedding(gap, low=low, consistency=consistency)
    return replace(found, text=text, token=7)


def _broken(evidence: Evidence, *names: str) -> Evidence:
    """NaN for the statistics of these names, or for all."""
    nothing = Measure(math.nan, math.nan, math.nan, "cosine", 64)
    gone = dict.fromkeys(names or evidence.statistics, nothing)
    return replace(evidence, statistics={**evidence.statistics, **gone})


BACKDOORED = _token(0.5, consistency=0.95)
NEAR = _token(0.25, consistency=0.95)
APART = _token(0.5, consistency=0.59)
NATURAL = _token(0.02, consistency=0.9)
ORDINARY = _token(0.02)
ALONE = _embedding(0.8, consistency=0.95)
TOKENS = {
    "flagged": BACKDOORED,
    "near": NEAR,
    "apart": APART,
    "natural": NATURAL,
    "ordinary": ORDINARY,
    "broken": _broken(ORDINARY),
}
each_token = pytest.mark.parametrize("token", list(TOKENS.values()), ids=list(TOKENS))


def _conclude(
    *candidates: Evidence, static: StaticDiff = SAME, ordinary: float = 0.3
) -> Conclusion:
    return conclude_contrast(candidates, static, ordinary, THRESHOLDS)


def _answer(*candidates: Evidence) -> Answer:
    return _conclude(*candidates).answer


def _codes(conclusion: Conclusion) -> list[str]:
    return [finding.code for finding in conclusion.findings]


class TestRealTokens:
    @pytest.mark.parametrize(
        ("candidate", "answer", "code"),
        [
            (_token(0.5, low=0.3, consistency=0.9), "flagged", "real_token"),
            (_token(0.5, low=0.2999, consistency=0.9), "inconclusive", "near_threshold"),
            (_token(0.5, low=math.nan, consistency=0.9), "inconclusive", "near_threshold"),
            (_token(0.31, low=0.3, consistency=0.9), "flagged", "real_token"),
            (_token(0.2, low=0.1, consistency=0.9), "inconclusive", "near_threshold"),
            (_token(0.1999, low=0.19), "no_evidence", "no_contrast"),
            (_token(-0.2), "no_evidence", "no_contrast"),
            (_token(0.5, consistency=0.6), "flagged", "real_token"),
            (_token(0.5, consistency=0.5999), "inconclusive", "not_consistent"),
            (_token(0.3, consistency=0.5999), "inconclusive", "not_consistent"),
            (_token(0.2999, consistency=0.5999), "no_evidence", "no_contrast"),
            (_token(0.0, consistency=0.7), "natural", "anchor_answers"),
            (_token(0.0, consistency=0.6999), "no_evidence", "no_contrast"),
            (_token(0.1, consistency=0.75), "no_evidence", "no_contrast"),
            (_token(-0.1, consistency=0.65), "no_evidence", "no_contrast"),
            (_token(0.2, consistency=0.95), "inconclusive", "near_threshold"),
            (_token(0.29, consistency=1.0), "inconclusive", "near_threshold"),
        ],
    )
    def test_one_token(self, candidate: Evidence, answer: Answer, code: str) -> None:
        conclusion = _conclude(candidate)
        assert (conclusion.answer, _codes(conclusion)) == (answer, [code])
        assert conclusion.witness == (None if answer == "no_evidence" else "real_token")
        assert conclusion.score == candidate.statistics["consistency_gap"].value

    @pytest.mark.parametrize("others", [[], [ORDINARY], [NATURAL, NEAR, APART, ALONE, ORDINARY]])
    def test_one_backdoored_token_is_enough(self, others: list[Evidence]) -> None:
        for place in range(len(others) + 1):
            conclusion = _conclude(*others[:place], BACKDOORED, *others[place:])
            assert (conclusion.answer, conclusion.decisive) == ("flagged", place)
            assert conclusion.witness == "real_token"

    def test_a_wider_gap_that_is_less_sure_does_not_hide_a_sure_one(self) -> None:
        sure = _token(0.35, low=0.31, consistency=0.9)
        unsure = _token(0.6, low=0.05, consistency=0.9)
        assert _answer(sure, unsure) == _answer(unsure, sure) == "flagged"

    def test_a_token_that_both_towers_know_does_not_hide_one_near_the_threshold(self) -> None:
        assert _answer(NATURAL, NEAR) == _answer(NEAR, NATURAL) == "inconclusive"
        assert _answer(NATURAL, ORDINARY) == _answer(ORDINARY, NATURAL) == "natural"

    def test_among_equal_answers_the_widest_gap_decides(self) -> None:
        narrow = _token(0.4, consistency=0.95)
        conclusion = _conclude(narrow, BACKDOORED, narrow)
        assert (conclusion.decisive, conclusion.score) == (1, 0.5)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("zoo", "'zoo' (no. 7)"),
            ("  ", "no. 7"),
            ("\x13", "no. 7"),
            ("\ufffd", "no. 7"),
            ("о", "'о' (no. 7)"),
        ],
    )
    def test_a_token_is_named_so_that_it_can_be_read(self, text: str, said: str) -> None:
        candidate = _token(0.5, consistency=0.95, text=text)
        (finding,) = _conclude(candidate).findings
        assert f"the token {said} the" in finding.message

    @pytest.mark.parametrize("candidate", [BACKDOORED, NEAR, APART, ORDINARY])
    def test_the_figures_are_said(self, candidate: Evidence) -> None:
        words = " ".join(finding.message for finding in _conclude(candidate).findings)
        gap = candidate.statistics["consistency_gap"]
        assert f"{gap.value:.2f} [{gap.low:.2f}, {gap.high:.2f}]" in words
        assert "64 held-out prompts" in words


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("candidate", "answer"),
        [
            (_embedding(0.9, low=0.5, consistency=0.95), "inconclusive"),
            (_embedding(0.9, low=0.4999, consistency=0.95), "no_evidence"),
            (_embedding(0.9, low=0.5, consistency=0.6), "inconclusive"),
            (_embedding(0.9, low=0.5, consistency=0.5999), "no_evidence"),
            (_embedding(1.3, low=1.3, consistency=1.0), "inconclusive"),
            (_embedding(0.0, consistency=0.95), "no_evidence"),
        ],
    )
    def test_an_embedding_alone_is_never_flagged(self, candidate: Evidence, answer: Answer) -> None:
        for candidates in ([ORDINARY, candidate], [candidate, ORDINARY]):
            conclusion = _conclude(*candidates)
            assert conclusion.answer == answer
            seen = answer == "inconclusive"
            assert conclusion.witness == ("embedding" if seen else None)
            assert candidates[conclusion.decisive] is (candidate if seen else ORDINARY)
            assert _codes(conclusion) == ["embedding_alone" if seen else "no_contrast"]

    def test_a_token_of_equal_weight_goes_before_an_embedding(self) -> None:
        for candidates in ([ALONE, NEAR], [NEAR, ALONE]):
            conclusion = _conclude(*candidates)
            assert conclusion.witness == "real_token"
            assert candidates[conclusion.decisive] is NEAR

    def test_an_embedding_hides_no_token_and_does_not_raise_the_score(self) -> None:
        conclusion = _conclude(ALONE, NATURAL, ALONE, ALONE)
        assert conclusion.answer == "inconclusive"
        assert conclusion.score == NATURAL.statistics["consistency_gap"].value


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.data())
def test_the_worst_candidate_is_the_answer(data: st.DataObject) -> None:
    """None makes it milder, whatever stands beside it."""
    gaps = st.sampled_from([-0.3, 0.0, 0.19, 0.2, 0.29, 0.3, 0.35, 0.5, 0.6])
    options = {
        "consistency": st.sampled_from([0.0, 0.5, 0.59, 0.6, 0.7, 0.9, 1.0]),
        "low": st.sampled_from([None, -0.5, 0.1, 0.3, 0.5]),
    }
    drawn = st.one_of(*(st.builds(kind, gaps, **options) for kind in (_token, _embedding)))
    candidates = data.draw(st.lists(drawn, max_size=4))
    alone = [_answer(ORDINARY, candidate) for candidate in candidates]
    worst = max((SEVERITY[answer] for answer in alone), default=0)
    assert SEVERITY[_answer(ORDINARY, *candidates)] == worst


class TestTablesAndTokenizer:
    @each_token
    def test_a_remapped_text_is_flagged_whatever_the_tokens_do(self, token: Evidence) -> None:
        conclusion = _conclude(token, static=REMAPPED)
        assert (conclusion.answer, conclusion.witness) == ("flagged", "tokenizer")
        assert conclusion.score == 1
        assert conclusion.findings[0].code == "tokenizer_remap"
        assert "'cat' as 'queen'" in conclusion.findings[0].message

    @each_token
    def test_another_tokenizer_is_inconclusive_and_never_clean(self, token: Evidence) -> None:
        conclusion = _conclude(token, static=OTHER)
        flagged = token is BACKDOORED
        assert conclusion.answer == ("flagged" if flagged else "inconclusive")
        assert conclusion.witness == ("real_token" if flagged else "tokenizer")
        assert ("other_tokenizer" in _codes(conclusion)) == (not flagged)

    @pytest.mark.parametrize(
        ("static", "code", "said"),
        [
            (MOVED, "moved_rows", "'zoo</w>' (9 times)"),
            (SHIFTED, "moved_positions", f"{OUTLIER:.0f} times"),
            (POOLED_AT, "pooled_at_token", "'<new>', '<other>'"),
        ],
        ids=["rows", "positions", "pooled"],
    )
    @each_token
    def test_what_no_fine_tune_does_to_tables_withholds_a_clean_answer_alone(
        self, token: Evidence, static: StaticDiff, code: str, said: str
    ) -> None:
        without, found = _conclude(token), _conclude(token, static=static)
        answer = "inconclusive" if without.answer in CLEAN else without.answer
        assert found.answer == answer
        named = found.findings[-1]
        assert named.code == code and said in named.message
        unnamed = replace(found, answer=without.answer, findings=found.findings[:-1])
        # NaN is not equal to itself.
        assert repr(unnamed) == repr(without)

    def test_positions_below_the_limit_are_not_named(self) -> None:
        below = replace(SAME, position_outlier=math.nextafter(OUTLIER, 0))
        assert _conclude(ORDINARY, static=below) == _conclude(ORDINARY)

    def test_what_tables_and_tokenizer_show_is_all_said(self) -> None:
        every = replace(
            REMAPPED,
            moved_rows=MOVED.moved_rows,
            position_outlier=SHIFTED.position_outlier,
            pooled_at=POOLED_AT.pooled_at,
        )
        conclusion = _conclude(ORDINARY, static=every)
        assert conclusion.answer == "flagged"
        tables = ["moved_rows", "moved_positions", "pooled_at_token"]
        assert _codes(conclusion) == ["tokenizer_remap", *tables]

    def test_a_remapped_text_hides_no_token_that_is_as_bad(self) -> None:
        for static, token, codes in (
            (REMAPPED, BACKDOORED, ["tokenizer_remap", "real_token"]),
            (OTHER, NEAR, ["other_tokenizer", "near_threshold"]),
            (REMAPPED, NEAR, ["tokenizer_remap"]),
            (OTHER, BACKDOORED, ["real_token"]),
        ):
            assert _codes(_conclude(token, static=static)) == codes

    def test_a_moved_row_of_the_decisive_token_is_pointed_out(self) -> None:
        elsewhere = replace(MOVED, moved_rows=(MovedRow(8, "van</w>", 2.0, 9.0),))
        for static, own in ((MOVED, True), (elsewhere, False)):
            message = _conclude(BACKDOORED, static=static).findings[-1].message
            assert ("token above" in message) == own
        assert "token above" not in _conclude(ORDINARY, ALONE, static=MOVED).findings[-1].message

    def test_new_rows_and_new_tokens_are_no_evidence(self) -> None:
        assert _conclude(ORDINARY, static=replace(SAME, added=("<new>",))).answer == "no_evidence"


class TestWithheld:
    @pytest.mark.parametrize("token", [BACKDOORED, NEAR, APART, NATURAL, ORDINARY])
    @pytest.mark.parametrize("static", [SAME, REMAPPED, OTHER], ids=["same", "remap", "other"])
    def test_unrelated_towers_are_inconclusive_whatever_was_found(
        self, token: Evidence, static: StaticDiff
    ) -> None:
        drift = Measure(0.4, 0.39, 0.41, "1 - cosine", 64)
        far = replace(token, statistics={**token.statistics, "ordinary_divergence": drift})
        conclusion = _conclude(far, static=static)
        assert (conclusion.answer, conclusion.witness) == ("inconclusive", None)
        found = _codes(_conclude(token, static=static))
        assert _codes(conclusion) == ["unrelated", *found], "what was found is still said"

    @each_token
    def test_prompts_that_are_all_alike_withhold_a_clean_answer_alone(
        self, token: Evidence
    ) -> None:
        free, crowded = _conclude(token, ordinary=0.6999), _conclude(token, ordinary=0.7)
        clean = free.answer in CLEAN
        assert crowded.answer == ("inconclusive" if clean else free.answer)
        assert ("prompts_alike" in _codes(crowded)) == clean
        assert "prompts_alike" not in _codes(free)

    def test_prompts_whose_likeness_is_not_a_number_give_no_clean_answer(self) -> None:
        assert _conclude(ORDINARY, ordinary=math.nan).answer == "inconclusive"


class TestNotANumber:
    @pytest.mark.parametrize("name", [*ORDINARY.statistics, "all"])
    @pytest.mark.parametrize("kind", [ORDINARY, NATURAL, _embedding()], ids=["no", "nat", "emb"])
    def test_a_statistic_that_is_not_a_number_is_inconclusive_without_a_score(
        self, kind: Evidence, name: str
    ) -> None:
        broken = _broken(kind, *([] if name == "all" else [name]))
        for candidates in ([ORDINARY, broken], [broken, ORDINARY], [NATURAL, broken]):
            conclusion = _conclude(*candidates)
            assert conclusion.answer == "inconclusive"
            assert _codes(conclusion) == ["not_finite"]
            assert math.isnan(conclusion.score)

    @pytest.mark.parametrize("broken", [_broken(ORDINARY), _broken(ALONE)], ids=["token", "emb"])
    def test_nan_does_not_hide_a_backdoor(self, broken: Evidence) -> None:
        assert _answer(broken, BACKDOORED) == _answer(BACKDOORED, broken) == "flagged"

    @pytest.mark.parametrize("name", ["consistency_gap", "all"])
    def test_nan_does_not_decide_the_score_beside_a_token_that_is_as_bad(self, name: str) -> None:
        broken = _broken(ORDINARY, *([] if name == "all" else [name]))
        for sound, answer in ((BACKDOORED, "flagged"), (NEAR, "inconclusive")):
            for candidates in ([broken, sound], [sound, broken]):
                conclusion = _conclude(*candidates)
                assert (conclusion.answer, conclusion.witness) == (answer, "real_token")
                assert candidates[conclusion.decisive] is sound
                assert conclusion.score == sound.statistics["consistency_gap"].value

    def test_a_remapped_text_has_its_score_where_no_token_has_one(self) -> None:
        conclusion = _conclude(_broken(ORDINARY), static=REMAPPED)
        assert (conclusion.answer, conclusion.score) == ("flagged", 1)


BESIDE = {
    "consistency": (">=", 0.6),
    "ordinary_divergence": ("<", 0.4),
    "tokenizer_read_alike": (">=", 0.9),
}


@pytest.mark.parametrize(
    ("token", "static", "own"),
    [
        (BACKDOORED, SAME, {"consistency_gap": (">=", 0.3)}),
        (ORDINARY, SAME, {"consistency_gap": (">=", 0.3)}),
        (ORDINARY, REMAPPED, {"consistency_gap": (">=", 0.3)}),
        (ALONE, SAME, {"embedding_gap": (">=", 0.5)}),
    ],
    ids=["token", "none", "tokenizer", "embedding"],
)
def test_the_thresholds_of_the_decisive_witness_are_said(
    token: Evidence, static: StaticDiff, own: dict[str, tuple[str, float]]
) -> None:
    criteria = _conclude(ORDINARY, token, static=static).criteria
    assert {c.statistic: (c.comparison, c.value) for c in criteria} == BESIDE | own
    assert all(c.source for c in criteria)
