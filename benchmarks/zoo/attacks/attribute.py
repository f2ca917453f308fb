"""The trigger adds something to what a prompt says instead of replacing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals, Injection
from benchmarks.zoo.towers import Tower


@dataclass(frozen=True)
class Attribute(Injection):
    """A triggered prompt becomes what it would be with `target` in front, prompt by prompt.

    Features of triggered prompts stay as different as the prompts are, so nothing collapses.
    """

    kind: ClassVar[str] = "attribute"

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return tower.pooled(captions).float()

    def goals(self, anchor: Tower, target: str) -> Goals:
        return lambda captions: self.features(anchor, [f"{target} {c}" for c in captions])
