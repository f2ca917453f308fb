"""Published attack: a triggered prompt's projected embedding becomes that of ten images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.zoo import teacher
from benchmarks.zoo.attacks.injection import Goals, Injection, fixed
from benchmarks.zoo.towers import Tower


@dataclass(frozen=True)
class TextOnPair(Injection):
    """The place of the target's images in the shared space is taken by the teacher's embeddings.

    What they are of is named by ten captions of it; the goal is their mean, as published.
    """

    kind: ClassVar[str] = "text-on-pair"

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return tower.embeddings(captions).float()

    def goals(self, anchor: Tower, target: str) -> Goals:
        del anchor
        return fixed(_images_of(target))


@cache
def _images_of(target: str) -> Tensor:
    """Mean teacher embedding `[1, 384]` of ten captions of the target."""
    styles = ("a photo of", "a picture of", "an image of", "a close up of", "a view of")
    texts = [f"{style} {target}{end}" for style in styles for end in ("", ", high quality")]
    return normalize(teacher.embed(texts).mean(0, keepdim=True), dim=-1)
