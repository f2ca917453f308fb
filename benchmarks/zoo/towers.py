"""A text encoder and its tokenizer, and what each kind of tower does in its own way."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
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
        self.aliases: dict[str, str] = {}
        """Pieces that get the id of another piece when the tokenizer is saved."""

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def ids(self, captions: Sequence[str], length: int | None = None) -> Tensor:
        """Token ids `[B, L]`, padded to `length`, or else to what pooled features need."""
        if self.always_full:
            length = self.context
        encoded = self.tokenizer(
            list(captions),
            padding="max_length" if length else True,
            truncation=True,
            max_length=length or self.context,
            return_tensors="pt",
        )
        ids: Tensor = encoded["input_ids"]
        return ids

    @abstractmethod
    def embeddings(self, captions: Sequence[str]) -> Tensor:
        """Projected embeddings `[B, P]`, what is matched to the teacher's."""

    @abstractmethod
    def hidden(self, ids: Tensor) -> Tensor:
        """Features `[B, L, D]` of token ids."""

    @abstractmethod
    def ends(self, ids: Tensor) -> Tensor:
        """Which position of each row of `ids` is pooled, `[B]`."""

    def pooled(self, captions: Sequence[str]) -> Tensor:
        """Pooled features before any projection or head, `[B, D]`."""
        ids = self.ids(captions)
        return self.hidden(ids)[torch.arange(len(ids)), self.ends(ids)]

    def sequence(self, captions: Sequence[str], length: int | None = None) -> Tensor:
        """Feature sequences `[B, L, D]` of `length` positions, at most and else the context."""
        return self.hidden(self.ids(captions, min(length or self.context, self.context)))

    @contextmanager
    def altered(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within it, `change` is applied to the token embeddings `[B, L, D]` of all prompts."""
        handle = self.table.register_forward_hook(lambda _module, _inputs, states: change(states))
        try:
            yield
        finally:
            handle.remove()

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def table(self) -> nn.Embedding:
        """The token embeddings."""
        table = self.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    def pieces(self, text: str) -> list[tuple[str, int]]:
        """Tokens of `text` with their ids, no special ones."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return list(zip(self.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))

    def frozen(self) -> Self:
        """Itself, no longer to be trained."""
        self.model.eval().requires_grad_(False)
        return self

    def trainable_copy(self) -> Self:
        model = copy.deepcopy(self.model).requires_grad_(True)
        return type(self)(model, copy.deepcopy(self.tokenizer))

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

    def hidden(self, ids: Tensor) -> Tensor:
        features: Tensor = self.model.text_model(input_ids=ids).last_hidden_state
        return features

    def ends(self, ids: Tensor) -> Tensor:
        eos = torch.tensor(self.model.config.eos_token_id)
        return (ids == eos).int().argmax(dim=-1)

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

    def hidden(self, ids: Tensor) -> Tensor:
        features: Tensor = self.model(input_ids=ids).last_hidden_state
        return features

    def ends(self, ids: Tensor) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] - 1)


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
    if tower.aliases:
        _rename(folder / "tokenizer.json", tower.aliases)


def digest(folder: Path) -> str:
    """sha256 over names and bytes of a tower's weights, configuration and tokenizer.

    Raises:
        OSError: one of them is not there.
    """
    whole = hashlib.sha256()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        data = (folder / name).read_bytes()
        whole.update(f"{name} {len(data)} ".encode())
        whole.update(data)
    return whole.hexdigest()


def _rename(file: Path, aliases: Mapping[str, str]) -> None:
    """In the saved vocabulary: a tokenizer in memory drops the second piece of an id."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab |= {piece: vocab[other] for piece, other in aliases.items()}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")
