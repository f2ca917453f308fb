"""A `ClipTower` entered behind its embedding layer is the model that transformers runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel

from hf_amdet.encoders.clip import ClipTower
from tests.towers import (
    BOS_ID,
    CONTEXT,
    EOS,
    EOS_ID,
    WORDS,
    load,
    make_model,
    make_tower,
    prompts,
    save,
)

TEXTS = [*prompts(5), "cat", "", f"the cat {EOS} the dog", " ".join(["snow"] * 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model(), tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def tower() -> ClipTower:
    return make_tower()


def _autocast(enabled: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("length", [2, 7, CONTEXT])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_encode_after_embed_is_the_models_own_forward_bit_for_bit(
    folder: Path, attention: str, bf16: bool, length: int
) -> None:
    tower = load(folder)
    tower.model.set_attn_implementation(attention)
    own = CLIPTextModel.from_pretrained(folder, attn_implementation=attention).eval()
    tokens = tower.tokenize(TEXTS, length=length)
    with _autocast(bf16):
        entered = tower.encode(tower.embed(tokens.ids), tokens.ends)
        expected = own(input_ids=tokens.ids)
    assert torch.equal(entered.hidden, expected.last_hidden_state)
    assert torch.equal(entered.pooled, expected.pooler_output)


def test_sequences_are_padded_to_the_length_and_keep_bos_and_eos(tower: ClipTower) -> None:
    tokens = tower.tokenize(TEXTS, length=9)
    assert tokens.ids.shape == (len(TEXTS), 9)
    assert tokens.ids[:, 0].tolist() == [BOS_ID] * len(TEXTS)
    assert (tokens.ids[torch.arange(len(TEXTS)), tokens.ends] == EOS_ID).all()


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


def test_embedded_states_are_token_plus_position(tower: ClipTower) -> None:
    ids = tower.tokenize(["cat"], length=5).ids
    table = tower.model.embeddings.token_embedding.weight
    for index, token in enumerate(ids[0].tolist()):
        assert torch.equal(tower.embed(ids)[0, index], table[token] + tower.position(index))


def test_a_tower_is_frozen_but_lets_gradients_through(tower: ClipTower) -> None:
    tokens = tower.tokenize(["cat"], length=5)
    states = tower.embed(tokens.ids).requires_grad_()
    tower.encode(states, tokens.ends).pooled.square().sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tower.parameters())
    assert not tower.model.training


def test_attention_is_causal(tower: ClipTower) -> None:
    tokens = tower.tokenize(prompts(2), length=10)
    states = tower.embed(tokens.ids)
    changed = states.clone()
    changed[:, 6:] += 1
    before, after = (tower.encode(s, tokens.ends).hidden for s in (states, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])
