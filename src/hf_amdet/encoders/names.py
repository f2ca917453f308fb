"""Where the tensors of a text tower stand in its checkpoint, under which of their names.

Two dialects: the names of transformers, with or without the prefixes of its model classes, and
those of OpenCLIP and of the original CLIP, which pack query, key and value into one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hf_amdet.encoders.config import PROJECTION
from hf_amdet.errors import WeightsMismatchError

Dialect = Literal["transformers", "open_clip"]

_PREFIXES = ("text_model.", "clip.", "siglip.", "siglip2.")
_OWN = ("embeddings.", "encoder.layers.", "final_layer_norm.")
_BUFFERS = ("embeddings.position_ids",)
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
LONG_CLIP_KEPT = 20
"""LongCLIP as released keeps CLIP's first positions; the stretched ones are a second tensor."""
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, and how a tensor of the tower comes out of it.

    Attributes:
        third: which third of the rows of a packed matrix is meant; None for all of it.
        rest: another tensor of the same shape, whose rows count from `LONG_CLIP_KEPT` on.
    """

    name: str
    third: int | None = None
    transposed: bool = False
    rest: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint that is needed."""
        return (self.name,) if self.rest is None else (self.name, self.rest)

    def shape(self, held: Sequence[int]) -> tuple[int, ...]:
        """The shape that comes out of one of shape `held`."""
        if self.third is not None and held:
            rows, left = divmod(held[0], 3)
            return () if left else (rows, *held[1:])
        return tuple(reversed(held)) if self.transposed else tuple(held)

    def take(self, tensor: Tensor) -> Tensor:
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T if self.transposed else tensor


def locate(
    found: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    *,
    prefix: str = "",
    dialect: Dialect = "transformers",
) -> dict[str, Source]:
    """Where each expected tensor stands, or what does not fit.

    Args:
        found: shapes by the checkpoint's names, as its safetensors header says.
        expected: shapes by the names of the bare text model; -1 fits any size.
        prefix: what the names of this tower's tensors begin with, in a file that holds others.

    Raises:
        WeightsMismatchError: tensors missing, of another shape, or twice.
    """
    own = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
    if dialect == "open_clip":
        sources = {name: _from_open_clip(name, own) for name in expected}
    else:
        plain = _plain_names(own, expected)
        _refuse_others(plain, expected)
        sources = {name: Source(plain[name]) if name in plain else None for name in expected}
    # What is searched lies in front of the projection: the tower can be read without it.
    missing = sorted(
        name for name, source in sources.items() if source is None and name != PROJECTION
    )
    if missing:
        raise WeightsMismatchError(
            f"{len(missing)} text tensors are missing from the checkpoint, first {missing[0]}. "
            "Upload the complete text encoder."
        )
    located = {name: source for name, source in sources.items() if source is not None}
    for name, source in located.items():
        for stands in source.names:
            held, shape = source.shape(found[stands]), expected[name]
            if len(held) != len(shape) or any(
                w not in (-1, h) for w, h in zip(shape, held, strict=True)
            ):
                raise WeightsMismatchError(
                    f"{stands} has shape {list(found[stands])}; config.json asks for "
                    f"{list(shape)} as {name}."
                )
    return located


def _plain_names(own: Mapping[str, str], expected: Mapping[str, object]) -> dict[str, str]:
    """The checkpoint's names by the bare ones."""
    names: dict[str, str] = {}
    for name, whole in own.items():
        plain = _plain(name)
        # A second tower under the other prefix could be the one that is used: scan neither.
        if names.setdefault(plain, whole) != whole and plain in expected:
            raise WeightsMismatchError(
                f"The checkpoint holds both {names[plain]} and {whole}; which of them counts is "
                "not defined. Upload one text tower."
            )
    return names


def _refuse_others(plain: Mapping[str, str], expected: Mapping[str, object]) -> None:
    """Refuse what stands among a tower's tensors and is none: some loader may use it.

    Layers beyond the config's number, scales of quantised weights.
    """
    for name, whole in plain.items():
        if name.startswith(_OWN) and name not in expected and name not in _BUFFERS:
            raise WeightsMismatchError(
                f"{whole} is no tensor of the text tower that config.json describes, and a loader "
                "may use it all the same. Upload the text encoder as transformers saves it."
            )


def _plain(name: str) -> str:
    """The bare name; transformers strips the prefixes of its model classes in any nesting."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _from_open_clip(name: str, own: Mapping[str, str]) -> Source | None:
    if name == PROJECTION:
        # A matrix that is multiplied from the right, or a linear layer.
        if "text_projection" in own:
            return Source(own["text_projection"], transposed=True)
        return Source(own[PROJECTION]) if PROJECTION in own else None
    third = rest = None
    theirs = _OPEN_CLIP.get(name)
    if theirs == "positional_embedding":
        rest = own.get("positional_embedding_res")
    if layer := _LAYER.fullmatch(name):
        number, module, kind = layer.groups()
        block = f"transformer.resblocks.{number}"
        if module in _PACKED:
            third, theirs = _PACKED.index(module), f"{block}.attn.in_proj_{kind}"
        else:
            theirs = f"{block}.{_OPEN_CLIP_LAYER[module]}.{kind}"
    if theirs is None or theirs not in own:
        return None
    return Source(own[theirs], third, rest=rest)
