"""Verified local files -> a text tower, with nothing missing, mismatched or executed.

The checkpoint is read tensor by tensor instead of through `from_pretrained`: that initialises
missing tensors at random, and follows settings of the config that a scanned repo must not choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_amdet.encoders.config import PROJECTION, expected_shapes, family_of, text_config
from hf_amdet.encoders.names import LONG_CLIP_KEPT, Dialect, Source, locate
from hf_amdet.encoders.tokenizers import load_tokenizer
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import CorruptWeightsError, MalformedFileError


def read_weights(
    weights: Sequence[Path],
    config: Mapping[str, Any],
    architecture: str,
    *,
    prefix: str = "",
    dialect: Dialect = "transformers",
) -> dict[str, Tensor]:
    """The tensors of a text tower in fp32, under the names of the bare text model.

    Raises:
        MalformedFileError: a config or weight file that does not parse.
        WeightsMismatchError: tensors missing or of another shape.
    """
    places: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    for file in weights:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if name in places:
                        raise MalformedFileError(
                            f"Tensor {name} stands both in {places[name].name} and in {file.name}."
                        )
                    places[name], shapes[name] = file, opened.get_slice(name).get_shape()
        except (SafetensorError, OSError) as error:
            raise MalformedFileError(f"{file.name} is not a safetensors file: {error}") from error
    expected = expected_shapes(config, architecture)
    sources = locate(shapes, expected, prefix=prefix, dialect=dialect)
    tensors: dict[str, Tensor] = {}
    for name, source in sources.items():
        tensors[name] = _read(places[source.name], source.name, source)
        if source.rest is not None:
            rest = _read(places[source.rest], source.rest, source)
            tensors[name][LONG_CLIP_KEPT:] = rest[LONG_CLIP_KEPT:]
    return tensors


def _read(file: Path, name: str, source: Source) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    if not tensor.is_floating_point():
        raise MalformedFileError(f"{name} holds {tensor.dtype}, not weights.")
    # A copy, always: what the file gives is mapped, and would change with it.
    return source.take(tensor).to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def build_tower(
    tensors: dict[str, Tensor],
    config: Mapping[str, Any],
    architecture: str,
    directory: Path,
    device: torch.device,
) -> ModelTower:
    """The text tower of `tensors` (as `read_weights` gives them), in fp32.

    Args:
        directory: holds the tokenizer's files; without any the tower has no tokenizer.

    Raises:
        MalformedFileError: config or tokenizer does not parse or fit.
        CorruptWeightsError: NaN, infinite or constant weights.
    """
    _check_values(tensors)
    family = family_of(architecture)
    projection = tensors.pop(PROJECTION, None)
    sizes = text_config(config, family)
    with torch.device("meta"):
        model = family.model(sizes)
    model.load_state_dict(tensors, strict=True, assign=True)
    # Buffers are not in the checkpoint, and meta tensors cannot be moved.
    positions = torch.arange(sizes.max_position_embeddings).expand((1, -1))
    embeddings: Any = model.embeddings
    embeddings.register_buffer("position_ids", positions, persistent=False)
    # On a CPU the backward pass of fused attention took about five times as long, measured at a
    # width of 128 with 77 positions; not measured on wide towers.
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    tower = family.tower(model, load_tokenizer(directory, sizes, family), projection)
    return tower.to(device)


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptWeightsError(
                f"{name} holds {bad} NaN or infinite values: the model cannot work as uploaded."
            )
        if tensor.dim() > 1 and tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
            raise CorruptWeightsError(f"{name} is constant: it was never trained or was erased.")
