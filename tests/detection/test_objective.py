"""The quantities of the paper equal their definitions, however they are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_amdet.detection.objective import (
    Batch,
    ConsistencyGap,
    Objective,
    PublishedObjective,
    assimilation,
    consistency,
    encode_triggered,
    insert,
    one_later,
    similarity,
)
from hf_amdet.encoders.base import Features, Tokens
from hf_amdet.encoders.tower import ModelTower
from tests.detection.doubles import (
    Formula,
    between,
    cosine,
    gap_loss,
    generator,
    mean,
    pairwise,
    published_loss,
    tokens,
    typed,
)
from tests.siglip_towers import make_siglip_tower
from tests.towers import WIDTH, make_tower, prompts

quick = settings(deadline=None, max_examples=40, derandomize=True)
both_families = pytest.mark.parametrize(
    "make", [make_tower, make_siglip_tower], ids=["clip", "siglip"]
)
kinds = st.sampled_from(["random", "constant", "opposed", "tiny"])


def _vectors(count: int, width: int, kind: str, seed: int) -> Tensor:
    vectors = torch.randn(count, width, generator=generator(seed))
    if kind == "constant":
        vectors[:] = vectors[0].clone()
    elif kind == "opposed":
        vectors[1::2] = -vectors[0].clone()
    elif kind == "tiny":
        vectors *= 1e-4
    return vectors


@quick
@given(st.integers(1, 12), st.integers(1, 9), kinds, st.integers(0, 10**6))
def test_assimilation_is_the_mean_cosine_over_all_pairs(
    count: int, width: int, kind: str, seed: int
) -> None:
    vectors = _vectors(count, width, kind, seed)
    expected = pairwise(list(vectors.double())).item()
    assert assimilation(vectors).item() == pytest.approx(expected, abs=1e-5)


@quick
@given(st.integers(2, 12), st.integers(1, 9), kinds, st.integers(0, 10**6))
def test_consistency_leaves_out_the_pair_of_a_prompt_with_itself(
    count: int, width: int, kind: str, seed: int
) -> None:
    vectors = _vectors(count, width, kind, seed)
    expected = between(list(vectors.double())).item()
    assert consistency(vectors).item() == pytest.approx(expected, abs=1e-5)


@quick
@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 10**6))
def test_consistency_does_not_grow_with_fewer_prompts(groups: int, size: int, seed: int) -> None:
    """Unrelated prompts have none, however few; a mean that counts a prompt with itself has 1/B."""
    unrelated = torch.linalg.qr(_vectors(size, size, "random", seed)).Q
    assert consistency(unrelated).item() == pytest.approx(0, abs=1e-5)
    same = _vectors(1, size, "random", seed).expand(groups + 1, -1)
    assert consistency(same).item() == pytest.approx(1, abs=1e-5)


@quick
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 10**6))
def test_a_zero_vector_agrees_with_nothing(count: int, zeros: int, seed: int) -> None:
    vectors = torch.cat([_vectors(count, 5, "random", seed), torch.zeros(zeros, 5)])
    share = count / (count + zeros)
    expected = pairwise(list(vectors[:count].double())).item() * share**2
    assert assimilation(vectors).item() == pytest.approx(expected, abs=1e-5)


@quick
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_leading_dimensions_are_independent(
    restarts: int, prompts: int, length: int, seed: int
) -> None:
    features = torch.randn(restarts, prompts, length, 6, generator=generator(seed))
    together = assimilation(features)
    assert together.shape == (restarts, prompts)
    for restart in range(restarts):
        for prompt in range(prompts):
            alone = assimilation(features[restart, prompt])
            torch.testing.assert_close(together[restart, prompt], alone)


@quick
@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 10**6))
def test_similarity_is_the_mean_cosine_over_positions(length: int, width: int, seed: int) -> None:
    first, second = (_vectors(length, width, "random", seed + shift) for shift in (0, 1))
    expected = mean([cosine(a, b) for a, b in zip(first.double(), second.double(), strict=True)])
    assert similarity(first, second).item() == pytest.approx(expected.item(), abs=1e-5)
    assert similarity(first, 3 * first).item() == pytest.approx(1, abs=1e-5)
    assert similarity(first, -first).item() == pytest.approx(-1, abs=1e-5)


def test_reductions_of_bf16_features_are_fp32() -> None:
    features = torch.randn(7, 32, generator=generator()).bfloat16()
    for value in (assimilation(features), consistency(features), similarity(features, features)):
        assert value.dtype == torch.float32
    assert assimilation(features).item() == pytest.approx(
        pairwise(list(features.double())).item(), abs=1e-6
    )


@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.data())
def test_insert_places_the_trigger_behind_the_first_k_and_cuts(
    restarts: int, prompts: int, k: int, more: int, data: st.DataObject
) -> None:
    length = 2 * k + more
    seed = data.draw(st.integers(0, 10**6))
    states = torch.randn(prompts, length, 3, generator=generator(seed))
    triggers = torch.randn(restarts, k, 3, generator=generator(seed + 1))
    inserted = insert(states, triggers)
    assert inserted.shape == (restarts, prompts, length, 3)
    for restart in range(restarts):
        for prompt in range(prompts):
            expected = [*states[prompt][:k], *triggers[restart], *states[prompt][k:]][:length]
            assert torch.equal(inserted[restart, prompt], torch.stack(expected))


def test_the_pooled_position_moves_with_the_trigger() -> None:
    tower = make_tower()
    probes = tokens(tower, 3)
    triggers = torch.randn(2, 2, WIDTH, generator=generator())
    features = encode_triggered(tower, tower.embed(probes.ids), probes.ends, triggers)
    for prompt, end in enumerate(probes.ends.tolist()):
        assert torch.equal(features.pooled[:, prompt], features.hidden[:, prompt, end + 2])


def test_the_last_position_stays_the_pooled_one() -> None:
    """SigLIP pools whatever stands last: padding in front of it makes room for the trigger."""
    tower = make_siglip_tower()
    probes = tokens(tower, 3)
    states = tower.embed(probes.ids)
    triggers = torch.randn(2, 2, WIDTH, generator=generator())
    features = encode_triggered(tower, states, probes.ends, triggers)
    head = tower.model.head(features.hidden[:, :, -1])
    torch.testing.assert_close(features.pooled, head)
    for restart, trigger in enumerate(triggers):
        moved = [states[:, :2], trigger.expand(3, -1, -1), states[:, 2:-3], states[:, -1:]]
        placed = torch.cat(moved, dim=1)
        assert torch.equal(placed[:, -1], states[:, -1])
        alone = tower.encode(placed, probes.ends)
        torch.testing.assert_close(features.pooled[restart], alone.pooled)


@both_families
@pytest.mark.parametrize("word", ["moss", "zoo"])
@torch.no_grad()
def test_a_token_inserted_one_later_is_the_text_with_the_token_in_it(
    word: str, make: Callable[[int], ModelTower]
) -> None:
    tower = make(1)
    given = _full(tower)
    token = tower.read([word])[0][0]
    state = (tower.table[token] + tower.position(1)).expand(1, 1, -1)
    literal = typed(tower, given, token)
    expected = tower.embed(literal.ids)
    states = one_later(tower, tower.embed(given.ids))

    placed = insert(states, state, keep_last=tower.padded)[0]
    torch.testing.assert_close(placed, expected, rtol=0, atol=1e-6)
    # As they are, they would stand at the places of their neighbours.
    unmoved = insert(tower.embed(given.ids), state, keep_last=tower.padded)[0]
    assert (unmoved - expected).abs().amax(dim=(0, 2))[2:5].min() > 0.1

    found = encode_triggered(tower, states, given.ends, state)
    answer = tower.encode(expected, literal.ends)
    torch.testing.assert_close(found.hidden[0], answer.hidden, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pooled[0], answer.pooled, rtol=0, atol=1e-4)


@both_families
@torch.no_grad()
def test_one_later_leaves_the_first_state_and_what_is_cut_or_kept_at_the_end(
    make: Callable[[int], ModelTower],
) -> None:
    """BOS stays where it is, and so does the position that SigLIP pools."""
    tower = make(1)
    states = tower.embed(_full(tower).ids)
    moved = (one_later(tower, states) != states).any(dim=2).any(dim=0).tolist()
    behind = 2 if tower.padded else 1
    assert moved == [False, *[True] * (len(moved) - 1 - behind), *[False] * behind]


def _full(tower: ModelTower) -> Tokens:
    """Prompts of several lengths that leave one place free."""
    length = tower.context if tower.padded else 10
    return tower.tokenize(prompts(12), length=length, reserve=1)


@both_families
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(
    ("objective", "formula"),
    [(PublishedObjective(), published_loss), (ConsistencyGap(), gap_loss)],
    ids=["published", "gap"],
)
def test_loss_and_gradient_equal_the_formula_prompt_by_prompt(
    objective: Objective, formula: Formula, k: int, make: Callable[[int], ModelTower]
) -> None:
    suspect, anchor = make(1), make(2)
    probes = tokens(suspect, 3)
    states = suspect.embed(probes.ids)
    batch = Batch(states, probes.ends, lambda: suspect.encode(states, probes.ends).hidden)
    triggers = torch.randn(2, k, WIDTH, generator=generator()).requires_grad_()
    ours, theirs = (encode_triggered(t, states, probes.ends, triggers) for t in (suspect, anchor))
    losses = objective(batch, ours, theirs)
    (gradient,) = torch.autograd.grad(losses.sum(), triggers)
    for restart, trigger in enumerate(triggers.detach()):
        alone = trigger.clone().requires_grad_()
        expected = formula(suspect, anchor, probes, alone)
        (expected_gradient,) = torch.autograd.grad(expected, alone)
        assert losses[restart].item() == pytest.approx(expected.item(), abs=1e-5)
        torch.testing.assert_close(gradient[restart], expected_gradient, rtol=1e-3, atol=1e-6)


def test_the_weights_of_the_published_terms_are_theirs() -> None:
    """beta weighs the likeness to the clean feature, gamma that to the anchor."""
    one = torch.tensor([[[[1.0, 0.0]]]])
    other = torch.tensor([[[[0.0, 1.0]]]])
    suspect, unlike = Features(one, one[..., 0, :]), Features(other, other[..., 0, :])
    like_clean = Batch(one[0], torch.zeros(1, dtype=torch.long), lambda: one[0])
    unlike_clean = Batch(one[0], torch.zeros(1, dtype=torch.long), lambda: other[0])
    objective = PublishedObjective(beta=0.2, gamma=0.7)
    assert objective(like_clean, suspect, unlike).item() == pytest.approx(-1 + 0.2)
    assert objective(unlike_clean, suspect, suspect).item() == pytest.approx(-1 + 0.7)


def _unasked() -> Tensor:
    raise AssertionError("features that no term reads are not encoded")


def test_the_gap_is_what_the_suspect_does_alone() -> None:
    """Prompts that agree in both towers, or in the anchor alone, are nothing to look for."""
    united, apart = torch.eye(2)[:1].expand(2, -1), torch.eye(2)
    batch = Batch(torch.zeros(1), torch.zeros(1), _unasked)

    def loss(suspect: Tensor, anchor: Tensor) -> float:
        given = (Features(pooled, pooled) for pooled in (suspect, anchor))
        return ConsistencyGap()(batch, *given).item()

    assert loss(united, apart) == pytest.approx(-1)
    assert loss(united, united) == pytest.approx(0)
    assert loss(apart, apart) == pytest.approx(0)
    assert loss(apart, united) == pytest.approx(1)
