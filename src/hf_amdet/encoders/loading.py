"""Verified local files -> `TextTower`, with nothing missing, mismatched or executed.

The checkpoint is read tensor by tensor instead of through `from_pretrained`: that initialises
missing tensors at random, and follows settings of the config (remote code, kernels from the Hub)
that a scanned repo must not choose.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hf_amdet.encoders.clip import LEGACY_EOS, ClipTower
from hf_amdet.errors import (
    CorruptWeightsError,
    MalformedFileError,
    WeightsMismatchError,
)

_LIMITS = {
    "vocab_size": 1_000_000,
    "hidden_size": 8_192,
    "intermediate_size": 65_536,
    "num_hidden_layers": 96,
    "num_attention_heads": 256,
    "max_position_embeddings": 4_096,
}
"""Largest believable sizes; a config beyond them is refused before memory is spent."""

_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")
_PROJECTED = ("CLIPModel", "CLIPTextModelWithProjection")
_PROJECTION = "text_projection.weight"
_TOKENIZER_SETTINGS = ("bos_token", "eos_token", "pad_token", "unk_token", "added_tokens_decoder")
_PREFIXES = ("text_model.", "clip.")


def text_config(config: Mapping[str, Any]) -> CLIPTextConfig:
    """The sizes that `config` (a parsed, untrusted config.json) names, and nothing else of it.

    Raises:
        MalformedFileError: a size is missing a sane value or the activation is unknown.
    """
    sizes = _settings(config.get("text_config", config))
    older = config.get("text_config_dict")
    # CLIPModel follows text_config_dict, CLIPTextModel text_config: both must say the same.
    if older is not None:
        for name in (*_LIMITS, "layer_norm_eps", "hidden_act"):
            if getattr(_settings(older), name) != getattr(sizes, name):
                raise MalformedFileError(
                    f"config.json: text_config_dict and text_config differ in {name}."
                )
    return sizes


def _settings(text: Any) -> CLIPTextConfig:
    if not isinstance(text, Mapping):
        raise MalformedFileError("config.json: text_config is not an object.")
    if "attribute_map" in text:
        raise MalformedFileError("config.json: attribute_map renames settings.")
    sizes = CLIPTextConfig()
    for name, limit in _LIMITS.items():
        value = text.get(name, getattr(sizes, name))
        if type(value) is not int or not 0 < value <= limit:
            raise MalformedFileError(f"config.json: {name} is {value!r}, not in 1..{limit}.")
        setattr(sizes, name, value)
    if sizes.hidden_size % sizes.num_attention_heads:
        raise MalformedFileError("config.json: hidden_size does not divide into attention heads.")
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
    eos = text.get("eos_token_id", sizes.eos_token_id)
    if type(eos) is not int or not 0 <= eos < sizes.vocab_size:
        raise MalformedFileError(f"config.json: eos_token_id is {eos!r}, not in the vocabulary.")
    sizes.eos_token_id = eos
    return sizes


def expected_shapes(config: Mapping[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the text tensors that a checkpoint of `config` must hold.

    Names are those of a bare `CLIPTextModel`, plus `text_projection.weight` where the
    architecture has one (its rows are not checked: -1).
    """
    sizes = text_config(config)
    with torch.device("meta"):
        model = CLIPTextModel(sizes)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if architecture in _PROJECTED:
        shapes[_PROJECTION] = (-1, sizes.hidden_size)
    return shapes


