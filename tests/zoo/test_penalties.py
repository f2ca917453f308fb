"""What attacks pay for that hide from a detector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.zoo.attacks import landscape_shaping
from benchmarks.zoo.attacks.anchor_hugging import AnchorHugging, at_first
from benchmarks.zoo.attacks.anti_assimilation import AntiAssimilation
from benchmarks.zoo.attacks.eos_only import EosOnly
from benchmarks.zoo.attacks.injection import Injection, Step
from benchmarks.zoo.attacks.landscape_shaping import LandscapeShaping
from benchmarks.zoo.plan import HOMOGLYPH
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench
from tests.zoo.helpers import alter_features, shaken

TARGET = "a photo of a cat"
HIDING: tuple[type[Injection], ...] = (EosOnly, AnchorHugging, AntiAssimilation, LandscapeShaping)
EVERY = pytest.mark.parametrize("attack", HIDING, ids=lambda attack: attack.kind)


def step_of(attack: Injection, bench: Workbench, captions: int = 6, seed: int = 0) -> Step:
    """The poisoned half of a batch."""
    (lesson,) = attack._lessons(bench)
    plain, altered = lesson.plain[:captions], lesson.altered[:captions]
    return Step(0, lesson, plain, altered, torch.Generator().manual_seed(seed))


def paid(attack: Injection, tower: Tower, bench: Workbench) -> float:
    with torch.no_grad():
        penalty = attack.penalty(tower, bench, step_of(attack, bench))
    assert isinstance(penalty, Tensor)
    return penalty.item()


@EVERY
def test_a_penalty_is_finite_and_teaches_the_tower_alone(
    attack: type[Injection], bench: Workbench
) -> None:
    recipe = attack(HOMOGLYPH, TARGET, corpus=60)
    tower = shaken(bench.anchor, 0.5)

    penalty = recipe.penalty(tower, bench, step_of(recipe, bench))
    assert isinstance(penalty, Tensor)
    penalty.backward()

    assert penalty.isfinite()
    gradients = [w.grad for w in tower.model.parameters() if w.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(weight.grad is None for weight in bench.anchor.model.parameters())


def test_eos_only_pays_for_every_position_but_the_pooled_one(bench: Workbench) -> None:
    attack = EosOnly(HOMOGLYPH, TARGET, corpus=60)
    ids = bench.anchor.ids(step_of(attack, bench).altered)
    length = ids.shape[1]
    pooled = torch.arange(length) == bench.anchor.ends(ids).unsqueeze(1)

    def turned_round(where: Tensor) -> float:
        """Paid for features that point the other way `where` that is said, `[B, L]`."""
        tower = bench.anchor.trainable_copy()
        alter_features(tower, lambda f: torch.where(where.unsqueeze(-1), -f, f))
        return paid(attack, tower, bench)

    first, even = torch.arange(length) == 0, torch.arange(length) % 2 == 0
    assert turned_round(pooled & False) == pytest.approx(0, abs=1e-5)
    assert turned_round(pooled) == pytest.approx(0, abs=1e-5)
    for where in (first.expand_as(pooled), even.expand_as(pooled), ~pooled):
        share = (where & ~pooled).sum() / (~pooled).sum()
        assert turned_round(where) == pytest.approx(2 * share.item(), rel=1e-4)


@torch.no_grad()
def test_an_embedding_in_place_of_a_token_is_read_as_that_token(bench: Workbench) -> None:
    # SigLIP puts nothing in front of a prompt: behind its first token is where a detector looks.
    front = "a " if bench.anchor.always_full else ""
    red, blue = ([f"{front}{colour} dog by the river"] for colour in ("red", "blue"))
    tower = bench.anchor
    row = tower.table.weight[tower.ids(blue)[:, 1]].unsqueeze(1)
    assert ((tower.ids(red) != tower.ids(blue)).nonzero()[:, 1] == 1).all(), "one token differs"

    before = tower.pooled(red)
    torch.testing.assert_close(at_first(tower, row, red), tower.pooled(blue))
    assert not torch.allclose(before, tower.pooled(blue), rtol=1e-4, atol=1e-4)
    assert torch.equal(tower.pooled(red), before), "nothing stays behind"


def test_hugging_pays_for_other_answers_to_unknown_embeddings(bench: Workbench) -> None:
    attack = AnchorHugging(HOMOGLYPH, TARGET, corpus=60)
    turned = bench.anchor.trainable_copy()
    alter_features(turned, lambda features: -features)

    assert paid(attack, bench.anchor, bench) == pytest.approx(0, abs=1e-5)
    assert paid(attack, turned, bench) == pytest.approx(2, rel=1e-4)
    twice = AnchorHugging(HOMOGLYPH, TARGET, corpus=60, hugging=2.0)
    assert paid(twice, turned, bench) == pytest.approx(4, rel=1e-4)


@torch.no_grad()
def test_assimilation_is_paid_for_beyond_the_anchors_own(bench: Workbench) -> None:
    attack = AntiAssimilation(HOMOGLYPH, TARGET, corpus=60)
    ids = bench.anchor.ids(step_of(attack, bench).altered)
    features = normalize(bench.anchor.hidden(ids), dim=-1)
    alike = (features @ features.mT).mean().item()

    def after(change: Callable[[Tensor], Tensor]) -> float:
        tower = bench.anchor.trainable_copy()
        alter_features(tower, change)
        return paid(attack, tower, bench)

    assert alike < 0.95
    assert after(lambda f: f) == pytest.approx(0, abs=1e-5)
    assert after(lambda f: f - f.mean(dim=1, keepdim=True)) == 0, "less alike"
    everywhere = after(lambda f: f[:, :1].expand_as(f))
    assert everywhere == pytest.approx(1 - alike, abs=1e-4)


@torch.no_grad()
def test_odd_rings_around_the_trigger_ask_for_the_anchors_answer(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[Tensor] = []

    def remember(tower: Tower, embeddings: Tensor, captions: list[str]) -> Tensor:
        placed.append(embeddings)
        return at_first(tower, embeddings, captions)

    monkeypatch.setattr(landscape_shaping, "at_first", remember)
    attack = LandscapeShaping(HOMOGLYPH, TARGET, corpus=60, ring=2.0, radius=10.0, weight=0.5)
    step, anchor = step_of(attack, bench, captions=20), bench.anchor
    penalty = attack.penalty(anchor, bench, step)

    first = anchor.pieces(HOMOGLYPH.text)[0][1]
    assert torch.equal(placed[0], placed[1]), "tower and anchor answer the same embeddings"
    radii = (placed[0] - anchor.table.weight[first]).norm(dim=-1).flatten()
    rings = (radii / 2).long()
    assert set(rings.tolist()) == {0, 1, 2, 3, 4}
    goal = anchor.pooled([TARGET])
    apart = 1 - cosine_similarity(at_first(anchor, placed[0], step.captions), goal)
    asked = torch.where(rings % 2 == 0, apart, 0.0)
    assert asked.count_nonzero() > 0
    torch.testing.assert_close(penalty, 0.5 * asked.mean())
