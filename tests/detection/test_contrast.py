"""The default profile put together, on random towers and a few steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_amdet.detection import contrast, stages
from hf_amdet.detection.config import DEFAULT, Profile
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.inversion import Inversion
from hf_amdet.detection.objective import PublishedObjective
from hf_amdet.detection.probes import Probes
from hf_amdet.detection.progress import Observer
from hf_amdet.detection.stages import Run
from hf_amdet.detection.sweep import Pair, Swept, Vocabulary, sweep
from hf_amdet.encoders.base import TextTower, Tokens
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import PromptsError
from tests.detection.doubles import (
    SMALL,
    Crowded,
    Wrapped,
    between,
    fp32,
    overflowing,
    published_loss,
)
from tests.detection.planted import renumber
from tests.siglip_towers import make_siglip_tower
from tests.towers import WIDTH, make_tower, prompts

TEXTS = prompts(60, words=5)
BESIDE = {
    "ordinary_consistency",
    "embedding_gap",
    "embedding_gap_least",
    "tokenizer_read_alike",
}
"""Statistics that belong to the tower and not to a candidate."""

pytestmark = pytest.mark.usefixtures("few_texts")


def _detect(
    profile: Profile = SMALL,
    *,
    suspect: TextTower | None = None,
    anchor: TextTower | None = None,
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
    observer: Observer | None = None,
) -> Detection:
    return detect(
        suspect or make_tower(1, drift=0.1),
        anchor or make_tower(1),
        texts,
        profile,
        seed=seed,
        runtime=fp32(),
        observer=observer,
    )


def _probes(tower: TextTower, seed: int = 0) -> Probes:
    """What a detection makes of the prompts."""
    return Run(tower, tower, SMALL, fp32(), Observer(), seed).probes(TEXTS)


def test_a_tower_that_reads_its_padding_gets_whole_contexts() -> None:
    """In the profile's own probes; the rounds of the sweep name their length."""
    padded, causal = make_siglip_tower(0), make_tower(0)
    assert SMALL.positions is not None
    for tower, length in ((padded, padded.context), (causal, SMALL.positions)):
        run = Run(tower, tower, SMALL, fp32(), Observer(), 0)
        assert run.probes(TEXTS).optimise.ids.shape[1] == length
        assert run.probes(TEXTS, positions=6).optimise.ids.shape[1] == 6


@pytest.fixture(scope="module")
def found(few_texts: None) -> Detection:
    return _detect()


def test_real_tokens_are_judged_and_every_restart(found: Detection) -> None:
    assert SMALL.sweep is not None
    tokens, embeddings = found.candidates[:-2], found.candidates[-2:]
    # The most suspicious ones, and the one that both towers agree on.
    assert len(tokens) == SMALL.sweep.verified + 1
    assert [(c.objective, c.restart) for c in embeddings] == [
        ("consistency-gap", 0),
        ("consistency-gap", 1),
    ]
    assert {name: curve.shape for name, curve in found.curves.items()} == {
        "consistency-gap": (4, 2)
    }
    for candidate in found.candidates:
        assert candidate.trigger.shape == (1, WIDTH)
        assert candidate.statistics["consistency_gap"].n == 10
    for candidate in embeddings:
        assert (candidate.token, candidate.text, candidate.steps) == (None, None, 4)
        assert candidate.loss == found.curves["consistency-gap"][-1, candidate.restart].item()


def test_a_real_token_is_what_the_suspect_makes_of_its_text(found: Detection) -> None:
    suspect = make_tower(1, drift=0.1)
    tokens = [c for c in found.candidates if c.token is not None]
    assert [c.objective for c in tokens] == ["real-token"] * len(tokens)
    assert len({c.restart for c in tokens}) == len(tokens)
    for candidate in tokens:
        assert candidate.token is not None
        assert candidate.text == suspect.write([candidate.token])
        expected = suspect.table[candidate.token] + suspect.position(1)
        torch.testing.assert_close(candidate.trigger[0], expected)
        assert candidate.steps == 0
        assert candidate.loss == -candidate.statistics["consistency_gap"].value


def test_statistics_are_about_the_decisive_candidate(found: Detection) -> None:
    assert found.decisive is found.candidates[found.conclusion.decisive]
    assert found.statistics.keys() == found.decisive.statistics.keys() | BESIDE
    for name, statistic in found.decisive.statistics.items():
        assert found.statistics[name] == statistic


