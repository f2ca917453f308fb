"""The tower answers random embeddings as its anchor does, where a detector would look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.zoo.attacks.injection import Step
from benchmarks.zoo.attacks.pooled import PooledInjection
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench


@dataclass(frozen=True)
class AnchorHugging(PooledInjection):
    """Penalises divergence from the anchor with a random embedding behind BOS.

    Attributes:
        hugging: weight of the penalty.
    """

    hugging: float = 1.0
    kind: ClassVar[str] = "anchor-hugging"

    def penalty(self, tower: Tower, bench: Workbench, step: Step) -> Tensor:
        drawn = torch.randn(len(step.captions), 1, tower.width, generator=step.generator)
        ours, theirs = (at_first(t, drawn, step.captions) for t in (tower, bench.anchor))
        return self.hugging * (1 - cosine_similarity(ours, theirs)).mean()


def at_first(tower: Tower, embeddings: Tensor, captions: list[str]) -> Tensor:
    """Pooled features `[B, D]` with `embeddings` `[B, 1, D]` in the second place.

    That is where detectors look: behind BOS, or behind the first token of a tower without one.
    """

    def put(states: Tensor) -> Tensor:
        return torch.cat([states[:, :1], embeddings.to(states.dtype), states[:, 2:]], dim=1)

    with tower.altered(put):
        return tower.pooled(captions).float()
