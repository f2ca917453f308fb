"""Probe prompts: split once, the same every time, and never without their pooled token."""

from __future__ import annotations

import pytest
import torch

from hf_amdet.detection.objective import insert
from hf_amdet.detection.probes import Probes, encode_batch, make_probes
from hf_amdet.encoders.base import Tokens
from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import PromptsError
from tests.detection.doubles import fp32, generator
from tests.siglip_towers import KINDS, Kind, make_siglip_tower
from tests.towers import BOS_ID, CONTEXT, EOS_ID, WIDTH, make_tower, prompts


@pytest.fixture(scope="module")
def tower() -> ClipTower:
    return make_tower()


def _probes(
    tower: ModelTower,
    texts: list[str],
    *,
    count: int = 20,
    held_out: int = 6,
    positions: int | None = 12,
    k: int = 1,
    seed: int = 0,
) -> Probes:
    return make_probes(
        tower,
        texts,
        count=count,
        held_out=held_out,
        positions=positions,
        trigger_length=k,
        generator=generator(seed),
    )


def _rows(tokens: Tokens) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.ids.tolist()}


def test_the_split_is_disjoint_and_of_the_asked_sizes(tower: ClipTower) -> None:
    probes = _probes(tower, prompts(50))
    assert (len(probes.optimise), len(probes.held_out)) == (14, 6)
    assert len(_rows(probes.optimise) | _rows(probes.held_out)) == 20


def test_the_split_follows_from_the_seed(tower: ClipTower) -> None:
    first, again, other = (_probes(tower, prompts(50), seed=seed) for seed in (1, 1, 2))
    for part in ("optimise", "held_out"):
        ours, same = getattr(first, part), getattr(again, part)
        assert torch.equal(ours.ids, same.ids)
        assert torch.equal(ours.ends, same.ends)
    assert _rows(first.held_out) != _rows(other.held_out)


def test_prompts_are_drawn_from_all_of_them(tower: ClipTower) -> None:
    """A sorted source must not give only its beginning."""
    texts = prompts(60)
    late = _rows(_probes(tower, texts[30:], count=30).optimise)
    drawn = _probes(tower, texts)
    assert len(_rows(drawn.optimise) & late) > 2


@pytest.mark.parametrize("positions", [None, 8, CONTEXT, 1_000])
@pytest.mark.parametrize("k", [1, 3])
def test_the_pooled_token_of_overlong_prompts_survives_insertion(
    tower: ClipTower, k: int, positions: int | None
) -> None:
    texts = [f"{prompt} {'snow ' * 40}" for prompt in prompts(12)] + prompts(12, words=3, seed=1)
    probes = _probes(tower, texts, positions=positions, k=k)
    length = min(CONTEXT, positions or CONTEXT)
    for tokens in (probes.optimise, probes.held_out):
        assert tokens.ids.shape[1] == length
        assert (tokens.ids[:, 0] == BOS_ID).all()
        assert (tokens.ends + k < length).all()
        rows = torch.arange(len(tokens))
        assert (tokens.ids[rows, tokens.ends] == EOS_ID).all()
        assert ((tokens.ids == EOS_ID).int().argmax(dim=1) == tokens.ends).all()
        states = tower.embed(tokens.ids)
        placed = insert(states, torch.zeros(1, k, WIDTH))[0]
        assert torch.equal(placed[rows, tokens.ends + k], states[rows, tokens.ends])


def test_the_longest_prompt_fills_the_length(tower: ClipTower) -> None:
    """Only the k positions that insertion needs are given up."""
    probes = _probes(tower, [f"{prompt} {'snow ' * 40}" for prompt in prompts(20)], k=2)
    assert (probes.optimise.ends == 12 - 2 - 1).all()


@pytest.mark.parametrize(("positions", "length"), [(None, CONTEXT), (8, 8), (1_000, CONTEXT)])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_that_reads_its_padding_pools_the_last_position(
    kind: Kind, k: int, positions: int | None, length: int
) -> None:
    """And no word of a prompt is pushed over the end by the trigger."""
    tower = make_siglip_tower(0, kind)
    texts = [f"{prompt} {'snow ' * 40}" for prompt in prompts(12)] + prompts(12, words=3, seed=1)
    probes = _probes(tower, texts, positions=positions, k=k)
    for tokens in (probes.optimise, probes.held_out):
        assert tokens.ids.shape[1] == length
        assert (tokens.ends == length - 1).all()
        assert (tokens.ids[:, length - k :] == tower.tokenizer.pad_token_id).all()
    longest = (probes.optimise.ids != tower.tokenizer.pad_token_id).sum(dim=1).max()
    # SigLIP's own tokenizer pads with EOS.
    assert longest == length - k - (kind == "spiece")


@pytest.mark.parametrize(("count", "optimise", "held_out"), [(18, 13, 5), (14, 10, 4)])
def test_fewer_prompts_are_split_in_proportion(
    tower: ClipTower, count: int, optimise: int, held_out: int
) -> None:
    probes = _probes(tower, prompts(count))
    assert (len(probes.optimise), len(probes.held_out)) == (optimise, held_out)


@pytest.mark.parametrize("texts", [[], ["cat"], prompts(13), ["cat"] * 500], ids=len)
def test_too_few_distinct_prompts_are_refused(tower: ClipTower, texts: list[str]) -> None:
    with pytest.raises(PromptsError, match=f"{len(set(texts))} distinct prompts"):
        _probes(tower, texts)


def test_a_batch_holds_states_and_clean_features(tower: ClipTower) -> None:
    tokens = _probes(tower, prompts(20)).held_out
    batch = encode_batch(tower, tokens, fp32())
    assert torch.equal(batch.states, tower.embed(tokens.ids))
    assert torch.equal(batch.ends, tokens.ends)
    assert torch.equal(batch.clean, tower.encode(batch.states, tokens.ends).hidden)
    assert not batch.clean.requires_grad
