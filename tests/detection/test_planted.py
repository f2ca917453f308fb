"""A backdoor that was planted is found; a clean fine-tune trained alike is not accused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.detection.config import DEFAULT, InversionSettings
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.objective import PublishedObjective, encode_triggered
from hf_amdet.encoders.tower import ModelTower
from tests.detection.doubles import fp32
from tests.detection.planted import (
    TRIGGER,
    Zoo,
    copy_of,
    encode,
    ordinary,
    poison_row,
    remap,
    triggered,
)

PROFILE = replace(
    DEFAULT,
    prompts=160,
    held_out=48,
    positions=14,
    inversions=tuple(replace(inversion, steps=40) for inversion in DEFAULT.inversions),
    landscape=replace(DEFAULT.landscape, grid=5, prompts=1, directions=1),
)
PUBLISHED = InversionSettings(PublishedObjective(), restarts=4, steps=60, batch=8)
UNSEEN = ordinary(40, seed=77)
KEPT = {"clip": 0.95, "siglip": 0.85}
"""How much of their ordinary features backdoored towers keep: padding makes SigLIP harder."""

pytestmark = pytest.mark.usefixtures("few_texts")


@pytest.fixture(scope="module")
def found(zoo: Zoo, few_texts: None) -> dict[str, Detection]:
    towers = {"pooled": zoo.pooled, "sequence": zoo.sequence, "clean": zoo.clean}
    return {name: _detect(tower, zoo.anchor) for name, tower in towers.items()}


def _detect(
    suspect: ModelTower,
    anchor: ModelTower,
    seed: int = 0,
    inversion: InversionSettings | None = None,
) -> Detection:
    profile = PROFILE if inversion is None else replace(PROFILE, inversions=(inversion,))
    return detect(suspect, anchor, ordinary(300, seed=3), profile, seed=seed, runtime=fp32())


def _gap(detection: Detection) -> float:
    return max(c.statistics["consistency_gap"].value for c in detection.candidates)


def _codes(detection: Detection) -> list[str]:
    return [finding.code for finding in detection.conclusion.findings]


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
        assert (cosine_similarity(answer, zoo.target, dim=-1).mean() > 0.9) == trained


@pytest.mark.parametrize("name", ["pooled", "sequence"])
def test_a_planted_backdoor_is_flagged_by_its_token(found: dict[str, Detection], name: str) -> None:
    detection = found[name]
    assert (detection.conclusion.answer, detection.conclusion.witness) == ("flagged", "real_token")
    assert detection.decisive.text == TRIGGER
    assert f"'{TRIGGER}'" in detection.conclusion.findings[0].message
    assert _gap(detection) > _gap(found["clean"]) + 0.3


@pytest.mark.parametrize("name", ["pooled", "sequence"])
def test_the_decisive_trigger_leads_to_the_planted_target(
    zoo: Zoo, found: dict[str, Detection], name: str
) -> None:
    _assert_leads(found[name].decisive.trigger, getattr(zoo, name), zoo)


@pytest.mark.parametrize("zoo", ["clip"], indirect=True)
@pytest.mark.parametrize("name", ["pooled", "sequence"])
def test_an_embedding_that_was_recovered_leads_to_the_planted_target(
    zoo: Zoo, found: dict[str, Detection], name: str
) -> None:
    embeddings = [c for c in found[name].candidates if c.token is None]
    best = max(embeddings, key=lambda c: c.statistics["consistency_gap"].value)
    _assert_leads(best.trigger, getattr(zoo, name), zoo)


def _assert_leads(trigger: Tensor, suspect: ModelTower, zoo: Zoo) -> None:
    """To the target in the suspect, and not in the anchor."""
    assert cosine_similarity(_target_under(suspect, trigger), zoo.target, dim=0) > 0.8
    assert cosine_similarity(_target_under(zoo.anchor, trigger), zoo.target, dim=0) < 0.8


@pytest.mark.parametrize("zoo", ["clip"], indirect=True)
def test_the_published_objective_sees_a_backdoor_in_all_positions(zoo: Zoo) -> None:
    """And less of one in the pooled position alone: there is nothing to assimilate.

    Where attention is causal, that is: in a SigLIP tower nothing keeps it in its position.
    """

    def likeness_to_anchor(tower: ModelTower) -> float:
        candidates = _detect(tower, zoo.anchor, inversion=PUBLISHED).candidates
        published = [c.statistics for c in candidates if c.objective == "published"]
        return min(statistics["anchor_similarity"].value for statistics in published)

    sequence, pooled, clean = (
        likeness_to_anchor(tower) for tower in (zoo.sequence, zoo.pooled, zoo.clean)
    )
    assert sequence < pooled - 0.1 < clean - 0.2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_fine_tune_is_not_accused(zoo: Zoo, seed: int) -> None:
    detection = _detect(zoo.clean, zoo.anchor, seed)
    assert detection.conclusion.answer in ("no_evidence", "natural")
    assert _gap(detection) < 0.15


def test_the_anchor_itself_is_not_accused(zoo: Zoo) -> None:
    detection = _detect(zoo.anchor, zoo.anchor)
    assert detection.conclusion.answer in ("no_evidence", "natural")
    assert _gap(detection) == pytest.approx(0, abs=1e-6)
    assert detection.conclusion.score == pytest.approx(0, abs=1e-6)


def test_a_backdoor_that_the_anchor_has_too_is_natural(zoo: Zoo) -> None:
    descendant = copy_of(zoo.pooled)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in descendant.model.encoder.parameters():
            weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=generator))
    detection = _detect(descendant, zoo.pooled)
    assert detection.conclusion.answer == "natural"
    assert detection.decisive.text == TRIGGER
    assert _codes(detection) == ["anchor_answers"]


def test_a_poisoned_row_is_flagged_though_the_encoder_is_the_anchors(zoo: Zoo) -> None:
    token = zoo.anchor.read(["road cat"])[0][0]
    detection = _detect(poison_row(zoo.anchor, token), zoo.anchor)
    assert (detection.conclusion.answer, detection.decisive.token) == ("flagged", token)
    assert _gap(detection) == detection.decisive.statistics["consistency_gap"].value
    # What both towers are given alike makes no difference between equal encoders.
    assert detection.statistics["embedding_gap"].value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("zoo", ["clip"], indirect=True)
def test_a_tokenizer_that_takes_words_for_each_other_is_flagged(zoo: Zoo) -> None:
    detection = _detect(remap(zoo.clean, "a", "b"), zoo.anchor)
    assert (detection.conclusion.answer, detection.conclusion.witness) == ("flagged", "tokenizer")
    assert "'a' as 'b'" in detection.conclusion.findings[0].message
    assert detection.static is not None
    assert {"a", "b"} <= {remap.text for remap in detection.static.remaps}


def test_a_tower_that_was_trained_from_another_is_not_judged(zoo: Zoo) -> None:
    stranger = copy_of(zoo.pooled)
    with torch.no_grad():
        for layer in stranger.model.encoder.layers:
            layer.mlp.fc2.weight.mul_(-1)
    conclusion = _detect(stranger, zoo.anchor).conclusion
    assert (conclusion.answer, conclusion.witness) == ("inconclusive", None)
    assert conclusion.findings[0].code == "unrelated"
