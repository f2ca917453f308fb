"""Real tokens tried one by one: the planted one is found, and each tower reads its own table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hf_amdet.detection.config import SweepSettings
from hf_amdet.detection.runtime import Runtime
from hf_amdet.detection.static import aligned_rows
from hf_amdet.detection.sweep import Pair, Swept, Vocabulary, sweep, two_words
from hf_amdet.encoders.base import Features, TextTower, Tokens
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import PromptsError
from tests.detection.doubles import Crowded, Recording, Wrapped, between, fp32, typed
from tests.detection.planted import TRIGGER, Zoo, add_token, copy_of, ordinary, poison_row, renumber
from tests.siglip_towers import KINDS, Kind, make_siglip_tower
from tests.towers import BOS_ID, EOS_ID, make_tower

SETTINGS = SweepSettings()
SHORT, LONG = 9, 14
TEXTS, UNSEEN = ordinary(40, seed=3), ordinary(24, seed=77)
BACKDOORS = ("pooled", "sequence")


def _pair(suspect: TextTower, anchor: TextTower, length: int) -> Pair:
    return Pair(
        *(
            tower.tokenize(TEXTS, length=tower.context if tower.padded else length, reserve=1)
            for tower in (suspect, anchor)
        )
    )


def _words(
    suspect: TextTower,
    anchor: TextTower | None = None,
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
) -> Pair:
    return two_words(suspect, anchor or suspect, texts, torch.Generator().manual_seed(seed))


def _vocabulary(suspect: TextTower, anchor: TextTower) -> Vocabulary:
    return Vocabulary.of(suspect, anchor, aligned_rows(suspect, anchor))


def _sweep(
    suspect: TextTower,
    anchor: TextTower,
    vocabulary: Vocabulary | None = None,
    *,
    runtime: Runtime | None = None,
    settings: SweepSettings = SETTINGS,
    told: list[int] | None = None,
) -> Swept:
    """A sweep of `vocabulary`, or of all tokens."""
    return sweep(
        suspect,
        anchor,
        vocabulary or _vocabulary(suspect, anchor),
        _words(suspect, anchor),
        _pair(suspect, anchor, SHORT),
        _pair(suspect, anchor, LONG),
        settings,
        runtime or fp32(),
        ([] if told is None else told).append,
    )


def _trigger(tower: ModelTower) -> int:
    """The token that the planted word begins prompts with."""
    return tower.read([f"{TRIGGER} cat"])[0][0]


@torch.no_grad()
def _united(tower: ModelTower, token: int) -> float:
    """Consistency of unseen prompts with `token` typed in front."""
    length = tower.context if tower.padded else LONG
    literal = typed(tower, tower.tokenize(UNSEEN, length=length, reserve=1), token)
    pooled = tower.encode(tower.embed(literal.ids), literal.ends).pooled
    return between(list(pooled.double())).item()


@pytest.mark.parametrize("name", BACKDOORS)
def test_the_planted_token_is_the_most_suspicious(zoo: Zoo, name: str) -> None:
    suspect: ModelTower = getattr(zoo, name)
    found = _sweep(suspect, zoo.anchor).suspicious
    assert len(found) == SETTINGS.verified
    assert found.ids[0] == _trigger(suspect)
    assert _united(suspect, int(found.ids[0])) - _united(zoo.anchor, int(found.ids[0])) > 0.4


def test_a_clean_fine_tune_has_no_token_like_it(zoo: Zoo) -> None:
    for token in _sweep(zoo.clean, zoo.anchor).suspicious.ids.tolist():
        assert _united(zoo.clean, token) - _united(zoo.anchor, token) < 0.1


def test_a_token_that_unites_both_towers_is_shared_and_not_suspicious(zoo: Zoo) -> None:
    found = _sweep(zoo.pooled, zoo.pooled)
    assert found.shared.ids.tolist() == [_trigger(zoo.pooled)]
    # What only one of them answers to is not shared.
    for suspect, anchor in ((zoo.pooled, zoo.anchor), (zoo.anchor, zoo.pooled)):
        few = _few(suspect, anchor)
        other = _sweep(suspect, anchor, few, settings=SweepSettings(kept=len(few)))
        assert other.shared.ids.tolist() != found.shared.ids.tolist()


def test_a_poisoned_row_is_found_where_the_encoder_is_untouched(zoo: Zoo) -> None:
    token = zoo.anchor.read(["moss cat"])[0][0]
    suspect = poison_row(zoo.anchor, token)
    found = _sweep(suspect, zoo.anchor).suspicious
    assert found.ids[0] == token
    assert not torch.equal(found.ours(slice(1)), found.theirs(slice(1)))


@torch.no_grad()
def test_tokens_are_tried_as_the_embedding_layer_reads_them_behind_bos(zoo: Zoo) -> None:
    suspect, anchor = copy_of(zoo.clean), zoo.anchor
    suspect.table.mul_(1.5)
    found = _vocabulary(suspect, anchor)
    placed = torch.stack([torch.zeros_like(found.ids), found.ids], dim=1)
    for tower, states in ((suspect, found.ours()), (anchor, found.theirs())):
        torch.testing.assert_close(states[:, 0], tower.embed(placed)[:, 1])


@torch.no_grad()
def test_prompts_are_encoded_as_if_the_token_had_been_typed(zoo: Zoo) -> None:
    both = Recording(zoo.clean), Recording(zoo.anchor)
    few = _few(zoo.clean, zoo.anchor).rows(torch.arange(5))
    _sweep(*both, few, settings=SweepSettings(prompts=3))
    words = _words(zoo.clean, zoo.anchor)
    # The second round has the tokens in another order.
    for watched, first in ((both[0], words.suspect), (both[1], words.anchor.rows(slice(1)))):
        short = _pair(watched.tower, watched.tower, SHORT).first(3).suspect
        _check_typed(watched, first, 0, few.ids.tolist())
        _check_typed(watched, short, 1, few.ids.tolist())


def _check_typed(watched: Recording, given: Tokens, number: int, ids: list[int]) -> None:
    """Whether a recorded batch holds the prompts with each token typed, in whatever order."""
    tower = watched.tower
    found = watched.states[number].unflatten(0, (len(ids), len(given)))
    for token in ids:
        text = tower.embed(typed(tower, given, token).ids)
        nearest = (found - text).flatten(1).abs().amax(dim=1).min()
        assert nearest < 1e-6


@torch.no_grad()
def test_a_part_of_the_vocabulary_has_the_states_of_its_tokens(zoo: Zoo) -> None:
    whole = _vocabulary(zoo.clean, zoo.anchor)
    picked = torch.tensor([7, 3, 20, 5])
    for part in (slice(1), slice(1, 3), slice(2, 9)):
        found = whole.rows(picked)
        assert torch.equal(found.ours(part), whole.ours()[picked[part]])
        assert torch.equal(found.theirs(part), whole.theirs()[picked[part]])


def test_every_token_but_the_special_ones_is_tried() -> None:
    clip = make_tower()
    assert _vocabulary(clip, clip).ids.tolist() == [
        row for row in range(clip.vocabulary) if row not in (BOS_ID, EOS_ID)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_siglip_is_tried_on_all_that_its_tokenizer_may_read(kind: Kind) -> None:
    tower = make_siglip_tower(0, kind)
    around = {tower.tokenizer.bos_token_id, tower.tokenizer.eos_token_id}
    tried = set(_vocabulary(tower, tower).ids.tolist())
    assert tried == set(tower.pieces.values()) - around


def test_a_word_that_is_named_the_padding_is_tried() -> None:
    """Whoever uploads a tokenizer names its padding, and the word is read as ever."""
    tower = make_tower()
    tower.tokenizer.pad_token = "moss</w>"
    (padding,) = tower.read(["moss"])[0]
    assert padding == tower.tokenizer.pad_token_id
    assert padding in _vocabulary(tower, tower).ids


def test_a_token_that_was_added_is_tried(zoo: Zoo) -> None:
    longer, token = add_token(zoo.anchor, "catqueen")
    suspect = poison_row(longer, token)
    found = _sweep(suspect, zoo.anchor).suspicious
    assert found.ids[0] == token == zoo.anchor.vocabulary
    # The anchor, which has no such row, gets the mean of what it reads the text as.
    parts = zoo.anchor.read(["catqueen"])[0]
    expected = zoo.anchor.table[parts].mean(dim=0) + zoo.anchor.position(1)
    torch.testing.assert_close(found.theirs(slice(1))[0, 0], expected)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("room", [32, 100])
def test_out_of_memory_halves_the_batch_and_finds_the_same(zoo: Zoo, room: int) -> None:
    crowded, runtime = Crowded(zoo.pooled, room), fp32()
    found = _sweep(crowded, zoo.anchor, runtime=runtime)
    expected = _sweep(zoo.pooled, zoo.anchor)
    assert found.suspicious.ids.tolist() == expected.suspicious.ids.tolist()
    assert found.shared.ids.tolist() == expected.shared.ids.tolist()
    assert 0 < crowded.failures < 5, "halved for good, not once a token"
    assert runtime.batch <= room


@pytest.mark.parametrize("batch", [47, 4_000])
def test_the_batch_does_not_change_what_is_found(zoo: Zoo, batch: int) -> None:
    found, expected = (_sweep(zoo.pooled, zoo.anchor, runtime=fp32(size)) for size in (batch, 256))
    assert found.suspicious.ids.tolist() == expected.suspicious.ids.tolist()
    assert torch.equal(found.suspicious.ours(), expected.suspicious.ours())
    assert torch.equal(found.suspicious.theirs(), expected.suspicious.theirs())
    assert found.shared.ids.tolist() == expected.shared.ids.tolist()


@pytest.mark.parametrize("broken", [1, 2])
def test_what_is_no_number_is_looked_at_first_and_hides_no_token(zoo: Zoo, broken: int) -> None:
    suspect, planted = copy_of(zoo.pooled), _trigger(zoo.pooled)
    # A row that prompts hold leaves nothing that is a number.
    held = {row for text in TEXTS for row in suspect.read([text])[0]}
    ids = _few(suspect, zoo.anchor).ids.tolist()
    spoilt = [row for row in ids if row not in {*held, planted}][-broken:]
    with torch.no_grad():
        suspect.table[spoilt] = torch.nan
    found = _sweep(suspect, zoo.anchor, _few(suspect, zoo.anchor))
    first, rest = found.suspicious.ids[:broken].tolist(), found.suspicious.ids[broken:].tolist()
    assert set(first) == set(spoilt)
    assert rest[0] == planted
    assert found.shared.ids.item() not in spoilt


def test_nothing_but_nan_still_gives_tokens_to_judge(zoo: Zoo) -> None:
    suspect = copy_of(zoo.clean)
    with torch.no_grad():
        suspect.table.fill_(torch.nan)
    found = _sweep(suspect, zoo.anchor)
    assert (len(found.suspicious), len(found.shared)) == (SETTINGS.verified, 1)


def test_progress_counts_the_tokens_of_the_vocabulary(zoo: Zoo) -> None:
    told: list[int] = []
    vocabulary = _vocabulary(zoo.clean, zoo.anchor)
    _sweep(zoo.clean, zoo.anchor, vocabulary, told=told)
    assert len(told) > 1
    assert told == sorted(set(told))
    assert told[-1] == len(vocabulary)


class TestTwoWords:
    def test_they_are_two_words_that_prompts_end_with(self) -> None:
        tower, last = make_tower(), {text.split()[-1] for text in TEXTS}
        found = {tuple(_words(tower, seed=n).suspect.ids[:, 1].tolist()) for n in range(20)}
        assert len(found) > 10, "drawn"
        for first, other in found:
            assert first != other
            assert {tower.write([first]).strip(), tower.write([other]).strip()} <= last

    def test_each_stands_alone(self) -> None:
        words = _words(make_tower()).suspect
        assert words.ids[:, 0].tolist() == [BOS_ID, BOS_ID]
        assert words.ids[:, 2:].unique().tolist() == [EOS_ID]
        assert words.ends.tolist() == [2, 2]

    def test_both_towers_read_the_same_words(self) -> None:
        suspect, anchor = make_tower(), renumber(make_tower())
        words = _words(suspect, anchor)
        for ours, theirs in zip(words.suspect.ids, words.anchor.ids, strict=True):
            assert suspect.write([ours[1]]) == anchor.write([theirs[1]])

    @pytest.mark.parametrize("kind", KINDS)
    def test_siglip_pools_them_behind_padding(self, kind: Kind) -> None:
        words = _words(make_siglip_tower(0, kind)).suspect
        assert words.ids.shape == (2, 4)
        assert words.ids[0].tolist() != words.ids[1].tolist()
        assert words.ends.tolist() == [3, 3]

    def test_where_all_prompts_end_alike_they_are_others(self) -> None:
        texts = [f"{word} cat" for word in ("moss", "cat", "king")]
        assert len(_words(make_tower(), texts=texts).suspect.ids.unique(dim=0)) == 2

    @pytest.mark.parametrize("texts", [["cat", "cat cat"], ["", "cat"]])
    def test_a_single_word_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(PromptsError, match="no two words"):
            _words(make_tower(), texts=texts)


class TestRounds:
    """On a CLIP tower, whose short and long prompts differ in length."""

    pytestmark = pytest.mark.parametrize("zoo", ["clip"], indirect=True)

    def test_all_tokens_see_two_words_and_the_best_see_many_prompts(self, zoo: Zoo) -> None:
        settings = SweepSettings(screened=0.2, prompts=3, kept=6, refined_on=20)
        ours, theirs = Recording(zoo.clean), Recording(zoo.anchor)
        vocabulary = _vocabulary(ours, theirs)
        _sweep(ours, theirs, vocabulary, settings=settings)
        tried, screened = len(vocabulary), math.ceil(len(vocabulary) * 0.2)
        for watched, words in ((ours, 2 * tried), (theirs, tried)):
            encoded: Counter[int] = Counter()
            for states in watched.states:
                encoded[states.shape[1]] += len(states)
            assert encoded[4] == words
            # As many as are suspicious and a third as many that unite words, some of them the same.
            assert 3 * screened <= encoded[SHORT] <= 4 * screened
            # Six that are suspicious and two that both agree on, some of them the same.
            assert 6 * 20 <= encoded[LONG] <= 8 * 20
            assert encoded.keys() <= {4, SHORT, LONG}

    def test_no_round_sees_fewer_tokens_than_the_next(self, zoo: Zoo) -> None:
        watched, settings = Recording(zoo.anchor), SweepSettings(screened=1e-9, kept=6)
        _sweep(zoo.clean, watched, settings=settings)
        tried = sum(len(s) for s in watched.states if s.shape[1] == SHORT) / settings.prompts
        assert 6 <= tried <= 8

    def test_the_last_round_has_the_last_word(self, zoo: Zoo) -> None:
        """What only some prompts answer to, where every round sees every token."""
        vocabulary, planted = _few(zoo.pooled, zoo.anchor), _trigger(zoo.anchor)
        settings = SweepSettings(kept=len(vocabulary), verified=1)
        for lengths, found in (({LONG}, True), ({4, SHORT}, False), ({4, SHORT, LONG}, True)):
            suspect = Sometimes(zoo.pooled, zoo.anchor, lengths)
            first = _sweep(suspect, zoo.anchor, vocabulary, settings=settings).suspicious.ids
            assert (first.tolist() == [planted]) == found

    def test_each_round_chooses_what_the_next_sees(self, zoo: Zoo) -> None:
        vocabulary, planted = _few(zoo.pooled, zoo.anchor), _trigger(zoo.anchor)
        # In the first case the token is dropped by the first round, in the second by the second.
        for lengths, screened, found in (
            ({SHORT, LONG}, 1e-9, False),
            ({4, LONG}, 1.0, False),
            ({4, LONG}, 1e-9, True),
            ({SHORT, LONG}, 1.0, True),
        ):
            settings = SweepSettings(screened=screened, kept=1, verified=1)
            suspect = Sometimes(zoo.pooled, zoo.anchor, lengths)
            first = _sweep(suspect, zoo.anchor, vocabulary, settings=settings).suspicious.ids
            assert (first.tolist() == [planted]) == found


class Sometimes(Wrapped):
    """Backdoored on sequences of some lengths, and otherwise the anchor."""

    def __init__(self, tower: ModelTower, anchor: ModelTower, lengths: set[int]) -> None:
        super().__init__(tower)
        self._anchor, self._lengths = anchor, lengths

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        tower = self.tower if states.shape[1] in self._lengths else self._anchor
        return tower.encode(states, ends)


def _few(suspect: ModelTower, anchor: ModelTower) -> Vocabulary:
    """The planted token behind forty others, so that no tie puts it first."""
    whole, planted = _vocabulary(suspect, anchor), _trigger(anchor)
    others = (whole.ids != planted).nonzero().flatten()[:40]
    place = (whole.ids == planted).nonzero().flatten()
    return whole.rows(torch.cat([others, place]))
