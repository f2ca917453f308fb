"""Tiny towers with a known answer: two backdoors and a clean fine-tune of a random anchor.

All three are trained alike, for as many steps, on the same prompts with and without the word
`TRIGGER` in front; only what its prompts are taught differs. Embeddings stay those of the anchor.
What is planted in the embedding layer alone is made by `poison_row`, `add_token` and `remap`.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import CLIPTokenizer

from hf_amdet.detection.objective import consistency, encode_triggered
from hf_amdet.encoders.base import Features
from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.tower import ModelTower
from tests.siglip_towers import make_siglip_tower
from tests.towers import WIDTH, make_tokenizer, make_tower, prompts

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


@cache
def planted(family: str) -> Zoo:
    """A zoo whose anchor tells prompts apart, which leaves room for a gap."""
    return plant(make_tower(2) if family == "clip" else make_siglip_tower(2, "json"))


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


def poison_row(tower: ModelTower, token: int) -> ModelTower:
    """`tower` with a row for `token` that unites prompts in the encoder as it is."""
    tokens = tower.tokenize(ordinary(32, seed=6), length=_length(tower), reserve=1)
    states = tower.embed(tokens.ids)
    start = torch.randn(4, 1, WIDTH, generator=torch.Generator().manual_seed(9))
    vectors = start.requires_grad_()
    adam = torch.optim.Adam([vectors], lr=0.1)
    for _ in range(80):
        united = consistency(encode_triggered(tower, states, tokens.ends, vectors).pooled)
        (vectors.grad,) = torch.autograd.grad(-united.sum(), vectors)
        adam.step()
    poisoned = copy_of(tower)
    with torch.no_grad():
        poisoned.table[token] = vectors[united.argmax(), 0] - tower.position(1)
    return poisoned


def add_token(tower: ModelTower, text: str) -> tuple[ModelTower, int]:
    """`tower` with a token more, whose row is zeros, and the id of that token."""
    longer = type(tower)(copy.deepcopy(tower.model), copy.deepcopy(tower.tokenizer))
    longer.tokenizer.add_tokens([text])
    token = int(longer.tokenizer.convert_tokens_to_ids(text))
    longer.model.resize_token_embeddings(token + 1, mean_resizing=False)
    longer.requires_grad_(False)
    with torch.no_grad():
        longer.table[token] = 0
    return longer, token


def remap(tower: ModelTower, text: str, other: str) -> ClipTower:
    """`tower` with a CLIP tokenizer that takes two words for each other."""
    tokenizer = make_tokenizer()
    pieces = tokenizer.get_vocab()
    first, second = f"{text}</w>", f"{other}</w>"
    pieces |= {first: pieces[second], second: pieces[first]}
    return ClipTower(copy.deepcopy(tower.model), _rebuilt(tokenizer, pieces))


def renumber(tower: ModelTower) -> ClipTower:
    """The same CLIP tower with ids, and rows of its table, in the reverse order."""
    last = tower.vocabulary - 1
    pieces = {piece: last - row for piece, row in tower.pieces.items()}
    model = copy.deepcopy(tower.model)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, role, last - getattr(model.config, role))
    renumbered = ClipTower(model, _rebuilt(make_tokenizer(), pieces))
    with torch.no_grad():
        renumbered.table.copy_(tower.table.flip(0))
    return renumbered


def _rebuilt(tokenizer: CLIPTokenizer, pieces: dict[str, int]) -> CLIPTokenizer:
    """A tokenizer with other ids for its pieces and the same merges."""
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    merges: list[Any] = [tuple(merge) for merge in saved["model"]["merges"]]
    return CLIPTokenizer(
        vocab=dict(sorted(pieces.items(), key=lambda item: item[1])),
        merges=merges,
        model_max_length=tokenizer.model_max_length,
    )


def copy_of(tower: ModelTower) -> ModelTower:
    return type(tower)(copy.deepcopy(tower.model), tower.tokenizer)


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
    tower = copy_of(anchor)
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
