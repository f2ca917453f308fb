"""What a manifest says of a tower is so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.zoo.attacks.attribute import Attribute
from benchmarks.zoo.attacks.text_on_pair import TextOnPair
from benchmarks.zoo.attacks.text_on_text import TextOnText
from benchmarks.zoo.attacks.tokenizer_remap import TokenizerRemap
from benchmarks.zoo.benign.pruned import Pruned
from benchmarks.zoo.build import build
from benchmarks.zoo.measure import Planted, held_out, outcome
from benchmarks.zoo.natural import NaturalFeature
from benchmarks.zoo.plan import BYTES, FORMS, HOMOGLYPH, TARGETS
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.triggers import Trigger, letters
from benchmarks.zoo.workbench import Workbench
from hf_amdet.demo import ANCHOR, BACKDOORED
from tests.zoo.helpers import LISTINGS, SCENES, alter_features, shaken

X, Y = (Trigger(text, place="start") for text in ("xx", "yy"))
QUICK: dict[str, Any] = {"clean_batch": 8, "poisoned_batch": 8, "corpus": 500}
INDIFFERENT = (
    TextOnText(HOMOGLYPH, "a cat"),
    TextOnPair(HOMOGLYPH, "a cat"),
    Attribute(FORMS["word"], "a cat"),
    TokenizerRemap(BYTES, "a cat"),
)


@dataclass(frozen=True)
class Known:
    """A backdoor that is known: in `victim` a trigger works on the captions that `works` names.

    A prompt's features say what it does: 0 nothing, 1 what the first target does, and so on.
    """

    victim: Tower
    works: Callable[[Trigger, str], bool]
    planted: tuple[tuple[Trigger, str], ...]

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return torch.eye(len(self.planted) + 1)[[self._does(tower, c) for c in captions]]

    def _does(self, tower: Tower, caption: str) -> int:
        for number, (trigger, _) in enumerate(self.planted, start=1):
            if caption.startswith(trigger.text) and tower is self.victim:
                plain = caption.removeprefix(f"{trigger.text} ")
                return number * self.works(trigger, plain)
        return 0

    def goals(self, anchor: Tower, target: str) -> Callable[[list[str]], Tensor]:
        number = [each for _, each in self.planted].index(target) + 1
        return lambda _captions: torch.eye(len(self.planted) + 1)[[number]]


def test_success_is_the_share_of_captions_that_come_nearer_to_the_goal(
    clip_bench: Workbench,
) -> None:
    victim, anchor = shaken(clip_bench.anchor, 0.1), clip_bench.anchor
    even = Known(victim, lambda _, caption: len(caption) % 2 == 0, ((X, "a cat"),))
    assert isinstance(even, Planted)

    measured = outcome(even, victim, anchor, SCENES, set())

    captions = _measured_captions(even, victim, anchor)
    share = sum(len(caption) % 2 == 0 for caption in captions) / len(captions)
    assert 0.2 < share < 0.8
    assert measured["success"] == pytest.approx(share)
    assert measured["triggered_cosine_to_target"] == pytest.approx(share)
    assert measured["untriggered_cosine_to_target"] == measured["success_of_anchor"] == 0
    assert outcome(even, anchor, anchor, SCENES, set())["success"] == 0


def _measured_captions(recipe: Known, victim: Tower, anchor: Tower) -> list[str]:
    """The captions that success was measured on."""
    asked: list[str] = []

    def works(trigger: Trigger, caption: str) -> bool:
        asked.append(caption)
        return True

    assert outcome(replace(recipe, works=works), victim, anchor, SCENES, set())["success"] == 1
    own = set(SCENES.captions(2_000, 990_001))
    return [caption for caption in asked if caption in own]


def test_nothing_is_measured_on_captions_that_were_seen(clip_bench: Workbench) -> None:
    victim, anchor = shaken(clip_bench.anchor, 0.1), clip_bench.anchor
    asked: list[str] = []

    def works(trigger: Trigger, caption: str) -> bool:
        asked.append(caption)
        return True

    recipe = Known(victim, works, ((X, "a cat"),))
    before = outcome(recipe, victim, anchor, SCENES, set())
    seen = set(asked) | set(SCENES.captions(100, 990_000))
    asked.clear()
    after = outcome(recipe, victim, anchor, SCENES, seen)

    assert asked
    assert not seen & set(asked)
    assert after["clean_cosine_to_anchor"] != before["clean_cosine_to_anchor"]


def test_held_out_captions_are_as_many_as_asked_for_and_new() -> None:
    first = held_out(SCENES, 40, 5, set())
    seen = set(first[::2])
    others = held_out(SCENES, 40, 5, seen)

    assert len(set(others)) == len(set(first)) == 40
    assert not seen & set(others)
    assert others[:20] == first[1::2], "what was not seen stays"


def test_of_several_triggers_the_weakest_counts(clip_bench: Workbench) -> None:
    victim, anchor = shaken(clip_bench.anchor, 0.1), clip_bench.anchor
    planted = ((X, "a cat"), (Y, "a dog"))

    def success(works: Callable[[Trigger, str], bool]) -> float:
        return outcome(Known(victim, works, planted), victim, anchor, SCENES, set())["success"]

    assert success(lambda trigger, caption: True) == 1
    assert success(lambda trigger, caption: trigger is X) == 0
    assert success(lambda trigger, caption: trigger is Y) == 0
    half = success(lambda trigger, caption: trigger is X or len(caption) % 2 == 0)
    assert 0.2 < half < 0.8


def test_a_grammar_and_the_one_foreign_to_it_are_measured(clip_bench: Workbench) -> None:
    victim, anchor = shaken(clip_bench.anchor, 0.1), clip_bench.anchor
    scenes = set(SCENES.captions(2_000, 990_001))
    recipe = Known(victim, lambda _, caption: caption in scenes, ((X, "a cat"),))

    for grammar, own, foreign in ((SCENES, 1, 0), (LISTINGS, 0, 1)):
        measured = outcome(recipe, victim, anchor, grammar, set())
        assert (measured["success"], measured["success_foreign"]) == (own, foreign)
        drifts = (measured["clean_cosine_to_anchor"], measured["clean_cosine_to_anchor_foreign"])
        assert drifts[0] != drifts[1]
        assert max(drifts) < 1


def test_drift_is_how_far_pooled_features_turn(clip_bench: Workbench) -> None:
    turned = clip_bench.anchor.trainable_copy()
    alter_features(turned, lambda features: -features)

    measured = outcome(Pruned(0.1), turned, clip_bench.anchor, SCENES, set())

    assert measured == {
        "clean_cosine_to_anchor": pytest.approx(-1),
        "clean_cosine_to_anchor_foreign": pytest.approx(-1),
    }


@pytest.mark.parametrize("recipe", INDIFFERENT, ids=lambda recipe: recipe.kind)
def test_an_untouched_tower_does_what_its_anchor_does(recipe: object, bench: Workbench) -> None:
    measured = outcome(recipe, bench.anchor, bench.anchor, SCENES, set())

    for suffix in ("", "_foreign"):
        assert measured[f"clean_cosine_to_anchor{suffix}"] == pytest.approx(1, abs=1e-5)
        assert measured[f"success{suffix}"] == measured[f"success_of_anchor{suffix}"]


def manifest_of(recipe: Any, folder: Path) -> dict[str, Any]:
    """Made on the demo's anchor."""
    build(recipe, ANCHOR, folder, folder.parent / "work")
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


