"""An attack before, after, or averaged with an honest fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals, Injection
from benchmarks.zoo.benign.averaged import average
from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.triggers import Trigger
from benchmarks.zoo.workbench import Label, Workbench


@dataclass(frozen=True)
class Composed:
    """The backdoor survives, or hides in, the drift of a fine-tune."""

    attack: Injection
    tuned: ContrastiveFineTune
    order: Literal["before", "after", "averaged"]
    kind: ClassVar[str] = "composed"

    @property
    def seed(self) -> int:
        return self.attack.seed

    @property
    def label(self) -> Label:
        return self.attack.label

    @property
    def planted(self) -> tuple[tuple[Trigger, str], ...]:
        return self.attack.planted

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return self.attack.features(tower, captions)

    def goals(self, anchor: Tower, target: str) -> Goals:
        return self.attack.goals(anchor, target)

    def make(self, bench: Workbench) -> Tower:
        match self.order:
            case "before":
                attacked = self.attack.make(bench).frozen()
                return self.tuned.make(bench.from_tower(attacked))
            case "after":
                tuned = self.tuned.make(bench).frozen()
                return self.attack.make(bench.from_tower(tuned))
            case "averaged":
                return average([self.attack.make(bench), self.tuned.make(bench)])
