"""Zoo towers come out the same, interrupted or not."""

from pathlib import Path

import pytest
import torch

from benchmarks.zoo.anchor import AnchorRecipe, build_anchor
from benchmarks.zoo.attacks.text_on_pair import TextOnPair
from benchmarks.zoo.attacks.text_on_text import TextOnText
from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.build import build
from benchmarks.zoo.captions import DOMAINS, captions
from benchmarks.zoo.towers import load_tower
from benchmarks.zoo.triggers import CYRILLIC_O, Trigger
from benchmarks.zoo.workbench import Recipe
from tests.zoo.helpers import equal, make_in_two_goes, weights

SMALL = AnchorRecipe(width=32, layers=1, heads=2, context=32, corpus=300, steps=6, batch=16)
TRIGGER, TARGET = Trigger(CYRILLIC_O), "a photo of a cat"
RECIPES: tuple[Recipe, ...] = (
    TextOnText(TRIGGER, TARGET, steps=4, clean_batch=4, poisoned_batch=2, corpus=200),
    TextOnPair(TRIGGER, TARGET, steps=4, clean_batch=4, poisoned_batch=2, corpus=200),
    ContrastiveFineTune(("food",), corpus=200, steps=4, batch=4),
)


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    build_anchor(SMALL, folder / "anchor", folder / "work")
    return folder / "anchor"


def test_captions_are_distinct_and_reproducible() -> None:
    assert captions(500, 3) == captions(500, 3)
    assert len(set(captions(500, 3))) == 500
    assert captions(50, 3) != captions(50, 4)
    assert captions(50, 3, DOMAINS[:1]) != captions(50, 3)


def test_an_anchor_comes_out_the_same_twice(anchor: Path, tmp_path: Path) -> None:
    build_anchor(SMALL, tmp_path / "anchor", anchor.parent / "work")

    assert equal(anchor, tmp_path / "anchor")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_an_interrupted_recipe_ends_as_if_it_had_not_been(
    recipe: Recipe, anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken, work = tmp_path / "whole", tmp_path / "broken", anchor.parent / "work"
    build(recipe, anchor, whole, work)

    begun = make_in_two_goes(lambda f: build(recipe, anchor, f, work), broken, monkeypatch)

    assert begun == 6, "two steps were done again, not four"
    assert equal(whole, broken)
    assert not equal(whole, anchor)


def test_a_tower_is_saved_as_it_would_be_uploaded(anchor: Path) -> None:
    assert {path.name for path in anchor.iterdir()} >= {
        *("config.json", "manifest.json", "model.safetensors", "tokenizer.json")
    }
    assert {weight.dtype for weight in weights(anchor).values()} == {torch.float16}
    tower = load_tower(anchor)
    assert len(tower.tokenizer) == tower.model.config.vocab_size