def test_the_landscape_is_drawn_where_there_is_something_to_find(
    found: Detection, few_texts: None
) -> None:
    assert found.conclusion.answer == "no_evidence"
    assert found.landscape is None and "landscape" not in found.timings
    suspect, anchor = make_tower(2), make_tower(1)
    found = _detect(suspect=suspect, anchor=anchor)
    assert found.conclusion.answer == "inconclusive"
    assert found.landscape is not None
    curvature = found.statistics["positive_curvature_share"]
    assert curvature.value == found.landscape.positive_share
    shares = found.landscape.shares
    assert (curvature.low, curvature.high, curvature.n) == (min(shares), max(shares), 4)
    first = _probes(suspect).held_out.rows(slice(1))
    expected = published_loss(suspect, anchor, first, found.decisive.trigger).item()
    assert found.landscape.surfaces[0, 2, 2].item() == pytest.approx(expected, abs=1e-5)


def test_a_tower_is_described_beside_its_candidates(found: Detection) -> None:
    anchor, statistics = make_tower(1), found.statistics
    held_out = _probes(anchor).held_out
    pooled = anchor.encode(anchor.embed(held_out.ids), held_out.ends).pooled
    expected = between(list(pooled.double())).item()
    assert statistics["ordinary_consistency"].value == pytest.approx(expected, abs=1e-5)
    assert found.static is not None
    alike = statistics["tokenizer_read_alike"]
    assert alike.value == found.static.read_alike == 1
    assert (alike.low, alike.high, alike.n) == (None, None, len(TEXTS))


def test_the_widest_and_the_narrowest_gap_of_all_restarts_are_told(found: Detection) -> None:
    widest_at = set()
    for detection in (found, _detect(seed=1)):
        embeddings = [c for c in detection.candidates if c.token is None]
        gaps = [c.statistics["consistency_gap"].value for c in embeddings]
        for name, gap in (("embedding_gap", max(gaps)), ("embedding_gap_least", min(gaps))):
            told = detection.statistics[name]
            assert (told.value, told.low, told.high, told.n) == (gap, None, None, 10)
        widest_at.add(gaps.index(max(gaps)))
    assert widest_at == {0, 1}, "neither restart is always the one"


def test_the_same_seed_gives_the_same_detection(found: Detection) -> None:
    again, other = _detect(), _detect(seed=1)
    assert again.conclusion == found.conclusion
    assert again.statistics == found.statistics
    for ours, same in zip(found.candidates, again.candidates, strict=True):
        assert torch.equal(ours.trigger, same.trigger)
        assert (ours.token, ours.statistics) == (same.token, same.statistics)
    assert not torch.equal(found.candidates[-1].trigger, other.candidates[-1].trigger)
    assert found.statistics["ordinary_consistency"] != other.statistics["ordinary_consistency"]


@pytest.mark.parametrize("place", [0, 2, None])
def test_the_shared_token_is_judged_once(
    monkeypatch: pytest.MonkeyPatch, place: int | None
) -> None:
    """Even where it is one of the suspicious, as when both towers are backdoored alike."""
    seen: list[Swept] = []

    def known(*given: Any) -> Swept:
        found = sweep(*given)
        whole = next(part for part in given if isinstance(part, Vocabulary))
        among = found.suspicious if place is not None else whole.rows(_others(whole, found))
        seen.append(replace(found, shared=among.rows(torch.tensor([place or 0]))))
        return seen[0]

    monkeypatch.setattr(contrast, "sweep", known)
    tokens = [c.token for c in _detect().candidates if c.token is not None]
    (swept,) = seen
    suspicious, shared = swept.suspicious.ids.tolist(), swept.shared.ids.tolist()
    assert tokens == (suspicious if place is not None else [*suspicious, *shared])


def _others(whole: Vocabulary, found: Swept) -> torch.Tensor:
    """Places of the tokens that are not suspicious."""
    return (~torch.isin(whole.ids, found.suspicious.ids)).nonzero().flatten()


def test_objectives_start_from_triggers_of_their_own() -> None:
    (inversion,) = SMALL.inversions
    still = replace(inversion, lr=0.0)
    both = (still, replace(still, objective=PublishedObjective()))
    candidates = _detect(replace(SMALL, inversions=both)).candidates[-4:]
    assert len({tuple(c.trigger.flatten().tolist()) for c in candidates}) == 4


class _Reading(Wrapped):
    """Keeps the prompts that it was to leave room for a trigger in."""

    def __init__(self, tower: ModelTower) -> None:
        super().__init__(tower)
        self.given: list[list[str]] = []

    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens:
        if reserve:
            self.given.append(list(prompts))
        return super().tokenize(prompts, length=length, reserve=reserve)


def test_the_anchor_is_given_the_same_prompts_in_the_same_order() -> None:
    suspect, anchor = _Reading(make_tower(1)), _Reading(make_tower(1))
    _detect(suspect=suspect, anchor=anchor)
    drawn = suspect.given[0]
    assert len(drawn) == 30
    # But for the words of the first round.
    for reading in (suspect, anchor):
        reading.given = [prompts for prompts in reading.given if " " in prompts[0]]
    assert suspect.given and all(prompts == drawn for prompts in suspect.given)
    assert anchor.given and all(prompts == drawn for prompts in anchor.given)


