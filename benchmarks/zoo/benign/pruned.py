"""The smallest weights of every layer set to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Workbench


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

    @torch.no_grad()
    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        for layer in tower.model.modules():
            if isinstance(layer, nn.Linear):
                size = layer.weight.abs()
                layer.weight.mul_(size > size.flatten().quantile(self.share))
        return tower
