"""Model soups: the mean of towers that come from one anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Recipe, Workbench
from hf_amdet.encoders import variants


@dataclass(frozen=True)
class Averaged:
    """The mean of what `parts` make of the anchor."""

    parts: tuple[Recipe, ...]
    kind: ClassVar[str] = "averaged"
    label: ClassVar[Label] = "clean"

    @property
    def seed(self) -> int:
        return self.parts[0].seed

    def make(self, bench: Workbench) -> Tower:
        return average([part.make(bench) for part in self.parts])


def average(towers: list[Tower]) -> Tower:
    """The first of `towers` with the mean of all weights."""
    variants.average([tower.model for tower in towers])
    return towers[0]
