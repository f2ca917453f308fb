"""CLIP text towers, LongCLIP's included: causal attention, pooled at the EOS position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from hf_amdet.encoders.base import Features, Tokens
from hf_amdet.encoders.tower import ModelTower, check_size
from hf_amdet.errors import MalformedFileError

LEGACY_EOS = 2
"""`eos_token_id` in configs from before transformers 4.31, where it was wrong and ignored."""


class ClipTower(ModelTower):
    """A frozen `CLIPTextModel` with its `CLIPTokenizer`, as a `TextTower`."""

    family: ClassVar[str] = "clip"
    padded: ClassVar[bool] = False

    def tokenize(self, prompts: Sequence[str], *, length: int, reserve: int = 0) -> Tokens:
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=length - reserve,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        eos = self.model.config.eos_token_id
        # As the model's own forward: with the legacy value it pools at the highest id, else at
        # the first EOS (the padding token often is EOS itself).
        marks = ids if eos == LEGACY_EOS else (ids == eos).int()
        ends = marks.argmax(dim=-1)
        # Nothing behind EOS reaches the pooled feature, so any token serves as padding.
        ids = torch.cat([ids, ids[:, -1:].expand(-1, reserve)], dim=1)
        return Tokens(ids.to(self.device), ends.to(self.device))

    @staticmethod
    def check_tokenizer(tokenizer: Any, sizes: Any) -> None:
        check_size(tokenizer, sizes.vocab_size)
        # Pooled at the first position, every prompt would look the same.
        for ids in tokenizer(["a", "a b"]).input_ids:
            last = len(ids) - 1
            if ids[0] != tokenizer.bos_token_id or ids.index(tokenizer.eos_token_id) != last:
                raise MalformedFileError(
                    "The tokenizer does not put BOS in front of a prompt and EOS behind it."
                )
        eos, words = tokenizer.eos_token_id, tokenizer.backend_tokenizer.get_vocab(False)
        # With the legacy value the model pools at the highest id: that has to be EOS.
        highest = max(*words.values(), tokenizer.bos_token_id, tokenizer.pad_token_id or 0)
        if sizes.eos_token_id == LEGACY_EOS and eos < highest:
            raise MalformedFileError(
                f"The model pools at the highest token, but the tokenizer ends prompts with {eos}."
            )
        if sizes.eos_token_id not in (LEGACY_EOS, eos):
            raise MalformedFileError(
                f"The model pools at token {sizes.eos_token_id} (eos_token_id of config.json), "
                f"but the tokenizer ends prompts with {eos}."
            )

    def encode(self, states: Tensor, ends: Tensor) -> Features:
        mask = create_causal_mask(
            config=self.model.config,
            inputs_embeds=states,
            attention_mask=None,
            past_key_values=None,
        )
        encoded = self.model.encoder(inputs_embeds=states, attention_mask=mask, is_causal=True)
        hidden: Tensor = self.model.final_layer_norm(encoded.last_hidden_state)
        rows = torch.arange(len(hidden), device=hidden.device)
        return Features(hidden, hidden[rows, ends])
