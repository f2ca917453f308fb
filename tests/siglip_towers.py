"""Tiny random SigLIP text towers, beside the CLIP ones of `tests.towers` and of their sizes.

The embedding table has room for the tokens of either kind of tokenizer: the SentencePiece model of
SigLIP, to which each of `WORDS` is one token, and a tokenizer.json as SigLIP 2 has it.
"""

from __future__ import annotations

import copy
import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2Config,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipTokenizer,
    SiglipVisionConfig,
    TokenizersBackend,
)

from hf_amdet.encoders.siglip import SiglipTower
from tests.towers import CONTEXT, HEADS, LAYERS, WIDTH, WORDS, fill

VOCABULARY = 160

Kind = Literal["spiece", "json"]
KINDS: tuple[Kind, ...] = ("spiece", "json")

SiglipLayout = Literal["text", "full", "text2", "full2"]
SIGLIP_LAYOUTS: tuple[SiglipLayout, ...] = ("text", "full", "text2", "full2")
"""`SiglipTextModel`; `SiglipModel` with its vision tensors; the same of SigLIP 2."""


@cache
def spiece_model(text: str = f"{' '.join(WORDS)} a photo of") -> bytes:
    """A SentencePiece model of the words of `text`, with </s> and <unk> and no other special."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text, *text.split() * 20]),
        model_writer=written,
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        eos_id=0,
        unk_id=1,
        bos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


@cache
def json_tokenizer() -> str:
    """A tokenizer.json like Gemma's: spaces are ▁, BOS and EOS are put around, case is kept."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([f"{space}{w}" for w in WORDS for space in ("", " ")], trainer)
    ids = [(token, special.index(token)) for token in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=ids
    )
    written: str = tokenizer.to_str()
    return written


def make_siglip_tokenizer(kind: Kind = "spiece") -> PreTrainedTokenizerBase:
    """As transformers makes it of the files that `save_siglip` writes."""
    if kind == "json":
        return TokenizersBackend(
            tokenizer_object=Tokenizer.from_str(json_tokenizer()),
            pad_token="<pad>",
            eos_token="<eos>",
            bos_token="<bos>",
            unk_token="<unk>",
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spiece.model"
        file.write_bytes(spiece_model())
        return SiglipTokenizer(vocab_file=str(file))


def make_siglip_config(**changes: Any) -> SiglipTextConfig:
    return SiglipTextConfig(**_SIZES | changes)


_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}


def make_siglip_model(seed: int = 0, *, drift: float = 0.0, **changes: Any) -> SiglipTextModel:
    """Random weights whose pooled features depend on the prompt, `drift` times 100 % off."""
    model = SiglipTextModel(make_siglip_config(**changes))
    fill(model, seed, drift)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Padding outnumbers the words, so attention must tell them apart.
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
                weight.mul_(2)
    model.eval()
    return model


def make_siglip_tower(seed: int = 0, kind: Kind = "spiece", **changes: Any) -> SiglipTower:
    """A tower in memory, attending as towers loaded onto a CPU do."""
    model = make_siglip_model(seed, **changes)
    model.set_attn_implementation("eager")
    return SiglipTower(model, make_siglip_tokenizer(kind))


def save_siglip(
    model: SiglipTextModel,
    folder: Path,
    layout: SiglipLayout = "text",
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "1GB",
    kind: Kind | None = "spiece",
) -> Path:
    """Write `model` as a checkpoint folder; None for `kind` leaves the tokenizer out."""
    whole = _embody(model, layout)
    nn.Module.to(whole, dtype)
    whole.save_pretrained(folder, max_shard_size=shard)
    if kind is not None:
        make_siglip_tokenizer(kind).save_pretrained(folder)
    return folder


def _embody(model: SiglipTextModel, layout: SiglipLayout) -> PreTrainedModel:
    """A copy of `model` inside the class that saves the layout."""
    sizes = {name: getattr(model.config, name) for name in (*_SIZES, *_OTHER)}
    vision: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "patch_size": 8,
    }
    if layout == "text":
        return copy.deepcopy(model)
    if layout == "text2":
        text2 = Siglip2TextModel(Siglip2TextConfig(**sizes))
        text2.load_state_dict(model.state_dict())
        return text2
    if layout == "full":
        images = SiglipVisionConfig(**vision, image_size=16)
        full = SiglipModel(
            SiglipConfig(text_config=SiglipTextConfig(**sizes), vision_config=images)
        )
        full.text_model.load_state_dict(model.state_dict())
        return full
    images2 = Siglip2VisionConfig(**vision, num_patches=4)
    full2 = Siglip2Model(
        Siglip2Config(text_config=Siglip2TextConfig(**sizes), vision_config=images2)
    )
    full2.text_model.load_state_dict(model.state_dict())
    return full2


_OTHER = ("hidden_act", "layer_norm_eps", "projection_size")
