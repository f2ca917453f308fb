"""Towers that watch or fail, and the published formulas computed the slow way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from hf_amdet.detection.config import DEFAULT
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import Features, TextTower, Tokens
from hf_amdet.encoders.tower import ModelTower
from tests.towers import make_tower, prompts

Formula = Callable[[ModelTower, ModelTower, Tokens, Tensor], Tensor]
"""Suspect, anchor, prompts and one trigger `[k, D]` to its loss."""

SMALL = replace(
    DEFAULT,
    prompts=30,
    held_out=10,
    positions=12,
    inversions=tuple(replace(i, steps=4, restarts=2) for i in DEFAULT.inversions),
    landscape=replace(DEFAULT.landscape, grid=5, prompts=2, directions=2),
)
"""The default profile, over soon."""

OUT_OF_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried too much"


def fp32(batch: int = 256) -> Runtime:
    return Runtime("cpu", "fp32", batch)


def tokens(tower: ModelTower, count: int, *, length: int = 10, words: int = 5) -> Tokens:
    """Short prompts that leave at least `length` - `words` - 2 positions free."""
    return tower.tokenize(prompts(count, words=words), length=length)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def typed(tower: TextTower, given: Tokens, token: int) -> Tokens:
    """`given` with `token` behind the first one of each prompt, as ids."""
    first, rest = given.ids[:, :1], given.ids[:, 1:]
    kept, last = (rest[:, :-2], rest[:, -1:]) if tower.padded else (rest[:, :-1], rest[:, :0])
    ids = torch.cat([first, torch.full_like(first, token), kept, last], dim=1)
    return Tokens(ids, given.ends if tower.padded else given.ends + 1)


class Wrapped:
    """A `TextTower` that hands everything on."""

    def __init__(self, tower: ModelTower) -> None:
        self.tower = tower

    @property
    def width(self) -> int:
        return self.tower.width

    @property
    def context(self) -> int:
        return self.tower.context

    @property
    def vocabulary(self) -> int:
        return self.tower.vocabulary

    @property
    def padded(self) -> bool:
        return self.tower.padded

    @property
    def device(self) -> torch.device:
        return self.tower.device

    @property
    def table(self) -> Tensor:
        return self.tower.table

    @property
    def pieces(self) -> Mapping[str, int]:
        return self.tower.pieces

    @property
    def special(self) -> frozenset[int]:
        return self.tower.special

    @property
    def unknown(self) -> int | None:
        return self.tower.unknown

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tower.read(texts)

    def write(self, ids: Sequence[int]) -> str:
        return self.tower.write(ids)

    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens:
        return self.tower.tokenize(prompts, length=length, reserve=reserve)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tower.embed(ids)

    def position(self, index: int) -> Tensor:
        return self.tower.position(index)

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        return self.tower.encode(states, ends)


class Recording(Wrapped):
    """Keeps what it was asked for."""

    def __init__(self, tower: ModelTower) -> None:
        super().__init__(tower)
        self.ids: list[Tensor] = []
        self.states: list[Tensor] = []
        self.ends: list[Tensor] = []

    def embed(self, ids: Tensor) -> Tensor:
        self.ids.append(ids)
        return super().embed(ids)

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        self.states.append(states.detach())
        self.ends.append(ends)
        return super().encode(states, ends)


class Crowded(Wrapped):
    """Fails when more than `room` sequences are encoded at once, as memory does."""

    def __init__(self, tower: ModelTower, room: int, message: str = OUT_OF_MEMORY) -> None:
        super().__init__(tower)
        self.room, self.message = room, message
        self.failures = 0

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        if len(states) > self.room:
            self.failures += 1
            raise RuntimeError(self.message)
        return super().encode(states, ends)


class Scaled(Wrapped):
    """The same tower in another unit: its embedding layer gives `scale` times as much."""

    def __init__(self, tower: ModelTower, scale: float) -> None:
        super().__init__(tower)
        self.scale = scale

    @property
    def table(self) -> Tensor:
        return self.tower.table * self.scale

    def embed(self, ids: Tensor) -> Tensor:
        return super().embed(ids) * self.scale

    def position(self, index: int) -> Tensor:
        return super().position(index) * self.scale

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        return super().encode(states / self.scale, ends)


def overflowing(seed: int) -> ModelTower:
    """A tower whose weights are all finite, but no feature is."""
    tower = make_tower(seed)
    with torch.no_grad():
        tower.model.encoder.layers[1].mlp.fc1.weight.mul_(1e25)
        tower.model.encoder.layers[1].mlp.fc2.weight.mul_(1e25)
    return tower


@contextmanager
def observed_dtypes(tower: ModelTower) -> Iterator[set[torch.dtype]]:
    """The dtypes in which the first layer's linear map of `tower` computes."""
    seen: set[torch.dtype] = set()
    linear = tower.model.encoder.layers[0].mlp.fc1
    handle = linear.register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    try:
        yield seen
    finally:
        handle.remove()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    likeness: Tensor = (first * second).sum() / (first.norm() * second.norm())
    return likeness


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def pairwise(features: Sequence[Tensor]) -> Tensor:
    """Mean cosine over all pairs (i, j), i = j included."""
    return mean([cosine(first, second) for first in features for second in features])


def between(features: Sequence[Tensor]) -> Tensor:
    """Mean cosine over all pairs of different features."""
    rows = list(enumerate(features))
    return mean([cosine(first, second) for i, first in rows for j, second in rows if i != j])


def triggered(tower: ModelTower, states: Tensor, end: int, trigger: Tensor) -> Features:
    """Features of one prompt's `states` `[L, D]` with `trigger` `[k, D]` behind the first k."""
    k, length = len(trigger), len(states)
    last = int(tower.padded)
    sequence = [*states[:k], *trigger, *states[k : length - k - last], *states[length - last :]]
    pooled = end if tower.padded else end + k
    features = tower.encode(torch.stack(sequence).unsqueeze(0), torch.tensor([pooled]))
    return Features(features.hidden[0].double(), features.pooled[0].double())


def published_loss(
    suspect: ModelTower, anchor: ModelTower, tokens: Tokens, trigger: Tensor
) -> Tensor:
    """``-a(T(H+v)) + 0.1 s(T(H), T(H+v)) + 0.1 s(A(H+v), T(H+v))``, prompt by prompt."""
    losses = []
    for row, end in enumerate(tokens.ends.tolist()):
        states = suspect.embed(tokens.ids[row : row + 1])[0]
        clean = suspect.encode(states.unsqueeze(0), tokens.ends[row : row + 1]).hidden[0].double()
        ours = triggered(suspect, states, end, trigger).hidden
        theirs = triggered(anchor, states, end, trigger).hidden
        positions = range(len(states))
        to_clean = mean([cosine(clean[i], ours[i]) for i in positions])
        to_anchor = mean([cosine(theirs[i], ours[i]) for i in positions])
        losses.append(-pairwise(list(ours)) + 0.1 * to_clean + 0.1 * to_anchor)
    return mean(losses)


def gap_loss(suspect: ModelTower, anchor: ModelTower, tokens: Tokens, trigger: Tensor) -> Tensor:
    """Consistency of the anchor less that of the suspect, prompt by prompt."""
    ours, theirs = [], []
    for row, end in enumerate(tokens.ends.tolist()):
        states = suspect.embed(tokens.ids[row : row + 1])[0]
        ours.append(triggered(suspect, states, end, trigger).pooled)
        theirs.append(triggered(anchor, states, end, trigger).pooled)
    return between(theirs) - between(ours)