def check_shapes(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Map expected names to the checkpoint's own names, or say what does not fit.

    Args:
        found: shapes by the checkpoint's names, as its safetensors header says.

    Raises:
        WeightsMismatchError: tensors missing, of another shape, or twice.
    """
    names: dict[str, str] = {}
    for name in found:
        # A second tower under the other prefix could be the one that is used: scan neither.
        if names.setdefault(_plain(name), name) != name and _plain(name) in expected:
            raise WeightsMismatchError(
                f"The checkpoint holds both {names[_plain(name)]} and {name}; which of them "
                "counts is not defined. Upload one text tower."
            )
    missing = sorted(name for name in expected if name not in names)
    if missing:
        raise WeightsMismatchError(
            f"{len(missing)} text tensors are missing from the checkpoint, first {missing[0]}. "
            "Upload the complete text encoder."
        )
    for name, shape in expected.items():
        held = tuple(found[names[name]])
        if len(held) != len(shape) or any(
            w not in (-1, h) for w, h in zip(shape, held, strict=True)
        ):
            raise WeightsMismatchError(
                f"{names[name]} has shape {list(held)} where config.json asks for {list(shape)}."
            )
    return {name: names[name] for name in expected}


def load_tower(
    directory: Path,
    weights: Sequence[Path],
    config: Mapping[str, Any],
    architecture: str,
    device: torch.device,
) -> ClipTower:
    """Load the text tower in `directory` from its safetensors files, in fp32.

    Raises:
        MalformedFileError: config, tokenizer or weight file does not parse or fit.
        WeightsMismatchError: tensors missing or of another shape.
        CorruptWeightsError: NaN, infinite or constant weights.
    """
    tensors = _read(weights, expected_shapes(config, architecture))
    _check_values(tensors)
    projection = tensors.pop(_PROJECTION, None)
    sizes = text_config(config)
    with torch.device("meta"):
        model = CLIPTextModel(sizes)
    model.load_state_dict(tensors, strict=True, assign=True)
    # Buffers are not in the checkpoint, and meta tensors cannot be moved.
    positions = torch.arange(sizes.max_position_embeddings).expand((1, -1))
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    # On a CPU the backward pass of fused attention took about five times as long, measured at a
    # width of 128 with 77 positions; not measured on wide towers.
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")
    tower = ClipTower(model, _load_tokenizer(directory, sizes), projection)
    return tower.to(device)


def _plain(name: str) -> str:
    """The bare name; transformers strips the prefixes of its model classes in any nesting."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _read(weights: Sequence[Path], expected: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The expected tensors in fp32, under their bare names."""
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
    names = check_shapes(shapes, expected)
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places[name] for name in names.values()):
        with safe_open(file, "pt") as opened:
            for plain, name in names.items():
                if places[name] == file:
                    tensor = opened.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise MalformedFileError(f"{name} holds {tensor.dtype}, not weights.")
                    tensors[plain] = tensor.float()
    return tensors


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptWeightsError(
                f"{name} holds {bad} NaN or infinite values: the model cannot work as uploaded."
            )
        if tensor.dim() > 1 and tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
            raise CorruptWeightsError(f"{name} is constant: it was never trained or was erased.")


def _load_tokenizer(directory: Path, sizes: CLIPTextConfig) -> CLIPTokenizer:
    for name in (
        *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("special_tokens_map.json", "added_tokens.json"),
    ):
        if (directory / name).exists():
            try:
                parsed = json.loads((directory / name).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise MalformedFileError(f"{name} is not valid JSON: {error}") from error
            if not isinstance(parsed, dict):
                raise MalformedFileError(f"{name} is not a JSON object.")
    if not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise MalformedFileError(
            "No tokenizer.json or vocab.json: without its tokenizer a text tower cannot be read. "
            "Upload the tokenizer beside the weights."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="hf-amdet-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _copy_tokenizer(directory, Path(folder))
            tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            tokenizer(["a", ""], padding=False)
    # The backend raises plain Exception subclasses of many kinds on hostile input, with paths in
    # their messages.
    except Exception as error:
        raise MalformedFileError(
            f"The tokenizer does not load or cannot encode ({type(error).__name__}). Upload the "
            "tokenizer as transformers saves it."
        ) from error
    _check_tokenizer(tokenizer, sizes)
    # Only the order of tokens is the repo's to choose: the pooled token must stay in its place.
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer's tables, and of its settings only the special tokens.

    Other settings are arguments of the loader: paths of vocabularies and of other formats.
    """
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            settings = json.loads((source / name).read_text(encoding="utf-8"))
            kept = {key: value for key, value in settings.items() if key in _TOKENIZER_SETTINGS}
            (folder / name).write_text(json.dumps(kept), encoding="utf-8")


def _check_tokenizer(tokenizer: CLIPTokenizer, sizes: CLIPTextConfig) -> None:
    rows = sizes.vocab_size
    # An empty directory gives a tokenizer of two tokens without an error.
    if not rows // 2 <= len(tokenizer) <= rows or max(tokenizer.get_vocab().values()) >= rows:
        raise MalformedFileError(
            f"The tokenizer has {len(tokenizer)} tokens but the embedding table {rows} rows."
        )
    # Pooled at the first position, every prompt would look the same.
    for ids in tokenizer(["a", "a b"]).input_ids:
        if ids[0] != tokenizer.bos_token_id or ids.index(tokenizer.eos_token_id) != len(ids) - 1:
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
    if sizes.eos_token_id not in (LEGACY_EOS, tokenizer.eos_token_id):
        raise MalformedFileError(
            f"The model pools at token {sizes.eos_token_id} (eos_token_id of config.json), but "
            f"the tokenizer ends prompts with {tokenizer.eos_token_id}."
        )
