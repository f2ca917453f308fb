"""Clean variants: as far from their anchor as was asked for, and the same whenever made."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hf_amdet.encoders import variants
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.encoders.variants import KINDS, LEAST, MOST, Kind, drift, make_variant, vary
from tests.siglip_towers import make_siglip_tower
from tests.towers import make_tower, prompts

PROMPTS = prompts(1_000, words=5)
FAMILIES: dict[str, Callable[[], ModelTower]] = {"clip": make_tower, "siglip": make_siglip_tower}


@pytest.fixture(scope="module", params=FAMILIES)
def anchor(request: pytest.FixtureRequest) -> ModelTower:
    return FAMILIES[request.param]()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer prompts, which do for towers this small."""
    monkeypatch.setattr(variants, "_MEASURED", 32)
    monkeypatch.setattr(variants, "_BATCH", 16)


def made(anchor: ModelTower, kind: Kind, strength: float, seed: int = 3) -> ModelTower:
    return vary(anchor, PROMPTS, kind, strength, torch.Generator().manual_seed(seed))


def weights(tower: ModelTower) -> dict[str, Tensor]:
    return dict(tower.model.state_dict())


def equal(first: ModelTower, second: ModelTower) -> bool:
    ours, theirs = weights(first), weights(second)
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_is_more_drift_and_about_what_was_asked_for(
    kind: Kind, anchor: ModelTower
) -> None:
    # Prompts on which nothing was searched for or taught.
    unseen = prompts(32, words=5, seed=9)
    near, far = (drift(made(anchor, kind, strength), anchor, unseen) for strength in (0.01, 0.1))

    assert 0.01 / 4 < near < 0.01 * 4
    assert 0.1 / 4 < far < 0.1 * 4
    assert far > 2 * near


def test_kinds_take_turns_and_no_two_variants_are_alike() -> None:
    anchor = make_tower()
    before = {name: weight.clone() for name, weight in weights(anchor).items()}
    made = [make_variant(anchor, PROMPTS, seed) for seed in range(len(KINDS))]

    assert tuple(variant.kind for variant in made) == KINDS
    for number, variant in enumerate(made):
        assert not any(equal(variant.tower, other.tower) for other in made[:number])
        assert LEAST <= variant.strength <= MOST
        assert not variant.tower.model.training
        assert not any(weight.requires_grad for weight in variant.tower.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in weights(anchor).items())


@pytest.mark.parametrize("seed", range(len(KINDS)), ids=KINDS)
def test_a_seed_gives_one_variant_whatever_was_drawn_before(seed: int) -> None:
    anchor = make_tower()
    first = make_variant(anchor, PROMPTS, seed)
    torch.randn(5)
    second = make_variant(anchor, PROMPTS, seed)

    assert equal(first.tower, second.tower)
    assert first.strength == second.strength


def test_strengths_spread_over_orders_of_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = make_tower()
    monkeypatch.setattr(variants, "_SEARCH", 1)
    # Quantised variants are the ones that take least time.
    seeds = range(KINDS.index("quantised"), 20 * len(KINDS), len(KINDS))
    made = [make_variant(anchor, PROMPTS, seed) for seed in seeds]
    drawn = sorted(variant.strength for variant in made)

    assert {variant.kind for variant in made} == {"quantised"}
    assert drawn[2] < 0.003
    assert drawn[-3] > 0.04
    assert 0.002 < drawn[len(drawn) // 2] < 0.06


def test_a_low_rank_change_has_a_low_rank_and_its_amount() -> None:
    layer = nn.Linear(20, 12)
    before = layer.weight.detach().clone()
    variants.add_low_rank(layer, 0.3, torch.Generator().manual_seed(0))

    change = (layer.weight - before).double()
    spectrum = torch.linalg.svdvals(change)
    assert spectrum[3] > 1e-3
    assert spectrum[4] < 1e-5
    assert (change.norm() / before.norm()).item() == pytest.approx(0.3, rel=1e-4)


def test_a_variant_that_is_moved_moves_prompts_apart_from_each_other() -> None:
    """Not by one shift for all: then no two prompts would change what they have in common."""
    anchor = make_tower()
    tower = made(anchor, "moved", 0.1)
    tokens = anchor.tokenize(PROMPTS[:64], length=12)
    ours, theirs = (t.encode(t.embed(tokens.ids), tokens.ends).pooled for t in (tower, anchor))

    shifts = ours - theirs
    assert shifts.std(dim=0).norm() > 0.5 * shifts.mean(dim=0).norm()