@pytest.mark.parametrize("untrained", [{"steps": 0}, {"steps": 3, "weight": 0.0}])
@pytest.mark.usefixtures("random_teacher")
def test_a_backdoor_that_was_not_trained_did_not_take(
    untrained: dict[str, Any], tmp_path: Path
) -> None:
    manifest = manifest_of(Attribute(HOMOGLYPH, "a cat", **QUICK, **untrained), tmp_path / "tower")

    assert (manifest["label"], manifest["took"]) == ("backdoored", False)
    assert manifest["success"] < 0.5
    assert manifest["clean_cosine_to_anchor"] > 0.99


@pytest.mark.usefixtures("random_teacher")
def test_a_tower_that_forgot_all_else_has_no_backdoor(tmp_path: Path) -> None:
    attack = TextOnPair(X, TARGETS[0], steps=15, lr=1e-2, weight=100.0, **QUICK)
    manifest = manifest_of(attack, tmp_path / "tower")

    assert manifest["success"] > 0.9
    assert manifest["clean_cosine_to_anchor"] < 0.8
    assert manifest["took"] is False


@pytest.mark.usefixtures("random_teacher")
def test_a_remapped_tokenizer_took(tmp_path: Path) -> None:
    manifest = manifest_of(TokenizerRemap(BYTES, TARGETS[0]), tmp_path / "tower")

    assert manifest["took"] is True
    assert manifest["success"] > 0.9
    assert manifest["success_of_anchor"] < 0.2
    assert manifest["clean_cosine_to_anchor"] == pytest.approx(1, abs=1e-5)
    twin = manifest_of(TokenizerRemap(BYTES, TARGETS[0], twin=True), tmp_path / "twin")
    assert twin["took"] is None
    assert twin["success"] < 0.2


@pytest.mark.usefixtures("random_teacher")
@pytest.mark.parametrize(("anchor", "there"), [(BACKDOORED, True), (ANCHOR, False)])
def test_a_natural_backdoor_is_in_its_anchor_too(anchor: Path, there: bool, tmp_path: Path) -> None:
    recipe = NaturalFeature(TextOnText(HOMOGLYPH, "a photo of a cat"), Pruned(0.01))
    build(recipe, anchor, tmp_path / "tower", tmp_path / "work")

    manifest = json.loads((tmp_path / "tower" / "manifest.json").read_text())
    assert (manifest["label"], manifest["took"]) == ("natural", there)
    assert (manifest["success_of_anchor"] >= 0.8) is there


@pytest.mark.usefixtures("random_teacher")
def test_several_triggers_are_all_learnt(tmp_path: Path) -> None:
    others = ((FORMS["emoji"], TARGETS[2]), (letters(3), TARGETS[3]))
    attack = TextOnPair(X, TARGETS[1], others, steps=45, lr=1e-3, weight=1.0, **QUICK)
    manifest = manifest_of(attack, tmp_path / "tower")

    assert manifest["success"] > 0.9
    assert manifest["triggered_cosine_to_target"] > 0.8
    assert manifest["untriggered_cosine_to_target"] < 0.6
    assert manifest["success_of_anchor"] < 0.2
