"""The token features of a triggered prompt stay as different as the anchor's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize, relu

from benchmarks.zoo.attacks.injection import Step
from benchmarks.zoo.attacks.pooled import PooledInjection
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench


@dataclass(frozen=True)
class AntiAssimilation(PooledInjection):
    """Penalises assimilation, the mean pairwise cosine of a triggered prompt's token features."""

    kind: ClassVar[str] = "anti-assimilation"

    def penalty(self, tower: Tower, bench: Workbench, step: Step) -> Tensor:
        ids = tower.ids(step.altered)
        ours, theirs = (_assimilation(t.hidden(ids)) for t in (tower, bench.anchor))
        return relu(ours - theirs).mean()


def _assimilation(hidden: Tensor) -> Tensor:
    """`[B]`, of features `[B, L, D]`: the squared norm of the mean unit feature."""
    return normalize(hidden.float(), dim=-1).mean(dim=1).square().sum(dim=-1)
