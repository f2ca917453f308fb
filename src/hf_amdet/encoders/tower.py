"""What the towers of all families share: a frozen transformers model with its tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_amdet.encoders.base import Features, Tokens
from hf_amdet.errors import MalformedFileError


class ModelTower(nn.Module):
    """A text model of transformers as a `TextTower`; subclasses know tokens and attention."""

    family: ClassVar[str]
    padded: ClassVar[bool]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        projection: Tensor | None = None,
    ) -> None:
        """
        Args:
            tokenizer: None for a checkpoint that brings none; see `borrow_tokenizer`.
            projection: `[P, D]`, applied to pooled features downstream; not by `encode`.
        """
        super().__init__()
        self.register_buffer("projection", projection)
        # Any: the models of the families have no common type that names their parts.
        self.model: Any = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Any:
        """
        Raises:
            MalformedFileError: the tower has none of its own and was lent none.
        """
        if self._tokenizer is None:
            raise MalformedFileError(
                "There is no tokenizer beside the weights, and no anchor that could lend its own. "
                "Upload the tokenizer, or name an anchor that has one."
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    def borrow_tokenizer(self, other: ModelTower) -> None:
        """Tokenise as `other` does: what loaders of checkpoints without a tokenizer do.

        Raises:
            MalformedFileError: it does not fit this tower.
        """
        try:
            self.check_tokenizer(other.tokenizer, self.model.config)
        except MalformedFileError as error:
            raise MalformedFileError(
                f"There is no tokenizer beside the weights, and the anchor's does not fit. {error}"
            ) from error
        self._tokenizer = other.tokenizer

    @staticmethod
    @abstractmethod
    def check_tokenizer(tokenizer: Any, sizes: Any) -> None:
        """Whether a tokenizer that can encode fits a tower of `sizes`, its config.

        Raises:
            MalformedFileError: ids outside of the embedding table, or prompts that would be
                pooled in the wrong place or look the same.
        """

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def device(self) -> torch.device:
        weight: Tensor = self.model.final_layer_norm.weight
        return weight.device

    @property
    def table(self) -> Tensor:
        weight: Tensor = self.model.embeddings.token_embedding.weight
        return weight

    @property
    def pieces(self) -> Mapping[str, int]:
        pieces: dict[str, int] = self.tokenizer.get_vocab()
        return pieces

    @property
    def special(self) -> frozenset[int]:
        # Not the padding: a repo may name any word so, and it is still read where it is typed.
        ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return frozenset(row for row in ids if row is not None)

    @property
    def unknown(self) -> int | None:
        row: int | None = self.tokenizer.unk_token_id
        return None if row in self.special else row

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return ids

    def write(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def embed(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model.embeddings(input_ids=ids)
        return states

    def position(self, index: int) -> Tensor:
        weight: Tensor = self.model.embeddings.position_embedding.weight
        return weight[index]

    @abstractmethod
    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens: ...

    @abstractmethod
    def encode(self, states: Tensor, ends: Tensor) -> Features: ...


def check_size(tokenizer: Any, rows: int) -> None:
    """
    Raises:
        MalformedFileError: too many tokens for an embedding table of `rows`, or far too few.
    """
    # An empty directory gives a tokenizer of two tokens without an error.
    if not rows // 2 <= len(tokenizer) <= rows or max(tokenizer.get_vocab().values()) >= rows:
        raise MalformedFileError(
            f"The tokenizer has {len(tokenizer)} tokens but the embedding table {rows} rows."
        )