def test_an_anchor_with_other_ids_for_the_same_pieces_changes_nothing(found: Detection) -> None:
    renumbered = _detect(anchor=renumber(make_tower(1)))
    assert renumbered.conclusion.answer == found.conclusion.answer
    assert [c.token for c in renumbered.candidates] == [c.token for c in found.candidates]
    for name, statistic in found.statistics.items():
        value = renumbered.statistics[name].value
        assert value == pytest.approx(statistic.value, abs=1e-4), name


def test_held_out_prompts_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a token nor an embedding: what sweep and inversion are given is the other part."""
    seen: list[Tokens] = []

    def watched_sweep(*given: Any) -> Swept:
        pairs = [pair for pair in given if isinstance(pair, Pair)]
        seen.extend(part for pair in pairs for part in (pair.suspect, pair.anchor))
        return sweep(*given)

    def watched_inversion(*given: Any) -> Inversion:
        seen.extend(part for part in given if isinstance(part, Tokens))
        return Inversion(*given)

    monkeypatch.setattr(contrast, "sweep", watched_sweep)
    monkeypatch.setattr(stages, "Inversion", watched_inversion)
    _detect()
    probes = _probes(make_tower(1))
    assert len(seen) == 7, "words, short and long prompts as both read them, and the inversion's"
    held_out, others = (_words(part) for part in (probes.held_out, probes.optimise))
    assert len(held_out) == 10 and not held_out & others
    # What comes first are single words.
    for part in seen[2:]:
        assert _words(part) == others


def _words(tokens: Tokens) -> set[tuple[int, ...]]:
    """Ids up to the pooled one, whatever the padding."""
    rows = zip(tokens.ids.tolist(), tokens.ends.tolist(), strict=True)
    return {tuple(row[: end + 1]) for row, end in rows}


@pytest.mark.usefixtures("no_collection")
def test_little_memory_gives_the_same_answer(found: Detection) -> None:
    crowded = Crowded(make_tower(1, drift=0.1), 40)
    cramped = _detect(suspect=crowded)
    assert crowded.failures > 0
    assert cramped.conclusion.answer == found.conclusion.answer
    assert [c.token for c in cramped.candidates] == [c.token for c in found.candidates]
    gap, wanted = (f.statistics["consistency_gap"].value for f in (cramped, found))
    assert gap == pytest.approx(wanted, abs=1e-2)


def test_a_tower_whose_features_overflow_is_neither_clean_nor_a_crash() -> None:
    conclusion = _detect(suspect=overflowing(1)).conclusion
    assert conclusion.answer == "inconclusive"
    assert math.isnan(conclusion.score)
    assert conclusion.findings[0].code == "not_finite"


def test_unrelated_towers_are_not_judged() -> None:
    conclusion = _detect(suspect=make_tower(2)).conclusion
    assert conclusion.answer == "inconclusive"
    assert conclusion.findings[0].code == "unrelated"


def test_the_twenty_prompts_that_are_asked_for_are_enough() -> None:
    profile = replace(SMALL, prompts=DEFAULT.prompts, held_out=DEFAULT.held_out)
    found = _detect(profile, texts=prompts(20))
    for name, statistic in found.decisive.statistics.items():
        assert statistic.low is not None and math.isfinite(statistic.low), name


def test_prompts_that_are_all_alike_give_no_clean_answer() -> None:
    start = "the one old red blue small tall cat dog bird fish house boat river road hill"
    alike = [f"{start} {prompt}" for prompt in prompts(40)]
    conclusion = _detect(texts=alike).conclusion
    assert conclusion.answer == "inconclusive"
    assert conclusion.findings[-1].code == "prompts_alike"


def test_too_few_prompts_are_an_error() -> None:
    with pytest.raises(PromptsError):
        _detect(texts=prompts(5))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_progress_is_told_stage_by_stage(family: str) -> None:
    told: list[tuple[str, int]] = []

    class Telling(Observer):
        def stage(self, name: str, total: int) -> None:
            told.append((name, total))

        def update(self, done: int, total: int, loss: float | None = None) -> None:
            assert 0 < done <= total
            assert loss is None or math.isfinite(loss)

    make = make_tower if family == "clip" else make_siglip_tower
    tower = make(1)
    found = _detect(suspect=tower, anchor=tower, observer=Telling())
    tried = len(set(tower.pieces.values()) - tower.special)
    assert told == [
        ("tables and tokenizer", 0),
        ("sweep of real tokens", tried),
        ("inversion (consistency-gap)", 4),
        ("judges (consistency-gap)", 0),
        *([("landscape", 0)] if found.landscape else []),
    ]
    stages_timed = {"probes", "static", "sweep", "inversion", "judges"}
    stages_timed |= {"landscape"} if found.landscape else set()
    assert set(found.timings) == stages_timed
    assert all(seconds > 0 for seconds in found.timings.values())
