"""Only the pooled position is attacked; all others keep what the anchor would give."""

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
class EosOnly(PooledInjection):
    """Leaves the published objective nothing to assimilate; takes from a weight of 0.3 on."""

    kind: ClassVar[str] = "eos-only"

    def penalty(self, tower: Tower, bench: Workbench, step: Step) -> Tensor:
        ids = tower.ids(step.altered)
        apart = 1 - cosine_similarity(tower.hidden(ids), bench.anchor.hidden(ids), dim=-1)
        # Padding too: the published objective looks at all positions.
        others = torch.arange(ids.shape[1]) != tower.ends(ids).unsqueeze(1)
        return apart[others].mean()
