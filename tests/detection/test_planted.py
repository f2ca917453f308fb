"""A backdoor that was planted is found; a clean fine-tune trained alike is not accused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.detection.config import DEFAULT
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.objective import encode_triggered
from hf_amdet.encoders.tower import ModelTower
from tests.detection.doubles import fp32
from tests.detection.planted import Zoo, encode, ordinary, plant, triggered
from tests.siglip_towers import make_siglip_tower
from tests.towers import make_tower

PROFILE = replace(
    DEFAULT,
    prompts=160,
    held_out=48,
    positions=14,
    inversions=tuple(replace(inversion, steps=60) for inversion in DEFAULT.inversions),
    landscape=replace(DEFAULT.landscape, grid=5, prompts=1, directions=1),
)
UNSEEN = ordinary(40, seed=77)
KEPT = {"clip": 0.95, "siglip": 0.9}
"""How much of their ordinary features backdoored towers keep: padding makes SigLIP harder."""


@pytest.fixture(scope="module", params=["clip", "siglip"])
def zoo(request: pytest.FixtureRequest) -> Zoo:
    return plant(make_tower(0) if request.param == "clip" else make_siglip_tower(0, "json"))


@pytest.fixture(scope="module")
def found(zoo: Zoo) -> dict[str, Detection]:
    towers = {"pooled": zoo.pooled, "sequence": zoo.sequence, "clean": zoo.clean}
    return {name: _detect(tower, zoo) for name, tower in towers.items()}


def _detect(tower: ModelTower, zoo: Zoo, seed: int = 0) -> Detection:
    return detect(tower, zoo.anchor, ordinary(300, seed=3), PROFILE, seed=seed, runtime=fp32())


def _gap(detection: Detection) -> float:
    return max(c.statistics["consistency_gap"].value for c in detection.candidates)


def _target_under(tower: ModelTower, trigger: Tensor) -> Tensor:
    """Mean pooled feature `[P]` of unseen prompts under the recovered trigger."""
    tokens = tower.tokenize(UNSEEN, length=tower.context if tower.padded else 14, reserve=1)
    states = tower.embed(tokens.ids)
    return encode_triggered(tower, states, tokens.ends, trigger.unsqueeze(0)).pooled[0].mean(dim=0)


@torch.no_grad()
def test_the_zoo_is_what_it_claims_to_be(zoo: Zoo) -> None:
    for tower, trained in ((zoo.pooled, True), (zoo.sequence, True), (zoo.clean, False)):
        own = cosine_similarity(encode(tower, UNSEEN).pooled, encode(zoo.anchor, UNSEEN).pooled)
        assert own.mean() > KEPT[zoo.anchor.family]
        answer = encode(tower, triggered(UNSEEN)).pooled
        assert (cosine_similarity(answer, zoo.target, dim=-1).mean() > 0.95) == trained


@pytest.mark.parametrize("name", ["pooled", "sequence"])
def test_a_planted_backdoor_is_flagged(found: dict[str, Detection], name: str) -> None:
    assert found[name].conclusion.answer == "flagged"
    assert _gap(found[name]) > _gap(found["clean"]) + 0.15


@pytest.mark.parametrize("name", ["pooled", "sequence"])
def test_the_recovered_trigger_leads_to_the_planted_target(
    zoo: Zoo, found: dict[str, Detection], name: str
) -> None:
    reached = _target_under(getattr(zoo, name), found[name].decisive.trigger)
    assert cosine_similarity(reached, zoo.target, dim=0) > 0.8
    elsewhere = _target_under(zoo.anchor, found[name].decisive.trigger)
    assert cosine_similarity(elsewhere, zoo.target, dim=0) < 0.8


@pytest.mark.parametrize("zoo", ["clip"], indirect=True)
def test_the_published_objective_sees_a_backdoor_in_all_positions(
    found: dict[str, Detection],
) -> None:
    """And not one in the pooled position alone: there is nothing to assimilate.

    Where attention is causal, that is: in a SigLIP tower nothing keeps it in its position.
    """

    def likeness_to_anchor(name: str) -> float:
        candidates = found[name].candidates
        published = [c.statistics for c in candidates if c.objective == "published"]
        return min(statistics["anchor_similarity"].value for statistics in published)

    assert likeness_to_anchor("sequence") < 0.7
    assert likeness_to_anchor("pooled") > 0.8
    assert likeness_to_anchor("clean") > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_fine_tune_is_not_accused(zoo: Zoo, seed: int) -> None:
    detection = _detect(zoo.clean, zoo, seed)
    assert detection.conclusion.answer in ("no_evidence", "natural")
    assert _gap(detection) < 0.1
    for candidate in detection.candidates:
        assert candidate.statistics["divergence_ratio"].value < 4


def test_the_anchor_itself_is_not_accused(zoo: Zoo) -> None:
    detection = _detect(zoo.anchor, zoo)
    assert detection.conclusion.answer in ("no_evidence", "natural")
    assert _gap(detection) == pytest.approx(0, abs=1e-6)
