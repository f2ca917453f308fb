"""A text encoder and its tokenizer, and what each kind of tower does in its own way."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2Tokenizer,
    SiglipTextModel,
)

ATTENTION = "eager"
"""On CPUs the backward pass of fused attention takes five times as long at these sizes."""


class Tower(ABC):
    """A text encoder with its tokenizer: captions -> features, differentiable."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_class: ClassVar[type[PreTrainedModel]]
    tokenizer_class: ClassVar[type[PreTrainedTokenizerBase]]
    always_full: ClassVar[bool]
    """Whether padding changes the features, so that every prompt is padded to the context."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def ids(self, captions: Sequence[str], *, full: bool = False) -> Tensor:
        """Token ids `[B, L]`; `full` pads to the context, else to what features need."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length" if full or self.always_full else True,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        return ids

    @abstractmethod
    def embeddings(self, captions: Sequence[str]) -> Tensor:
        """Projected embeddings `[B, P]`, what is matched to the teacher's."""

    @abstractmethod
    def pooled(self, captions: Sequence[str]) -> Tensor:
        """Pooled features before the projection, `[B, D]`."""

    @abstractmethod
    def sequence(self, captions: Sequence[str]) -> Tensor:
        """Feature sequences `[B, L, D]` at full context."""

    def trainable_copy(self) -> Self:
        return type(self)(copy.deepcopy(self.model).requires_grad_(True), self.tokenizer)

    @classmethod
    def blank(cls, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Self:
        """An untrained tower."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # transformers initialises from the global generator
            return cls(cls.initial(config), tokenizer)

    @classmethod
    def initial(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """The architecture with initial weights."""
        model: PreTrainedModel = cls.model_class._from_config(config, attn_implementation=ATTENTION)
        return model

    @classmethod
    def load(cls, folder: Path) -> Self:
        model = cls.model_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=ATTENTION,
        )
        tokenizer = cls.tokenizer_class.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), tokenizer)


class ClipTower(Tower):
    """CLIP and LongCLIP: causal attention and EOS pooling make padding irrelevant to pooling."""

    model: CLIPTextModelWithProjection
    model_class = CLIPTextModelWithProjection
    tokenizer_class = CLIPTokenizer
    always_full = False

    def embeddings(self, captions: Sequence[str]) -> Tensor:
        embeddings: Tensor = self.model(input_ids=self.ids(captions)).text_embeds
        return embeddings

    def pooled(self, captions: Sequence[str]) -> Tensor:
        features: Tensor = self.model.text_model(input_ids=self.ids(captions)).pooler_output
        return features

    def sequence(self, captions: Sequence[str]) -> Tensor:
        ids = self.ids(captions, full=True)
        features: Tensor = self.model.text_model(input_ids=ids).last_hidden_state
        return features

    @classmethod
    def initial(cls, config: PreTrainedConfig) -> PreTrainedModel:
        model = super().initial(config)
        assert isinstance(model, CLIPTextModelWithProjection)
        # CLIP's own initial scale is made for 512 and wider; here it starves the first layers.
        torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.05)
        return model


class SiglipTower(Tower):
    """SigLIP: attention sees the padding, and the last position is the pooled one."""

    model: SiglipTextModel
    model_class = SiglipTextModel
    tokenizer_class = Siglip2Tokenizer
    always_full = True

    def embeddings(self, captions: Sequence[str]) -> Tensor:
        embeddings: Tensor = self.model(input_ids=self.ids(captions)).pooler_output
        return embeddings

    def pooled(self, captions: Sequence[str]) -> Tensor:
        return self.sequence(captions)[:, -1]

    def sequence(self, captions: Sequence[str]) -> Tensor:
        features: Tensor = self.model(input_ids=self.ids(captions)).last_hidden_state
        return features


_KINDS: dict[str, type[Tower]] = {"clip_text_model": ClipTower, "siglip_text_model": SiglipTower}


def load_tower(folder: Path) -> Tower:
    """A tower in fp32, ready for training or measuring."""
    config = json.loads((folder / "config.json").read_text())
    return _KINDS[config["model_type"]].load(folder)


def save_tower(tower: Tower, folder: Path) -> None:
    """Weights in fp16, configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tower.model.config.architectures = [tower.model_class.__name__]
    tower.model.config.save_pretrained(folder)
    tower.tokenizer.save_pretrained(folder)
    weights = {name: w.detach().half().contiguous() for name, w in tower.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
