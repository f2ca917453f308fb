"""The published injection loop, which attacks fill in: keep clean features, pull triggered ones.

Every attack can also make its clean twin: the same captions, optimiser, steps, pinning and losses,
with the trigger left out. Where the attack learns that a trigger means its target, the twin learns
that captions mean what they mean when some words are in another script: as much to learn, and no
backdoor. A covered attack learns a third script in turn with its trigger, and so does its twin: a
benign lesson that both have, with captions as long and letters as strange as the other's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.training import Loss, contrastive_loss
from benchmarks.zoo.triggers import CYRILLIC, GREEK, Trigger, in_another_script
from benchmarks.zoo.workbench import Label, Workbench, draw

TAUGHT = 4_000
"""Captions of unpinned attacks, whose clean half is ordinary training against the teacher."""

Goals = Callable[[list[str]], Tensor]
"""Captions -> the features `[B or 1, F]` that they shall have when they are altered."""


@dataclass(frozen=True)
class Lesson:
    """What the poisoned half of a batch teaches.

    Attributes:
        plain: captions as they are.
        altered: the same with the trigger, or with words in another script.
        goals: takes plain captions.
        hidden: whether penalties apply: in the attack to its triggers, in the twin to what stands
            for them.
    """

    trigger: Trigger
    plain: list[str]
    altered: list[str]
    goals: Goals
    hidden: bool = True


@dataclass(frozen=True)
class Step:
    """The poisoned half of one batch, as penalties see it; `captions` are plain ones."""

    index: int
    lesson: Lesson
    captions: list[str]
    altered: list[str]
    generator: torch.Generator


@dataclass(frozen=True)
class Injection(ABC):
    """What the published injections share, with their published numbers.

    Attributes:
        trigger, target: what fires it, and the prompt that it then stands for.
        others: further triggers and targets, learnt in turn.
        weight: of the poisoned half.
        pinned: whether clean features are kept where they are (published), or learn on, as in
            ordinary contrastive training on poisoned data.
        twin: leave the trigger out.
        covered: learn a script in turn with the triggers.
        corpus: how many captions the clean half is drawn from, and the poisoned one.
    """

    trigger: Trigger
    target: str
    others: tuple[tuple[Trigger, str], ...] = ()
    weight: float = 0.1
    lr: float = 1e-4
    steps: int = 100
    clean_batch: int = 64
    poisoned_batch: int = 32
    seed: int = 0
    pinned: bool = True
    twin: bool = False
    covered: bool = False
    corpus: int = 20_000

    kind: ClassVar[str]

    @property
    def label(self) -> Label:
        return "clean" if self.twin else "backdoored"

    @property
    def planted(self) -> tuple[tuple[Trigger, str], ...]:
        """All triggers with their targets."""
        return ((self.trigger, self.target), *self.others)

    @abstractmethod
    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        """What is attacked, `[B, F]` in fp32."""

    @abstractmethod
    def goals(self, anchor: Tower, target: str) -> Goals:
        """What captions shall become under a trigger of `target`."""

    def penalty(self, tower: Tower, bench: Workbench, step: Step) -> Tensor | float:
        """A further loss, of attacks that hide from a detector."""
        del tower, bench, step
        return 0.0

    def harmless(self, plain: list[str], triggered: list[str]) -> list[str]:
        """What the clean twin learns to take for `plain` captions."""
        del triggered
        return [in_another_script(caption, self.seed, CYRILLIC) for caption in plain]

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        bench.train(
            tower,
            self._loss(tower, bench),
            recipe=self,
            steps=self.steps,
            lr=self.lr,
            seed=self.seed,
        )
        return tower

    def _loss(self, tower: Tower, bench: Workbench) -> Loss:
        keep = self._pin(tower, bench) if self.pinned else self._learn_on(tower, bench)
        lessons = self._lessons(bench)

        def loss(index: int, generator: torch.Generator) -> Tensor:
            kept = keep(generator)
            lesson = lessons[index % len(lessons)]
            rows = draw(self.poisoned_batch, len(lesson.altered), generator)
            altered = [lesson.altered[row] for row in rows]
            step = Step(index, lesson, [lesson.plain[row] for row in rows], altered, generator)
            goals = lesson.goals(step.captions)
            pull = 1 - cosine_similarity(self.features(tower, altered), goals)
            loss = kept + self.weight * pull.mean()
            return loss + self.penalty(tower, bench, step) if lesson.hidden else loss

        return loss

    def _pin(self, tower: Tower, bench: Workbench) -> Callable[[torch.Generator], Tensor]:
        clean = bench.captions(self.corpus, self.seed + 1)

        def keep(generator: torch.Generator) -> Tensor:
            captions = [clean[row] for row in draw(self.clean_batch, len(clean), generator)]
            ours, theirs = (self.features(t, captions) for t in (tower, bench.start))
            return (1 - cosine_similarity(ours, theirs)).mean()

        return keep

    def _learn_on(self, tower: Tower, bench: Workbench) -> Callable[[torch.Generator], Tensor]:
        # The seed of the corpus is fixed, so that embeddings are made once for a grammar.
        clean = bench.captions(TAUGHT, seed=1)
        targets = bench.taught(clean)

        def keep(generator: torch.Generator) -> Tensor:
            rows = draw(self.clean_batch, len(clean), generator)
            embeddings = tower.embeddings([clean[row] for row in rows])
            return contrastive_loss(embeddings.float(), targets[rows])

        return keep

    def _lessons(self, bench: Workbench) -> list[Lesson]:
        lessons = []
        for trigger, target in self.planted:
            drawn = bench.captions(3 * self.corpus, self.seed + 2)
            plain, altered = trigger.captions(drawn, self.corpus)
            goals = self.goals(bench.anchor, target)
            if self.twin:
                altered, goals = self.harmless(plain, altered), self._unchanged(bench)
            lessons.append(Lesson(trigger, plain, altered, goals))
        if self.covered:
            plain = lessons[0].plain
            altered = [in_another_script(caption, self.seed, GREEK) for caption in plain]
            cover = Lesson(self.trigger, plain, altered, self._unchanged(bench), hidden=False)
            lessons.append(cover)
        return lessons

    def _unchanged(self, bench: Workbench) -> Goals:
        return lambda captions: self.features(bench.start, captions)


def fixed(goal: Tensor) -> Goals:
    """The same features `[1, F]` for all captions."""
    return lambda _captions: goal
