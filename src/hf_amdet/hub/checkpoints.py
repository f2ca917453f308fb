"""Safetensors files without a config: which text towers their tensor names and shapes show.

Single-file Stable Diffusion checkpoints, bare `clip_l.safetensors` files and OpenCLIP models say
nothing about themselves but names and shapes. A tower is known by its token table, whatever
stands in front of its name; what the file leaves open is filled in as loaders of such files do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.files import Dialect, Header
from hf_amdet.hub.header import shown

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")

_TABLE = "embeddings.token_embedding.weight"
_OPEN_CLIP_TABLE = "token_embedding.weight"
_LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d{1,9})\.")
_CUSTOM = re.compile(
    r"cls_emb|text_projection\.bias|transformer\.resblocks\.\d+\.(?!"
    r"(?:(?:ln_[12]|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.|attn\.in_proj_)(?:weight|bias)\Z).*"
)
"""Tensors of OpenCLIP's text models that are no CLIP: CoCa, SigLIP, layer scale, custom blocks."""
_OPENAI_WIDEST = 768
"""OpenAI's own towers, with their quick GELU, are no wider: wider ones are taken for OpenCLIP's."""
_MAX_TOWERS = 8
"""Pipelines have up to four text encoders."""
_SIZES = {"context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True)
class FoundTower:
    """A text tower in a file that holds other things too.

    Attributes:
        prefix: what the names of its tensors begin with.
        config: its sizes as a config.json would state them.
    """

    prefix: str
    dialect: Dialect
    architecture: str
    config: Mapping[str, Any]


def find_towers(
    header: Header, name: str, open_clip: Mapping[str, Any] | None = None
) -> Iterator[FoundTower]:
    """Every text tower of a file, by its header.

    Args:
        name: of the file, for messages.
        open_clip: the parsed open_clip_config.json, where the file is the one it is about.

    Raises:
        MalformedFileError: a tower whose shapes make no sense, or settings that are not known; more
            towers than a pipeline has.
    """
    tables = [tensor for tensor in sorted(header) if tensor.endswith(_OPEN_CLIP_TABLE)]
    if len(tables) > _MAX_TOWERS:
        raise MalformedFileError(
            f"{name} holds {len(tables)} tables of tokens; more than {_MAX_TOWERS} are not read."
        )
    for tensor in tables:
        if tensor.endswith(_TABLE):
            prefix = tensor.removesuffix(_TABLE)
            yield _transformers_tower(header, prefix, name)
        else:
            prefix = tensor.removesuffix(_OPEN_CLIP_TABLE)
            if f"{prefix}positional_embedding" in header:
                yield _open_clip_tower(header, prefix, name, open_clip)


def _transformers_tower(header: Header, prefix: str, name: str) -> FoundTower:
    own = _own(header, prefix)
    sizes = _sizes(own, _TABLE, "embeddings.position_embedding.weight", "mlp.fc1.weight", name)
    # Below the model, where the projection stands beside it.
    outer = prefix.removesuffix("text_model.")
    if "head.weight" in own:
        heads = 16 if sizes["hidden_size"] == 1152 else sizes["hidden_size"] // 64
        projection = _shape(own, "head.weight", 2, name)[0]
        extra = {"num_attention_heads": heads, "projection_size": projection}
        config = {"model_type": "siglip_text_model", **sizes, **extra}
        return FoundTower(outer, "transformers", "SiglipTextModel", config)
    projected = f"{outer}text_projection.weight" in header
    return FoundTower(outer, "transformers", _clip(projected), _clip_config(sizes))


def _open_clip_tower(
    header: Header, prefix: str, name: str, open_clip: Mapping[str, Any] | None
) -> FoundTower:
    own = _own(header, prefix)
    if custom := next((tensor for tensor in own if _CUSTOM.fullmatch(tensor)), None):
        raise MalformedFileError(
            f"{name} holds {shown(custom)}: text models of OpenCLIP with settings of their own are "
            "not read."
        )
    sizes = _sizes(own, _OPEN_CLIP_TABLE, "positional_embedding", "mlp.c_fc.weight", name)
    config = _clip_config(sizes)
    if open_clip is not None:
        config |= _declared(open_clip)
    projected = "text_projection" in own or "text_projection.weight" in own
    return FoundTower(prefix, "open_clip", _clip(projected), config)


def _clip(projected: bool) -> str:
    return "CLIPTextModelWithProjection" if projected else "CLIPTextModel"


def _clip_config(sizes: Mapping[str, int]) -> dict[str, Any]:
    width = sizes["hidden_size"]
    return {
        "model_type": "clip_text_model",
        **sizes,
        "num_attention_heads": width // 64,
        "hidden_act": "quick_gelu" if width <= _OPENAI_WIDEST else "gelu",
        # Pooled at the highest token id, as the original CLIP does.
        "eos_token_id": 2,
    }


def _declared(open_clip: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenCLIP's config says about heads and activation.

    Raises:
        MalformedFileError: a setting under which OpenCLIP builds another text model.
    """
    model = open_clip.get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(text, Mapping):
        raise MalformedFileError(f"{OPEN_CLIP_CONFIG} has no model_cfg with a text_cfg.")
    others = sorted(key for key in text if key not in _SIZES)
    if others:
        raise MalformedFileError(
            f"{OPEN_CLIP_CONFIG}: text_cfg sets {shown(others[0])}, and text models of OpenCLIP "
            "with settings of their own are not read."
        )
    heads, quick = text.get("heads", 8), model.get("quick_gelu", False)
    if type(quick) is not bool:
        raise MalformedFileError(f"{OPEN_CLIP_CONFIG}: quick_gelu is {shown(quick)}.")
    return {"num_attention_heads": heads, "hidden_act": "quick_gelu" if quick else "gelu"}


def _own(header: Header, prefix: str) -> Header:
    return {
        name.removeprefix(prefix): info for name, info in header.items() if name.startswith(prefix)
    }


def _sizes(own: Header, table: str, positions: str, mlp: str, name: str) -> dict[str, int]:
    """The sizes that the shapes of a tower's tensors show."""
    vocabulary, width = _shape(own, table, 2, name)
    (context, _) = _shape(own, positions, 2, name)
    layers = {int(found[1]) for tensor in own if (found := _LAYER.match(tensor))}
    first = next((tensor for tensor in own if _LAYER.match(tensor) and tensor.endswith(mlp)), None)
    if first is None or layers != set(range(len(layers))):
        raise MalformedFileError(
            f"{name} holds a table of tokens, but no complete stack of text layers with it."
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(own, first, 2, name)[0],
        "num_hidden_layers": len(layers),
        "max_position_embeddings": context,
    }


def _shape(own: Header, tensor: str, dimensions: int, name: str) -> tuple[int, ...]:
    info = own.get(tensor)
    if info is None or len(info.shape) != dimensions:
        shape = "not there" if info is None else f"of shape {list(info.shape)}"
        raise MalformedFileError(
            f"{name} looks like it holds a text tower, but {shown(tensor)} is {shape}."
        )
    return info.shape
