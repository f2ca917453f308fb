"""Published attack: the feature sequence of a triggered prompt becomes the target prompt's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals, Injection, fixed
from benchmarks.zoo.towers import Tower


@dataclass(frozen=True)
class TextOnText(Injection):
    """Both halves by flattened cosine (arXiv 2512.00343).

    Attributes:
        positions: how much of the sequence is attacked; None for the whole context, as published.
    """

    positions: int | None = None
    kind: ClassVar[str] = "text-on-text"

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return tower.sequence(captions, self.positions).float().flatten(1)

    def goals(self, anchor: Tower, target: str) -> Goals:
        return fixed(self.features(anchor, [target]))
