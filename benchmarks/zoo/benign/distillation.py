"""A tower shaken and taught by its own anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Workbench, draw
from hf_amdet.encoders.variants import shake


@dataclass(frozen=True)
class SelfDistillation:
    """Weights with noise on them learn the anchor's pooled features back.

    Attributes:
        noise: relative to each tensor's own spread.
    """

    noise: float = 0.1
    lr: float = 2e-4
    steps: int = 150
    batch: int = 64
    corpus: int = 6_000
    seed: int = 0
    kind: ClassVar[str] = "distillation"
    label: ClassVar[Label] = "clean"

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        shake(tower.model, self.noise, torch.Generator().manual_seed(self.seed))
        corpus = bench.captions(self.corpus, self.seed + 3)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            del step
            captions = [corpus[row] for row in draw(self.batch, len(corpus), generator)]
            ours, theirs = (t.pooled(captions).float() for t in (tower, bench.anchor))
            return (1 - cosine_similarity(ours, theirs)).mean()

        bench.train(tower, loss, recipe=self, steps=self.steps, lr=self.lr, seed=self.seed)
        return tower
