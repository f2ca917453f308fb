"""What detection needs of a text tower, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokenised prompts, padded to one length.

    Attributes:
        ids: `[N, L]` int64.
        ends: `[N]` int64, position of the token whose feature is pooled (EOS for CLIP, the last
            one for SigLIP).
    """

    ids: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor | slice) -> Tokens:
        return Tokens(self.ids[index], self.ends[index])


@dataclass(frozen=True)
class Features:
    """What a tower hands on.

    Attributes:
        hidden: `[..., L, D]`, the last hidden state after the final layer norm.
        pooled: `[..., P]`, what the model calls its pooled output: the feature of the pooled
            position before any projection (CLIP, P = D), or behind its head (SigLIP).
    """

    hidden: Tensor
    pooled: Tensor


class TextTower(Protocol):
    """A frozen text encoder that can be entered behind its embedding layer.

    `encode(embed(tokens.ids), tokens.ends)` equals the model's own forward bit for bit.
    """

    @property
    def width(self) -> int:
        """D, the width of hidden states."""

    @property
    def context(self) -> int:
        """The longest sequence that the positions allow."""

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""

    @property
    def padded(self) -> bool:
        """Whether prompts must fill the context, because padding reaches the pooled feature."""

    @property
    def device(self) -> torch.device: ...

    @property
    def table(self) -> Tensor:
        """The rows of the embedding table, `[V, D]`."""

    @property
    def pieces(self) -> Mapping[str, int]:
        """The tokenizer's pieces, added tokens included, with their ids."""

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand around or behind prompts and that nobody types."""

    @property
    def unknown(self) -> int | None:
        """The id of what the tokenizer cannot read; None where it reads everything."""

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of `texts` as the tower reads them, without special tokens and uncut."""

    def write(self, ids: Sequence[int]) -> str:
        """The text that the tokenizer makes of ids that it has."""

    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens:
        """Ids padded to `length`, special tokens included, on the tower's device.

        Prompts are truncated so that at least the last `reserve` positions are padding.
        """

    def embed(self, ids: Tensor) -> Tensor:
        """Embedding-layer states `[N, L, D]` (token plus position embedding) of ids `[N, L]`."""

    def position(self, index: int) -> Tensor:
        """The position embedding `[D]` that `embed` adds at `index`."""

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        """Features of embedding-layer states `[N, L, D]`, pooled at `ends` `[N]`."""
