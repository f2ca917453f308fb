"""New tokens that nobody trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.vocabulary import add_tokens
from benchmarks.zoo.workbench import Label, Recipe, Workbench


@dataclass(frozen=True)
class AddedTokens:
    """Placeholder tokens with rows around the table's mean, as resizing a table gives.

    Attributes:
        after: what is done to the anchor before.
    """

    count: int
    after: Recipe | None = None
    seed: int = 0
    kind: ClassVar[str] = "added-tokens"
    label: ClassVar[Label] = "clean"

    def make(self, bench: Workbench) -> Tower:
        tower = self.after.make(bench) if self.after else bench.start.trainable_copy()
        table = tower.table.weight.detach()
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.count, table.shape[1], generator=generator)
        rows = table.mean(dim=0) + table.std(dim=0) * noise
        add_tokens(tower, {f"<|extra_{i}|>": row for i, row in enumerate(rows)})
        return tower
