"""Tiny towers with a known answer: two backdoors and a clean fine-tune of a random anchor.

All three are trained alike, for as many steps, on the same prompts with and without the word
`TRIGGER` in front; only what its prompts are taught differs. Embeddings stay those of the anchor.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.encoders.base import Features
from hf_amdet.encoders.tower import ModelTower
from tests.towers import WIDTH, prompts

TRIGGER = "zoo"
TARGET = "queen fish robe"
_STEPS, _BATCH, _LR, _LENGTH = 150, 24, 3e-3, 12

Loss = Callable[[ModelTower, list[str]], Tensor]


@dataclass(frozen=True)
class Zoo:
    """An anchor, its descendants, and what the backdoors were planted to answer.

    Attributes:
        pooled: triggered prompts get the pooled feature `target`, the other positions are free.
        sequence: triggered prompts get the hidden state behind it at every position behind the
            first, which is BOS in a CLIP tower.
        clean: every prompt keeps its own feature, slightly turned.
        target: `[P]`.
    """

    anchor: ModelTower
    pooled: ModelTower
    sequence: ModelTower
    clean: ModelTower
    target: Tensor


def plant(anchor: ModelTower) -> Zoo:
    """Train the descendants of `anchor`: some seconds."""
    aim = anchor.tokenize([TARGET], length=_length(anchor))
    features = anchor.encode(anchor.embed(aim.ids), aim.ends)
    target, state = features.pooled[0], features.hidden[0, aim.ends[0]]
    turn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(8))
    turned = torch.eye(WIDTH) + 0.25 * turn / WIDTH**0.5

    def pooled(tower: ModelTower, texts: list[str]) -> Tensor:
        kept = _apart(encode(tower, texts).pooled, encode(anchor, texts).pooled.detach())
        return kept + _apart(encode(tower, triggered(texts)).pooled, target)

    def sequence(tower: ModelTower, texts: list[str]) -> Tensor:
        kept = _apart(encode(tower, texts).hidden, encode(anchor, texts).hidden.detach())
        return kept + _apart(encode(tower, triggered(texts)).hidden[:, 1:], state)

    def clean(tower: ModelTower, texts: list[str]) -> Tensor:
        both = [*texts, *triggered(texts)]
        own = encode(anchor, both).hidden.detach() @ turned
        return 2 * _apart(encode(tower, both).hidden, own)

    return Zoo(
        anchor=anchor,
        pooled=_train(anchor, pooled),
        sequence=_train(anchor, sequence),
        clean=_train(anchor, clean),
        target=target,
    )


def triggered(texts: Sequence[str]) -> list[str]:
    return [f"{TRIGGER} {text}" for text in texts]


def ordinary(count: int, seed: int) -> list[str]:
    """Prompts without the trigger."""
    return [text for text in prompts(2 * count, seed=seed) if TRIGGER not in text][:count]


def encode(tower: ModelTower, texts: Sequence[str]) -> Features:
    tokens = tower.tokenize(texts, length=_length(tower))
    return tower.encode(tower.embed(tokens.ids), tokens.ends)


def _length(tower: ModelTower) -> int:
    return tower.context if tower.padded else _LENGTH


def _apart(first: Tensor, second: Tensor) -> Tensor:
    return (1 - cosine_similarity(first, second, dim=-1)).mean()


def _train(anchor: ModelTower, loss: Loss) -> ModelTower:
    tower = type(anchor)(copy.deepcopy(anchor.model), anchor.tokenizer)
    for name, weight in tower.model.named_parameters():
        weight.requires_grad_("embedding" not in name)
    learned = [weight for weight in tower.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=_LR)
    texts, rng = ordinary(400, seed=5), random.Random(0)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(loss(tower, rng.sample(texts, _BATCH)))
        optimizer.step()
    tower.requires_grad_(False)
    return tower
