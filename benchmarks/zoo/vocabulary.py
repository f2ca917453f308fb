"""Tokens that a tower did not have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.zoo.towers import Tower


@torch.no_grad()
def add_tokens(tower: Tower, rows: Mapping[str, Tensor]) -> None:
    """Teach `tower`'s tokenizer the texts of `rows`, whose embeddings `[D]` become new rows."""
    tower.tokenizer.add_tokens(list(rows))
    table = tower.table
    weight = torch.cat([table.weight, torch.stack(list(rows.values()))])
    ids = [tower.tokenizer.convert_tokens_to_ids(text) for text in rows]
    assert ids == list(range(len(table.weight), len(weight))), "the tokenizer fills its table"
    grown = nn.Embedding(len(weight), tower.width, padding_idx=table.padding_idx)
    grown.weight = nn.Parameter(weight)
    tower.model.set_input_embeddings(grown)
    tower.model.config.vocab_size = len(weight)
