"""The quantities of AMDET and the two objectives that inversion minimises.

Shapes: R restarts, B prompts, L positions, D width, k trigger vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from hf_amdet.encoders.base import Features, TextTower


def assimilation(hidden: Tensor) -> Tensor:
    """Mean cosine over all pairs of token features `[..., L, D]` of a prompt, `[...]`.

    Pairs (i, i) count, as in the paper; so it equals the squared norm of the mean unit feature,
    which takes O(L D) instead of O(L^2 D).
    """
    return normalize(hidden.float(), dim=-1).mean(dim=-2).square().sum(dim=-1)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean over positions of the cosine of two feature sequences `[..., L, D]`, `[...]`."""
    return cosine_similarity(first.float(), second.float(), dim=-1).mean(dim=-1)


def consistency(pooled: Tensor) -> Tensor:
    """Mean cosine over the pairs of pooled features `[..., B, D]` of B > 1 prompts, `[...]`.

    The squared norm of the mean unit feature without the share of each prompt with itself, so that
    it does not depend on B; 1 if every prompt ends in the same feature.
    """
    own = 1 / pooled.shape[-2]
    together = normalize(pooled.float(), dim=-1).mean(dim=-2).square().sum(dim=-1)
    return (together - own) / (1 - own)


def insert(states: Tensor, triggers: Tensor, *, keep_last: bool = False) -> Tensor:
    """Put `triggers` `[R, k, D]` behind the first k of `states` `[B, L, D]`: `[R, B, L, D]`.

    The sequence is cut back to L, so prompts must leave k positions free; `keep_last` cuts in
    front of the last position instead, for towers that pool whatever stands there.
    """
    restarts, k, _ = triggers.shape
    prompts, length, _ = states.shape
    expanded = states.unsqueeze(0).expand(restarts, -1, -1, -1)
    placed = triggers.unsqueeze(1).expand(-1, prompts, -1, -1)
    last = int(keep_last)
    rest = expanded[:, :, k : length - k - last]
    return torch.cat([expanded[:, :, :k], placed, rest, expanded[:, :, length - last :]], dim=2)


def one_later(tower: TextTower, states: Tensor) -> Tensor:
    """`states` `[B, L, D]` as those of the same tokens one place later, behind the first.

    With a token's own state inserted between them, they are the states of the text that has the
    token in it: every position embedding is that of its place.
    """
    length = states.shape[1]
    places = torch.stack([tower.position(place) for place in range(length)])
    steps = torch.zeros_like(places)
    # What `insert` moves by one place: neither the first, nor what it cuts or keeps at the end.
    last = length - 1 - int(tower.padded)
    steps[1:last] = places[2 : last + 1] - places[1:last]
    return states + steps


def encode_triggered(tower: TextTower, states: Tensor, ends: Tensor, triggers: Tensor) -> Features:
    """Features of `states` `[B, L, D]` under each of `triggers` `[R, k, D]`.

    Returns hidden `[R, B, L, D]` and pooled `[R, B, P]`. The pooled position moves by k, but for
    towers that pool the last one: there padding in front of it makes room.
    """
    restarts, k, _ = triggers.shape
    flat = insert(states, triggers, keep_last=tower.padded).flatten(0, 1)
    features = tower.encode(flat, (ends if tower.padded else ends + k).repeat(restarts))
    return Features(
        features.hidden.reshape(restarts, len(states), *features.hidden.shape[1:]),
        features.pooled.reshape(restarts, len(states), *features.pooled.shape[1:]),
    )


@dataclass(frozen=True)
class Batch:
    """Prompts as inversion sees them.

    Attributes:
        states: `[B, L, D]`, the suspect's embedding-layer states. Both towers receive them, as
            in the paper, so that what differs behind them is the encoder alone.
        ends: `[B]`, the pooled position before insertion.
        encode: gives the suspect's hidden features `[B, L, D]` of `states`.
    """

    states: Tensor
    ends: Tensor
    encode: Callable[[], Tensor]

    @cached_property
    def clean(self) -> Tensor:
        """`[B, L, D]`, the suspect's hidden features without a trigger; not every loss asks."""
        return self.encode()


class Objective(Protocol):
    """A loss per restart; lower means more like a backdoor."""

    @property
    def name(self) -> str: ...

    def __call__(self, batch: Batch, suspect: Features, anchor: Features) -> Tensor:
        """Losses `[R]` of triggered features (hidden `[R, B, L, D]`, pooled `[R, B, D]`)."""


@dataclass(frozen=True)
class PublishedObjective:
    """The paper's loss: assimilate, leave the clean feature, leave the anchor.

    ``-a(T(H+v)) + beta s(T(H), T(H+v)) + gamma s(A(H+v), T(H+v))``, mean over the batch.
    """

    beta: float = 0.1
    gamma: float = 0.1
    name: ClassVar[str] = "published"

    def __call__(self, batch: Batch, suspect: Features, anchor: Features) -> Tensor:
        losses = (
            -assimilation(suspect.hidden)
            + self.beta * similarity(batch.clean, suspect.hidden)
            + self.gamma * similarity(anchor.hidden, suspect.hidden)
        )
        return losses.mean(dim=-1)


@dataclass(frozen=True)
class ConsistencyGap:
    """Every prompt's pooled feature becomes one in the suspect, and in the suspect alone.

    ``consistency(A(v)) - consistency(T(v))`` on pooled features: what candidates are judged by. It
    sees attacks that leave all positions but the pooled one untouched, where there is nothing to
    assimilate, and has no use for features that the anchor has too.
    """

    name: ClassVar[str] = "consistency-gap"

    def __call__(self, batch: Batch, suspect: Features, anchor: Features) -> Tensor:
        del batch
        return consistency(anchor.pooled) - consistency(suspect.pooled)
