"""A tower of the anchor's shape and tokenizer, trained from another start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Workbench


@dataclass(frozen=True)
class OtherSeed:
    """Nothing of the anchor's weights is left.

    Attributes:
        trained: captions, rate and steps.
    """

    trained: ContrastiveFineTune
    kind: ClassVar[str] = "other-seed"
    label: ClassVar[Label] = "clean"

    @property
    def seed(self) -> int:
        return self.trained.seed

    def make(self, bench: Workbench) -> Tower:
        anchor = bench.anchor
        blank = type(anchor).blank(anchor.model.config, anchor.tokenizer, self.seed + 100)
        return self.trained.make(bench.from_tower(blank))
