"""How a `ClipTower` reads prompts; that it computes what its model does is in test_forward."""

from __future__ import annotations

import pytest
import torch

from hf_amdet.encoders.clip import ClipTower
from tests.towers import (
    BOS_ID,
    CONTEXT,
    EOS,
    EOS_ID,
    WORDS,
    make_tower,
    prompts,
)

TEXTS = [*prompts(5), "cat", "", f"the cat {EOS} the dog", " ".join(["snow"] * 40)]


@pytest.fixture(scope="module")
def tower() -> ClipTower:
    return make_tower()


def test_sequences_are_padded_to_the_length_and_keep_bos_and_eos(tower: ClipTower) -> None:
    tokens = tower.tokenize(TEXTS, length=9)
    assert tokens.ids.shape == (len(TEXTS), 9)
    assert tokens.ids[:, 0].tolist() == [BOS_ID] * len(TEXTS)
    assert (tokens.ids[torch.arange(len(TEXTS)), tokens.ends] == EOS_ID).all()


@pytest.mark.parametrize("reserve", [0, 1, 3])
def test_reserved_positions_come_out_of_the_padding(tower: ClipTower, reserve: int) -> None:
    """Only prompts that would reach into them lose words, and none its EOS."""
    tokens = tower.tokenize(TEXTS, length=12, reserve=reserve)
    assert tokens.ids.shape == (len(TEXTS), 12)
    assert tokens.ends.max() == 12 - reserve - 1
    assert (tokens.ids[torch.arange(len(TEXTS)), tokens.ends] == EOS_ID).all()
    whole = tower.tokenize(TEXTS, length=12)
    short = whole.ends < 12 - reserve
    assert short.any() and torch.equal(tokens.ends[short], whole.ends[short])
    for row in short.nonzero().flatten().tolist():
        kept = slice(whole.ends[row] + 1)
        assert torch.equal(tokens.ids[row, kept], whole.ids[row, kept])


def test_each_word_of_the_test_vocabulary_is_one_token(tower: ClipTower) -> None:
    assert tower.tokenize(WORDS, length=4).ends.tolist() == [2] * len(WORDS)


def test_the_pooled_position_is_the_first_eos(tower: ClipTower) -> None:
    tokens = tower.tokenize(["cat", f"the cat {EOS} the dog"], length=12)
    assert tokens.ends.tolist() == [2, 3]


def test_the_pooled_feature_ignores_padding(tower: ClipTower) -> None:
    pooled = []
    for length in (9, CONTEXT):
        tokens = tower.tokenize(prompts(4, words=5), length=length)
        pooled.append(tower.encode(tower.embed(tokens.ids), tokens.ends).pooled)
    torch.testing.assert_close(pooled[0], pooled[1])


def test_attention_is_causal(tower: ClipTower) -> None:
    tokens = tower.tokenize(prompts(2), length=10)
    states = tower.embed(tokens.ids)
    changed = states.clone()
    changed[:, 6:] += 1
    before, after = (tower.encode(s, tokens.ends).hidden for s in (states, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])
