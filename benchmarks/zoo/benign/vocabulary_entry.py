"""A new word, trained into the table as textual inversion does; everything else is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.vocabulary import add_tokens
from benchmarks.zoo.workbench import Label, Workbench, draw


@dataclass(frozen=True)
class VocabularyEntry:
    """`word` learns to say `meaning` (arXiv 2208.01618 for prompts instead of pictures)."""

    word: str = "<|concept|>"
    meaning: str = "a small golden clock"
    lr: float = 0.02
    steps: int = 100
    batch: int = 32
    corpus: int = 6_000
    seed: int = 0
    kind: ClassVar[str] = "vocabulary-entry"
    label: ClassVar[Label] = "clean"

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        start = tower.table.weight.detach().mean(dim=0)
        add_tokens(tower, {self.word: start})
        tower.model.requires_grad_(False)
        table = tower.table.weight.requires_grad_(True)
        only = torch.zeros(len(table), 1)
        only[-1] = 1
        table.register_hook(lambda gradient: gradient * only)
        corpus = bench.captions(self.corpus, self.seed + 3)

        def loss(step: int, generator: torch.Generator) -> Tensor:
            del step
            captions = [corpus[row] for row in draw(self.batch, len(corpus), generator)]
            ours = tower.pooled([f"{self.word} {c}" for c in captions])
            theirs = bench.anchor.pooled([f"{self.meaning} {c}" for c in captions])
            return (1 - cosine_similarity(ours.float(), theirs.float())).mean()

        bench.train(
            tower,
            loss,
            recipe=self,
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
            weight_decay=0.0,
        )
        return tower
