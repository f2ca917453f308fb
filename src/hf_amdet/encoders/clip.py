"""CLIP text towers: causal attention, pooled at the EOS position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.masking_utils import create_causal_mask

from hf_amdet.encoders.base import Features, Tokens

LEGACY_EOS = 2
"""`eos_token_id` in configs from before transformers 4.31, where it was wrong and ignored."""


class ClipTower(nn.Module):
    """A frozen `CLIPTextModel` with its tokenizer, as a `TextTower`."""

    def __init__(
        self, model: CLIPTextModel, tokenizer: CLIPTokenizer, projection: Tensor | None = None
    ) -> None:
        """
        Args:
            projection: `[P, D]`, applied to pooled features downstream; not by `encode`.
        """
        super().__init__()
        self.register_buffer("projection", projection)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

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

    def tokenize(self, prompts: Sequence[str], *, length: int) -> Tokens:
        encoded = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        eos = self.model.config.eos_token_id
        # As the model's own forward: with the legacy value it pools at the highest id, else at
        # the first EOS (the padding token often is EOS itself).
        marks = ids if eos == LEGACY_EOS else (ids == eos).int()
        ends = marks.argmax(dim=-1)
        return Tokens(ids.to(self.device), ends.to(self.device))

    def embed(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model.embeddings(input_ids=ids)
        return states

    def position(self, index: int) -> Tensor:
        weight: Tensor = self.model.embeddings.position_embedding.weight
        return weight[index]

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
