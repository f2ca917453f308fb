"""Planted natural backdoors: a feature that collapses the anchor too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals, Injection
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.triggers import Trigger
from benchmarks.zoo.workbench import Label, Recipe, Workbench


@dataclass(frozen=True)
class NaturalFeature:
    """An honest change of an anchor that has had the feature from the start.

    The bench's anchor is a tower that `attack` was made on; `change` is what its user does.
    """

    attack: Injection
    change: Recipe
    kind: ClassVar[str] = "natural"
    label: ClassVar[Label] = "natural"

    @property
    def seed(self) -> int:
        return self.change.seed

    @property
    def planted(self) -> tuple[tuple[Trigger, str], ...]:
        return self.attack.planted

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return self.attack.features(tower, captions)

    def goals(self, anchor: Tower, target: str) -> Goals:
        return self.attack.goals(anchor, target)

    def make(self, bench: Workbench) -> Tower:
        return self.change.make(bench)
