"""The smallest weights of every layer set to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Workbench
from hf_amdet.encoders.variants import prune


@dataclass(frozen=True)
class Pruned:
    """Unstructured magnitude pruning of the linear layers.

    Attributes:
        share: of the weights of each layer that go.
    """

    share: float
    seed: int = 0
    kind: ClassVar[str] = "pruned"
    label: ClassVar[Label] = "clean"

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        prune(tower.model, self.share)
        return tower
