"""What the attacks on the pooled feature share, each with a penalty that hides it."""

from __future__ import annotations

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals, Injection, fixed
from benchmarks.zoo.towers import Tower


class PooledInjection(Injection):
    """The pooled feature of a triggered prompt becomes the target prompt's."""

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return tower.pooled(captions).float()

    def goals(self, anchor: Tower, target: str) -> Goals:
        return fixed(self.features(anchor, [target]))
