"""A repo's config.json -> the sizes of its text tower, and nothing else of it.

What a config may say besides sizes (remote code, kernels from the Hub, other weights) is never
handed on, because a scanned repo must not choose it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.siglip import SiglipTower
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import MalformedFileError

PROJECTION = "text_projection.weight"

_LIMITS = {
    "vocab_size": (1, 1_000_000),
    "hidden_size": (1, 8_192),
    "intermediate_size": (1, 65_536),
    "num_hidden_layers": (1, 96),
    "num_attention_heads": (1, 256),
    "max_position_embeddings": (4, 4_096),
}
"""Least and largest believable sizes; a config beyond them is refused before memory is spent. A
sequence has to hold BOS, a word, EOS and a trigger."""

_FLAT = ("clip_text_model", "siglip_text_model", "siglip2_text_model")
_NESTED = ("clip", "siglip", "siglip2")
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Family:
    """The classes that a family of text towers is built from."""

    tower: type[ModelTower]
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    projected: tuple[str, ...] = ()
    """Architectures that put a projection behind the pooled feature."""

    @property
    def name(self) -> str:
        return self.tower.family


CLIP = Family(
    ClipTower, CLIPTextConfig, CLIPTextModel, ("CLIPModel", "CLIPTextModelWithProjection")
)
SIGLIP = Family(SiglipTower, SiglipTextConfig, SiglipTextModel)


def family_of(architecture: str) -> Family:
    """The family of an architecture as `hub.resolve` names it."""
    return SIGLIP if architecture.startswith("Siglip") else CLIP


def text_config(config: Mapping[str, Any], family: Family) -> Any:
    """The sizes that `config` (a parsed, untrusted config.json) names, as `family.config`.

    Raises:
        MalformedFileError: a size is missing a sane value or the activation is unknown.
    """
    sizes = _settings(_text_of(config), family)
    older = config.get("text_config_dict")
    # CLIPModel follows text_config_dict, CLIPTextModel text_config: both must say the same.
    if older is not None:
        for name in (*_LIMITS, "layer_norm_eps", "hidden_act"):
            if getattr(_settings(older, family), name) != getattr(sizes, name):
                raise MalformedFileError(
                    f"config.json: text_config_dict and text_config differ in {name}."
                )
    return sizes


def _text_of(config: Mapping[str, Any]) -> Any:
    """The part of a config.json that is about the text tower.

    Where a config is nested that should be flat, or the other way round, loaders differ in what
    they follow.
    """
    kind, nested = config.get("model_type"), "text_config" in config
    if (kind in _FLAT and nested) or (kind in _NESTED and not nested):
        raise MalformedFileError(
            f"config.json: there is {'a' if nested else 'no'} text_config in a {kind}."
        )
    return config.get("text_config", config)


def expected_shapes(config: Mapping[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the text tensors that a checkpoint of `config` must hold.

    Names are those of the bare text model, plus `text_projection.weight` where the architecture
    has one (its rows are not checked: -1).
    """
    family = family_of(architecture)
    sizes = text_config(config, family)
    with torch.device("meta"):
        model = family.model(sizes)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if architecture in family.projected:
        shapes[PROJECTION] = (-1, sizes.hidden_size)
    return shapes


def _settings(text: Any, family: Family) -> Any:
    if not isinstance(text, Mapping):
        raise MalformedFileError("config.json: text_config is not an object.")
    if "attribute_map" in text:
        raise MalformedFileError("config.json: attribute_map renames settings.")
    # SigLIP's defaults lie outside of its vocabulary, of which transformers warns; none is used.
    unused: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    sizes: Any = family.config() if family is CLIP else family.config(**unused)
    for name, limits in _LIMITS.items():
        setattr(sizes, name, _size(text.get(name, getattr(sizes, name)), name, limits))
    if sizes.hidden_size % sizes.num_attention_heads:
        raise MalformedFileError("config.json: hidden_size does not divide into attention heads.")
    if family is SIGLIP:
        # None and nothing mean the width.
        projected = text.get("projection_size")
        projected = sizes.hidden_size if projected is None else projected
        sizes.projection_size = _size(projected, "projection_size", _LIMITS["hidden_size"])
    epsilon = text.get("layer_norm_eps", sizes.layer_norm_eps)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise MalformedFileError(f"config.json: layer_norm_eps is {epsilon!r}.")
    sizes.layer_norm_eps = float(epsilon)
    activation = text.get("hidden_act", sizes.hidden_act)
    if activation not in _ACTIVATIONS:
        raise MalformedFileError(
            f"config.json: hidden_act is {str(activation)[:40]!r}, "
            f"not one of {', '.join(_ACTIVATIONS)}."
        )
    sizes.hidden_act = activation
    if family is CLIP:
        eos = text.get("eos_token_id", sizes.eos_token_id)
        if type(eos) is not int or not 0 <= eos < sizes.vocab_size:
            raise MalformedFileError(
                f"config.json: eos_token_id is {eos!r}, not in the vocabulary."
            )
        sizes.eos_token_id = eos
    return sizes


def _size(value: Any, name: str, limits: tuple[int, int]) -> int:
    least, most = limits
    if type(value) is not int or not least <= value <= most:
        raise MalformedFileError(f"config.json: {name} is {value!r}, not in {least}..{most}.")
    return value
