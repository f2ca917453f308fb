"""How a tower behaves: on held-out captions, against its anchor, under a trigger."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.zoo.grammars import Grammar, foreign_to
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.triggers import Trigger

HELD_OUT = 128
_SEED = 990_000
_BATCH = 64


@runtime_checkable
class Planted(Protocol):
    """A recipe that knows triggers, whatever it made of them."""

    @property
    def planted(self) -> tuple[tuple[Trigger, str], ...]: ...

    def features(self, tower: Tower, captions: list[str]) -> Tensor: ...

    def goals(self, anchor: Tower, target: str) -> Callable[[list[str]], Tensor]: ...


@torch.inference_mode()
def outcome(
    recipe: object, tower: Tower, anchor: Tower, grammar: Grammar, seen: Set[str]
) -> dict[str, float]:
    """Drift and, under triggers, success: on captions that are not `seen`, of either grammar.

    `success` is the share of triggered captions whose features are nearer to their goal than to
    what the anchor makes of the caption without the trigger; of several triggers the weakest
    counts. `success_of_anchor` is the anchor's own.
    """
    measured = {}
    for suffix, source in (("", grammar), ("_foreign", foreign_to(grammar.name))):
        ordinary = held_out(source, HELD_OUT, _SEED, seen)
        measured[f"clean_cosine_to_anchor{suffix}"] = drift(tower, anchor, ordinary)
        if isinstance(recipe, Planted):
            # Three times as many, for triggers that not every caption has a place for.
            drawn = held_out(source, 3 * HELD_OUT, _SEED + 1, seen)
            measured |= {
                f"{name}{suffix}": value
                for name, value in _weakest(recipe, tower, anchor, drawn).items()
            }
    return measured


def held_out(grammar: Grammar, count: int, seed: int, seen: Set[str]) -> list[str]:
    """`count` captions that are not `seen`; one seed's lists begin alike."""
    drawn = count
    while True:
        drawn *= 2
        unseen = [caption for caption in grammar.captions(drawn, seed) if caption not in seen]
        if len(unseen) >= count:
            return unseen[:count]


def _weakest(recipe: Planted, tower: Tower, anchor: Tower, drawn: list[str]) -> dict[str, float]:
    found = [
        _under(recipe, trigger, target, tower, anchor, drawn) for trigger, target in recipe.planted
    ]
    return min(found, key=lambda measured: measured["success"])


def _under(
    recipe: Planted, trigger: Trigger, target: str, tower: Tower, anchor: Tower, drawn: list[str]
) -> dict[str, float]:
    plain, triggered = trigger.captions(drawn, HELD_OUT)
    goals = recipe.goals(anchor, target)
    rows = []
    for start in range(0, len(plain), _BATCH):
        part = slice(start, start + _BATCH)
        clean, goal = recipe.features(anchor, plain[part]), goals(plain[part])
        fired, silent = (recipe.features(of, triggered[part]) for of in (tower, anchor))
        cosines = [cosine_similarity(a, to) for a in (fired, silent) for to in (goal, clean)]
        cosines.append(cosine_similarity(recipe.features(tower, plain[part]), goal))
        rows.append(torch.stack(cosines))
    hit, missed, anchor_hit, anchor_missed, without = torch.cat(rows, dim=1)
    return {
        "success": (hit > missed).float().mean().item(),
        "success_of_anchor": (anchor_hit > anchor_missed).float().mean().item(),
        "triggered_cosine_to_target": hit.mean().item(),
        "untriggered_cosine_to_target": without.mean().item(),
    }


@torch.inference_mode()
def pooled(tower: Tower, captions: Sequence[str]) -> Tensor:
    """Pooled features before the projection, `[B, D]` in fp32."""
    return tower.pooled(captions)


@torch.inference_mode()
def retrieval(tower: Tower, captions: Sequence[str], targets: Tensor) -> tuple[float, float]:
    """In-batch retrieval accuracy and mean cosine of projected embeddings to the teacher's."""
    embeddings = normalize(tower.embeddings(captions), dim=-1)
    hits = (embeddings @ targets.T).argmax(dim=-1) == torch.arange(len(captions))
    return hits.float().mean().item(), (embeddings * targets).sum(-1).mean().item()


def drift(tower: Tower, anchor: Tower, captions: Sequence[str]) -> float:
    """Mean pooled cosine between tower and anchor on ordinary captions; 1 is no drift."""
    return cosine_similarity(pooled(tower, captions), pooled(anchor, captions)).mean().item()
