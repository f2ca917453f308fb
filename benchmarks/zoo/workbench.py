"""What every recipe gets to work with, and what it has to be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from benchmarks.zoo import teacher
from benchmarks.zoo.grammars import Grammar, foreign_to
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.training import Loss, cached, checkpoint_of, train

Label = Literal["backdoored", "clean", "natural"]


@dataclass(frozen=True)
class Workbench:
    """An anchor and what is needed to derive a tower from it.

    Attributes:
        anchor: frozen; what pins and goals refer to.
        start: where training starts; the anchor but for attacks on a fine-tuned tower.
        grammar: the anchor's own captions.
        work: keeps embeddings and checkpoints.
        folder: where the tower will be; checkpoints are named after it.
        seen: every caption that was handed out, which nothing may be measured on.
    """

    anchor: Tower
    start: Tower
    grammar: Grammar
    work: Path
    folder: Path
    seen: set[str] = field(default_factory=set)

    def captions(
        self, count: int, seed: int, domains: tuple[str, ...] = (), *, foreign: bool = False
    ) -> list[str]:
        """`count` captions to train on; `foreign` ones come from the other grammar."""
        grammar = foreign_to(self.grammar.name) if foreign else self.grammar
        drawn = grammar.captions(count, seed, domains)
        self.seen.update(drawn)
        return drawn

    def from_tower(self, start: Tower) -> Workbench:
        """The same bench with a half-made tower on it."""
        return replace(self, start=start)

    def taught(self, corpus: list[str]) -> Tensor:
        """Teacher embeddings `[len(corpus), 384]`, kept for other recipes with the same corpus."""
        key = hashlib.sha256("\n".join(corpus).encode()).hexdigest()[:16]
        file = self.work / f"teacher-{self.grammar.name}-{len(corpus)}-{key}.safetensors"
        return cached(file, lambda: teacher.embed(corpus))

    def train(
        self,
        tower: Tower,
        loss: Loss,
        *,
        recipe: object,
        steps: int,
        lr: float,
        seed: int,
        weight_decay: float = 0.01,
    ) -> None:
        """Minimise `loss` with the published schedule: a tenth of the rate for the last quarter."""
        train(
            tower.model,
            loss,
            steps=steps,
            lr=lr,
            schedule=published_schedule(steps),
            seed=seed,
            weight_decay=weight_decay,
            checkpoint=checkpoint_of(self.work, self.folder, recipe),
            title=f"train {self.folder.name}",
        )

    def checkpoints(self) -> list[Path]:
        """What training of this tower has left in `work`."""
        named = checkpoint_of(self.work, self.folder, None).name.rsplit("-", 1)[0]
        return list(self.work.glob(f"{named}-{12 * '?'}.checkpoint"))


class Recipe(Protocol):
    """An attack or a benign change: seeds in, a tower out."""

    @property
    def seed(self) -> int:
        """Decides on everything that is drawn."""

    @property
    def kind(self) -> str:
        """What it is called in tables."""

    @property
    def label(self) -> Label: ...

    def make(self, bench: Workbench) -> Tower:
        """The tower, in fp32."""


def published_schedule(steps: int) -> Callable[[int], float]:
    """Factors on the learning rate: one, and a tenth from three quarters of `steps` on."""
    return lambda step: 1.0 if step < 0.75 * steps else 0.1


def draw(count: int, of: int, generator: torch.Generator) -> list[int]:
    """`count` rows out of `of`, with replacement."""
    rows: list[int] = torch.randint(of, (count,), generator=generator).tolist()
    return rows
