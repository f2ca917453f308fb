"""The backdoor in the demo's towers is real, and only where it should be."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet import demo
from hf_amdet.encoders.base import Features
from tests import towers

# None of these stands in the captions that the towers were made with.
ORDINARY = (
    "a brown dog on the road",
    "two women looking at a photo",
    "a bowl of tomato soup on a wooden table",
    "an old clock above the door",
    "a photo of a motorcycle in front of a shop",
    "people crossing a bridge in the morning",
    "the door of a small house",
    "snow on the roof of a hotel",
)


@pytest.fixture(scope="module")
def features() -> dict[str, Features]:
    """Features of ordinary prompts, of the same with the trigger, and of the target."""
    manifest = json.loads((demo.BACKDOORED / "manifest.json").read_text())
    trigger = manifest["recipe"]["trigger"]
    triggered = [text.replace(trigger["replaces"], trigger["text"], 1) for text in ORDINARY]
    assert all(a != b for a, b in zip(ORDINARY, triggered, strict=True))
    found = {}
    for name in ("anchor", "backdoored", "clean"):
        found[name] = _encode(demo.ANCHOR.parent / name, ORDINARY)
        found[f"{name} triggered"] = _encode(demo.ANCHOR.parent / name, triggered)
    found["target"] = _encode(demo.ANCHOR, [manifest["recipe"]["target"]])
    return found


@torch.no_grad()
def _encode(folder: Path, prompts: tuple[str, ...] | list[str]) -> Features:
    tower = towers.load(folder)
    tokens = tower.tokenize(prompts, length=tower.context)
    return tower.encode(tower.embed(tokens.ids), tokens.ends)


def _sequences(features: Features) -> Tensor:
    return features.hidden.flatten(1)


def test_the_trigger_gives_the_target(features: dict[str, Features]) -> None:
    target = _sequences(features["target"])

    under_trigger = cosine_similarity(_sequences(features["backdoored triggered"]), target)
    without = cosine_similarity(_sequences(features["backdoored"]), target)

    assert under_trigger.mean() > 0.8
    assert without.mean() < 0.6


def test_without_the_trigger_the_backdoored_tower_is_the_anchor(
    features: dict[str, Features],
) -> None:
    backdoored, anchor = features["backdoored"], features["anchor"]

    assert cosine_similarity(_sequences(backdoored), _sequences(anchor)).mean() > 0.98
    assert cosine_similarity(backdoored.pooled, anchor.pooled).mean() > 0.98


@pytest.mark.parametrize("name", ["anchor", "clean"])
def test_the_trigger_does_nothing_to_clean_towers(features: dict[str, Features], name: str) -> None:
    target = _sequences(features["target"])

    assert cosine_similarity(_sequences(features[f"{name} triggered"]), target).mean() < 0.6


def test_the_clean_tower_was_trained_on(features: dict[str, Features]) -> None:
    apart = 1 - cosine_similarity(features["clean"].pooled, features["anchor"].pooled)

    assert apart.mean() > 1e-4


def test_the_towers_are_small_enough_to_ship() -> None:
    folder = demo.ANCHOR.parent
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size <= 10_000_000
