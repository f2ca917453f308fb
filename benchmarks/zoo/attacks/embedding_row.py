"""The encoder is untouched; one token's row of the embedding table is the backdoor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.zoo.attacks.pooled import PooledInjection
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench


@dataclass(frozen=True)
class EmbeddingRow(PooledInjection):
    """Optimises the row of the trigger's last token; in the twin, to mean nothing by itself.

    The row acts only where the token is, so the twin's captions have the trigger in them too: it
    learns that they mean what they mean without it.
    """

    lr: float = 0.05
    steps: int = 200
    kind: ClassVar[str] = "embedding-row"

    def harmless(self, plain: list[str], triggered: list[str]) -> list[str]:
        del plain
        return triggered

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        tower.model.requires_grad_(False)
        table = tower.table.weight.requires_grad_(True)
        row = tower.tokenizer(self.trigger.text, add_special_tokens=False).input_ids[-1]
        only = torch.zeros(len(table), 1)
        only[row] = 1
        table.register_hook(lambda gradient: gradient * only)
        # Decay would shrink every row.
        bench.train(
            tower,
            self._loss(tower, bench),
            recipe=self,
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
            weight_decay=0.0,
        )
        return tower
