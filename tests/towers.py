"""Tiny random CLIP text towers, in memory and as checkpoint folders in every known layout.

Two layers, 32 wide, 20 positions. The tokenizer is a byte-level BPE with merges made by hand;
`WORDS` are chosen so that each is one token (no merge of one gets into another's way).
"""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.loading import build_tower, read_weights
from hf_amdet.encoders.names import Dialect
from hf_amdet.encoders.tower import ModelTower

WIDTH, LAYERS, HEADS, CONTEXT, PROJECTED = 32, 2, 4, 20, 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    "the one old red blue small tall cat dog bird fish house boat river road hill cup runs waits "
    "sits swims on in by under near over day night snow sun field glass wood paper king queen "
    "lamp duck egg ink jug kite moss oak quiz robe van yard zoo gate"
).split()
CPU = torch.device("cpu")

Layout = Literal["flat", "prefixed", "projected", "full"]
LAYOUTS: tuple[Layout, ...] = ("flat", "prefixed", "projected", "full")
"""Bare `CLIPTextModel`; the same under `text_model.` with the old `position_ids` buffer;
`CLIPTextModelWithProjection`; `CLIPModel` with its vision tensors."""

Projection = Literal["matrix", "linear", "absent"]
"""How an OpenCLIP checkpoint holds the projection: `[D, P]`, as a layer's `[P, D]`, not at all."""


def make_tokenizer() -> CLIPTokenizer:
    """256 bytes, the same at a word's end, the pieces of `WORDS`, BOS and EOS, in CLIP's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.setdefault((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    vocab = {token: row for row, token in enumerate([*tokens, BOS, EOS])}
    pairs: list[Any] = list(merges)
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=CONTEXT)


TOKENIZER = make_tokenizer()
VOCABULARY = len(TOKENIZER)
BOS_ID, EOS_ID = VOCABULARY - 2, VOCABULARY - 1


def prompts(count: int, *, words: int = 7, seed: int = 0) -> list[str]:
    """`count` distinct sentences of three to `words` of `WORDS`."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(" ".join(rng.choices(WORDS, k=rng.randint(3, words))))
    return list(found)


def make_config(**changes: Any) -> CLIPTextConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "projection_dim": PROJECTED,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
    }
    return CLIPTextConfig(**settings | changes)


def make_model(seed: int = 0, *, drift: float = 0.0, **changes: Any) -> CLIPTextModel:
    """Random weights whose pooled features depend on the prompt, `drift` times 100 % off."""
    model = CLIPTextModel(make_config(**changes))
    fill(model, seed, drift)
    model.eval()
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int, drift: float = 0.0) -> None:
    """Random weights, the same for models with the same names and shapes."""
    generator, other = (torch.Generator().manual_seed(seed + n) for n in (0, 1_000))
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "embedding" in name:
            # Positions matter less than words, as in trained towers.
            weight.copy_(noise * (0.2 if "position" in name else 1.0))
        elif weight.dim() == 2:
            weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5)
        else:
            weight.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * noise)
        if drift:
            weight.mul_(1 + drift * torch.randn(weight.shape, generator=other))


def make_tower(seed: int = 0, **changes: Any) -> ClipTower:
    """A tower in memory, attending as towers loaded onto a CPU do."""
    model = make_model(seed, **changes)
    model.set_attn_implementation("eager")
    return ClipTower(model, make_tokenizer())


def save(
    model: CLIPTextModel,
    folder: Path,
    layout: Layout = "flat",
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "1GB",
    tokenizer: CLIPTokenizer | None = TOKENIZER,
) -> Path:
    """Write `model` as a checkpoint folder; `shard` is the largest size of a weight file."""
    whole = _embody(model, layout)
    nn.Module.to(whole, dtype)
    whole.save_pretrained(folder, max_shard_size=shard)
    if layout == "prefixed":
        _prefix(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_open_clip(
    model: CLIPTextModel, folder: Path, prefix: str = "", projection: Projection = "matrix"
) -> Path:
    """Write `model` under OpenCLIP's names, beside an image tower and the buffer of its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}{name}": w for name, w in open_clip_tensors(model, projection).items()}
    tensors["logit_scale"] = torch.tensor(2.5)
    tensors["visual.proj"] = torch.randn(WIDTH, PROJECTED)
    tensors["visual.transformer.resblocks.0.attn.in_proj_weight"] = torch.randn(3 * WIDTH, WIDTH)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["CLIPTextModelWithProjection"]
    if projection == "absent":
        model.config.architectures = ["CLIPTextModel"]
    model.config.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def open_clip_tensors(model: CLIPTextModel, projection: Projection = "matrix") -> dict[str, Tensor]:
    """The weights of `model` and `make_projection()` as OpenCLIP's TextTransformer holds them."""
    theirs = dict(model.state_dict())
    tensors = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "ln_final.weight": theirs["final_layer_norm.weight"],
        "ln_final.bias": theirs["final_layer_norm.bias"],
        "attn_mask": torch.full((model.config.max_position_embeddings,) * 2, -torch.inf).triu(1),
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for number in range(model.config.num_hidden_layers):
        block, layer = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            packed = [theirs[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(packed)
            for name, part in parts.items():
                tensors[f"{block}.{name}.{kind}"] = theirs[f"{layer}.{part}.{kind}"]
    if projection == "matrix":
        tensors["text_projection"] = make_projection().T.contiguous()
    elif projection == "linear":
        tensors["text_projection.weight"] = make_projection()
    return tensors


def make_projection() -> Tensor:
    """`[P, D]`."""
    return torch.randn(PROJECTED, WIDTH, generator=torch.Generator().manual_seed(4))


def load(folder: Path, *, prefix: str = "", dialect: Dialect = "transformers") -> ModelTower:
    """The tower in a folder, read and built from what a scan hands on."""
    config = read_config(folder)
    (architecture,) = config["architectures"]
    files = weight_files(folder)
    tensors = read_weights(files, config, architecture, prefix=prefix, dialect=dialect)
    return build_tower(tensors, config, architecture, folder, CPU)


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def edit_config(folder: Path, name: str = "config.json", /, **changes: Any) -> None:
    """Set keys of a JSON file of the checkpoint."""
    config = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(config))


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors of the only weight file by name (dots as `__`); None removes one."""
    (file,) = weight_files(folder)
    tensors = load_file(file)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def _embody(
    model: CLIPTextModel, layout: Layout
) -> CLIPTextModel | CLIPTextModelWithProjection | CLIPModel:
    """A copy of `model` inside the class that saves the layout."""
    text = copy.deepcopy(model.config)
    if layout == "projected":
        projected = CLIPTextModelWithProjection(text)
        projected.text_model.load_state_dict(model.state_dict())
        return projected
    if layout == "full":
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            projection_dim=PROJECTED,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            image_size=16,
            patch_size=8,
        )
        both = CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTED)
        full = CLIPModel(both)
        full.text_model.load_state_dict(model.state_dict())
        return full
    return copy.deepcopy(model)


def _prefix(folder: Path) -> None:
    """Rename the tensors of a bare tower as transformers did before version 5."""
    places: dict[str, str] = {}
    for number, file in enumerate(weight_files(folder)):
        tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
        if number == 0:
            context = read_config(folder)["max_position_embeddings"]
            positions = torch.arange(context).expand(1, -1).clone()
            tensors["text_model.embeddings.position_ids"] = positions
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps(json.loads(index.read_text()) | {"weight_map": places}))
