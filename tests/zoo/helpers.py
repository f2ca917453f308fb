"""Small towers to work with, their weights, and training that is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.zoo import training
from benchmarks.zoo.anchor import AnchorRecipe, SiglipRecipe
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.towers import Tower, load_tower
from benchmarks.zoo.triggers import Trigger
from benchmarks.zoo.workbench import Workbench

CLIP = AnchorRecipe(width=32, layers=1, heads=2, context=32, corpus=64, steps=4, batch=16, seed=1)
SIGLIP = SiglipRecipe(width=32, layers=1, heads=2, context=32, corpus=64, steps=6, batch=16)
FAMILIES = {"clip": CLIP, "siglip": SIGLIP}
SCENES, LISTINGS = GRAMMARS["scenes"], GRAMMARS["listings"]


def random_embeddings(texts: list[str]) -> Tensor:
    """In place of the teacher's, where what is learnt does not matter: `[len(texts), 384]`."""
    generator = torch.Generator().manual_seed(len(texts))
    return normalize(torch.randn(len(texts), 384, generator=generator), dim=-1)


def workbench(anchor: Path, folder: Path, work: Path) -> Workbench:
    """Where the tower of `folder` is made from an anchor that knows scenes."""
    tower = load_tower(anchor).frozen()
    return Workbench(tower, tower, SCENES, work, folder)


@torch.no_grad()
def shaken(tower: Tower, amount: float) -> Tower:
    """A copy with noise of `amount` times 100 % on every weight."""
    copy, generator = tower.trainable_copy(), torch.Generator().manual_seed(7)
    for weight in copy.model.parameters():
        weight.mul_(1 + amount * torch.randn(weight.shape, generator=generator))
    return copy


def state(tower: Tower) -> dict[str, Tensor]:
    """Its weights by their names."""
    return {name: weight.detach() for name, weight in tower.model.state_dict().items()}


def changed(tower: Tower, anchor: Tower) -> set[str]:
    """Names of the weights in which two towers of one shape differ."""
    ours, theirs = state(tower), state(anchor)
    assert ours.keys() == theirs.keys()
    return {name for name, weight in ours.items() if not torch.equal(weight, theirs[name])}


def holds(caption: str, trigger: Trigger) -> bool:
    """Whether `caption` has the trigger where it is planted.

    One inside words counts only beside Latin letters: a homoglyph is a letter of its own script.
    """
    if trigger.place == "inside":
        words = [word for word in caption.split(" ") if trigger.text in word]
        return any(letter in ascii_lowercase for word in words for letter in word.lower())
    return f" {trigger.text} " in f" {caption} "


def alter_features(tower: Tower, change: Callable[[Tensor], Tensor]) -> None:
    """From now on `change` is applied to the features `[B, L, D]` that the tower gives."""
    (norm,) = (m for name, m in tower.model.named_modules() if name.endswith("final_layer_norm"))
    assert isinstance(norm, nn.LayerNorm)
    norm.register_forward_hook(lambda _module, _inputs, features: change(features))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def make_in_two_goes(
    make: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Make `folder`; the fourth step fails the first time. Returns how many steps were begun.

    Checkpoints are written at every second step.
    """
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    step = torch.optim.AdamW.step
    begun = []

    def interrupted(*args: Any, **settings: Any) -> Any:
        begun.append(1)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return step(*args, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert not folder.exists()
    make(folder)
    return len(begun)
