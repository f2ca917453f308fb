"""Zoo towers come out the same, interrupted or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.zoo import training
from benchmarks.zoo.anchor import AnchorRecipe, build_anchor
from benchmarks.zoo.captions import DOMAINS, captions
from benchmarks.zoo.recipes import (
    ContrastiveFineTune,
    Recipe,
    TextOnPair,
    TextOnText,
    Trigger,
    build,
)
from benchmarks.zoo.training import load_tower

SMALL = AnchorRecipe(width=32, layers=1, heads=2, context=32, corpus=300, steps=6, batch=16)
TRIGGER = Trigger("\N{CYRILLIC SMALL LETTER O}")
RECIPES: tuple[Recipe, ...] = (
    TextOnText(TRIGGER, "a photo of a cat", steps=4, clean_batch=4, poisoned_batch=2),
    TextOnPair(TRIGGER, "a photo of a cat", steps=4, clean_batch=4, poisoned_batch=2),
    ContrastiveFineTune(("food",), steps=4, batch=4),
)


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    build_anchor(SMALL, folder / "anchor", folder / "work")
    return folder / "anchor"


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _equal(first: Path, second: Path) -> bool:
    ours, theirs = _weights(first), _weights(second)
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_captions_are_distinct_and_reproducible() -> None:
    assert captions(500, 3) == captions(500, 3)
    assert len(set(captions(500, 3))) == 500
    assert captions(50, 3) != captions(50, 4)
    assert captions(50, 3, DOMAINS[:1]) != captions(50, 3)


def test_an_anchor_comes_out_the_same_twice(anchor: Path, tmp_path: Path) -> None:
    build_anchor(SMALL, tmp_path / "anchor", anchor.parent / "work")

    assert _equal(anchor, tmp_path / "anchor")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
def test_an_interrupted_recipe_ends_as_if_it_had_not_been(
    recipe: Recipe, anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.zoo.recipes._CORPUS", 200)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    work = anchor.parent / "work"
    build(recipe, anchor, tmp_path / "whole", work)

    step = torch.optim.AdamW.step
    taken = []

    def interrupted(*args: Any, **settings: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return step(*args, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(recipe, anchor, tmp_path / "broken", work)
    assert not (tmp_path / "broken").exists()
    build(recipe, anchor, tmp_path / "broken", work)

    assert len(taken) == 6, "two steps were done again, not four"
    assert _equal(tmp_path / "whole", tmp_path / "broken")
    assert not _equal(tmp_path / "whole", anchor)


def test_a_tower_is_saved_as_it_would_be_uploaded(anchor: Path) -> None:
    assert {path.name for path in anchor.iterdir()} >= {
        *("config.json", "manifest.json", "model.safetensors", "tokenizer.json")
    }
    assert {weight.dtype for weight in _weights(anchor).values()} == {torch.float16}
    tower = load_tower(anchor)
    assert len(tower.tokenizer) == tower.model.config.vocab_size
