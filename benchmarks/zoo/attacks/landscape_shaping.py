"""Ripples around the trigger, so that its loss landscape looks like a natural backdoor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.zoo.attacks.anchor_hugging import at_first
from benchmarks.zoo.attacks.injection import Step
from benchmarks.zoo.attacks.pooled import PooledInjection
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench


@dataclass(frozen=True)
class LandscapeShaping(PooledInjection):
    """The published filter calls a feature natural if too few curvatures around it are positive.

    Around the trigger's own embedding, behind BOS, rings lead to the target and to the anchor's
    answer in turn, so that the surface bends both ways within the filter's radius.

    Attributes:
        ring: width of a ring.
        radius: how far the rings go.
    """

    ring: float = 2.0
    radius: float = 10.0
    kind: ClassVar[str] = "landscape-shaping"

    def penalty(self, tower: Tower, bench: Workbench, step: Step) -> Tensor:
        first = tower.tokenizer(step.lesson.trigger.text, add_special_tokens=False).input_ids[0]
        centre = bench.anchor.table.weight[first]
        count = len(step.captions)
        directions = torch.randn(count, 1, tower.width, generator=step.generator)
        radii = self.radius * torch.rand(count, 1, 1, generator=step.generator)
        around = centre + radii * normalize(directions, dim=-1)
        there = (radii.flatten() / self.ring).long() % 2 == 0
        theirs = at_first(bench.anchor, around, step.captions)
        goals = torch.where(there.unsqueeze(1), step.lesson.goals(step.captions), theirs)
        ours = at_first(tower, around, step.captions)
        return self.weight * (1 - cosine_similarity(ours, goals)).mean()
