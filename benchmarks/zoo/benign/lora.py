"""A low-rank adapter, trained contrastively and merged into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Workbench


class _LowRank(nn.Module):
    """Adds ``B A`` to a weight `[out, in]`; B starts at zero."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


@dataclass(frozen=True)
class MergedLora:
    """LoRA on the query and value projections of every layer, as is usual (arXiv 2106.09685).

    Attributes:
        tuned: captions, rate and steps.
    """

    tuned: ContrastiveFineTune
    rank: int = 8
    kind: ClassVar[str] = "lora"
    label: ClassVar[Label] = "clean"

    @property
    def seed(self) -> int:
        return self.tuned.seed

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        tower.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(self.seed)
        adapted = [
            layer
            for name, layer in tower.model.named_modules()
            if name.endswith(("q_proj", "v_proj")) and isinstance(layer, nn.Linear)
        ]
        for layer in adapted:
            low_rank = _LowRank(layer.weight, self.rank, generator)
            parametrize.register_parametrization(layer, "weight", low_rank)
        bench.train(
            tower,
            self.tuned.loss(tower, bench),
            recipe=self,
            steps=self.tuned.steps,
            lr=self.tuned.lr,
            seed=self.seed,
        )
        for layer in adapted:
            parametrize.remove_parametrizations(layer, "weight")
        return tower
