"""SigLIP and SigLIP 2 text towers: every position sees every other, pooled at the last one.

They are trained, and used, on prompts that are padded to the whole context without a mask, so
padding is part of what they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_amdet.encoders.base import Features, Tokens
from hf_amdet.encoders.tower import ModelTower, check_size
from hf_amdet.errors import MalformedFileError


class SiglipTower(ModelTower):
    """A frozen `SiglipTextModel` with its tokenizer, as a `TextTower`.

    The text model of SigLIP 2 has the same layers and names and is read as one.
    """

    family: ClassVar[str] = "siglip"
    padded: ClassVar[bool] = True

    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens:
        tokenizer = self.tokenizer
        # EOS behind the text and padding on the right, whatever side and special tokens the
        # repo's settings ask for.
        ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
        for row, tokens in enumerate(self.read(prompts)):
            kept = [*tokens[: length - reserve - 1], tokenizer.eos_token_id]
            ids[row, : len(kept)] = torch.tensor(kept)
        ends = torch.full((len(prompts),), length - 1)
        return Tokens(ids.to(self.device), ends.to(self.device))

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        # Lower case, as both generations were trained.
        return super().read([text.lower() for text in texts])

    @staticmethod
    def check_tokenizer(tokenizer: Any, sizes: Any) -> None:
        check_size(tokenizer, sizes.vocab_size)
        for role, row in (("EOS", tokenizer.eos_token_id), ("padding", tokenizer.pad_token_id)):
            if row is None or not 0 <= row < sizes.vocab_size:
                raise MalformedFileError(
                    f"The tokenizer names no {role} token that is in the embedding table."
                )
        # Were every word unknown or cut away, prompts of equal length would look the same.
        read = tokenizer(["a cat", "a dog"], add_special_tokens=False)["input_ids"]
        if read[0] == read[1]:
            raise MalformedFileError("The tokenizer reads different prompts as the same tokens.")

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        encoded = self.model.encoder(inputs_embeds=states, attention_mask=None)
        hidden: Tensor = self.model.final_layer_norm(encoded.last_hidden_state)
        rows = torch.arange(len(hidden), device=hidden.device)
        return Features(hidden, self.model.head(hidden[rows, ends]))
