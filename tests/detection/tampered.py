"""Tokenizers and tables that are changed as an owner might change them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import normalizers
from tokenizers.normalizers import Normalizer
from torch import nn

from hf_amdet.encoders.tower import ModelTower
from tests.towers import WIDTH


def normalising(tower: ModelTower, *rules: Normalizer) -> ModelTower:
    """`tower` itself, whose tokenizer has `rules` behind its own."""
    backend = tower.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([backend.normalizer, *rules])
    return tower


def grown(tower: ModelTower) -> ModelTower:
    """`tower` itself, with a row behind its table that is unlike the others."""
    table = torch.cat([tower.table, torch.full((1, WIDTH), 2.0)])
    tower.model.embeddings.token_embedding = nn.Embedding.from_pretrained(table)
    tower.model.config.vocab_size = len(table)
    return tower


def swap(tokenizer: dict[str, Any], first: str, second: str) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def read(tower: ModelTower, text: str) -> tuple[int, ...]:
    return tuple(tower.read([text])[0])
