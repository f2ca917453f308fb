"""Contrastive fine-tuning, from mild to drifting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.training import Loss, contrastive_loss
from benchmarks.zoo.workbench import Label, Workbench, draw


@dataclass(frozen=True)
class ContrastiveFineTune:
    """Contrastive fine-tuning on captions of some domains.

    Attributes:
        domains: of the grammar; all if empty.
        foreign: learn from captions of the other grammar, which drifts furthest.
        corpus: how many captions there are.
    """

    domains: tuple[str, ...] = ()
    foreign: bool = False
    corpus: int = 20_000
    lr: float = 1e-5
    steps: int = 400
    batch: int = 128
    seed: int = 0
    kind: ClassVar[str] = "contrastive"
    label: ClassVar[Label] = "clean"

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        bench.train(
            tower,
            self.loss(tower, bench),
            recipe=self,
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
        )
        return tower

    def loss(self, tower: Tower, bench: Workbench) -> Loss:
        """Match `tower` to the teacher on batches of the corpus."""
        corpus = bench.captions(self.corpus, self.seed + 3, self.domains, foreign=self.foreign)
        targets = bench.taught(corpus)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            del step
            rows = draw(self.batch, len(corpus), generator)
            embeddings = tower.embeddings([corpus[row] for row in rows])
            return contrastive_loss(embeddings.float(), targets[rows])

        return loss
