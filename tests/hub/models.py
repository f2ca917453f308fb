"""The files of text towers and adapters as people upload them, with tensors of a few numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

WIDTH, CONTEXT, ROWS, PROJECTION = 64, 5, 7, 3
"""CLIP's heads have 64 numbers each; the other sizes are as small as any."""

Shapes = dict[str, tuple[int, ...]]

_LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.out_proj": (WIDTH, WIDTH),
    "mlp.fc1": (2 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 2 * WIDTH),
}


def file(*parts: Mapping[str, tuple[int, ...]], **metadata: str) -> bytes:
    """A safetensors file with the tensors of all parts, zeros in half precision."""
    shapes = {name: shape for part in parts for name, shape in part.items()}
    return save({n: np.zeros(s, np.float16) for n, s in shapes.items()}, metadata or None)


def clip(prefix: str = "text_model.", layers: int = 2, *, projected: bool = False) -> Shapes:
    """A CLIP text tower under the names of transformers; the projection beside `text_model`."""
    shapes: Shapes = {
        f"{prefix}embeddings.token_embedding.weight": (ROWS, WIDTH),
        f"{prefix}embeddings.position_embedding.weight": (CONTEXT, WIDTH),
        f"{prefix}final_layer_norm.weight": (WIDTH,),
        f"{prefix}final_layer_norm.bias": (WIDTH,),
    }
    for number in range(layers):
        layer = f"{prefix}encoder.layers.{number}"
        for name, shape in _LINEAR.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight"):
            shapes[f"{layer}.{name}"] = (WIDTH,)
    if projected:
        shapes[f"{prefix.removesuffix('text_model.')}text_projection.weight"] = (PROJECTION, WIDTH)
    return shapes


def siglip(prefix: str = "text_model.", layers: int = 2) -> Shapes:
    """A SigLIP text tower under the names of transformers."""
    head: Shapes = {f"{prefix}head.weight": (WIDTH, WIDTH), f"{prefix}head.bias": (WIDTH,)}
    return {**clip(prefix, layers), **head}


def open_clip(prefix: str = "", layers: int = 2, *, projected: bool = True) -> Shapes:
    """A CLIP text tower under the names of OpenCLIP and of the original CLIP."""
    shapes: Shapes = {
        f"{prefix}token_embedding.weight": (ROWS, WIDTH),
        f"{prefix}positional_embedding": (CONTEXT, WIDTH),
        f"{prefix}ln_final.weight": (WIDTH,),
        f"{prefix}ln_final.bias": (WIDTH,),
    }
    for number in range(layers):
        block = f"{prefix}transformer.resblocks.{number}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
            f"{block}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{block}.attn.out_proj.bias": (WIDTH,),
            f"{block}.mlp.c_fc.weight": (2 * WIDTH, WIDTH),
            f"{block}.mlp.c_fc.bias": (2 * WIDTH,),
            f"{block}.mlp.c_proj.weight": (WIDTH, 2 * WIDTH),
            f"{block}.mlp.c_proj.bias": (WIDTH,),
        }
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
    if projected:
        shapes[f"{prefix}text_projection"] = (WIDTH, PROJECTION)
    return shapes


def other(*names: str) -> Shapes:
    """Tensors of anything but a text tower."""
    return dict.fromkeys(names or ("model.diffusion_model.input_blocks.0.0.weight",), (2, 2))


def low_rank(*names: str) -> Shapes:
    """The matrices of a LoRA of rank 2, by the whole names of its tensors."""
    downs = ("lora_A.weight", "lora_down.weight", "_lora.down.weight", "layer.down.weight")
    return {
        name: () if name.endswith("alpha") else (2, WIDTH) if name.endswith(downs) else (WIDTH, 2)
        for name in names
    }


def sharded(shapes: Shapes, names: Iterable[str], index: str) -> dict[str, bytes]:
    """The tensors dealt out to the files of these names, and the index that says where."""
    shards = list(names)
    parts: dict[str, Shapes] = {shard: {} for shard in shards}
    for number, (tensor, shape) in enumerate(sorted(shapes.items())):
        parts[shards[number % len(shards)]][tensor] = shape
    weight_map = {tensor: shard for shard, part in parts.items() for tensor in part}
    files = {shard: file(part) for shard, part in parts.items()}
    return {**files, index: as_json({"metadata": {}, "weight_map": weight_map})}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def config(model_type: str, *architectures: str, **settings: Any) -> bytes:
    """A config.json."""
    return as_json({"model_type": model_type, "architectures": [*architectures], **settings})


def within(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files in a folder of that name."""
    return {f"{folder}/{name}": data for name, data in files.items()}


BPE = {"vocab.json": b"{}", "merges.txt": b"#", "tokenizer_config.json": b"{}"}
"""The tokenizer of a CLIP pipeline."""


def pipeline(
    components: Mapping[str, tuple[str | None, str | None]], **files: Mapping[str, bytes]
) -> dict[str, bytes]:
    """A diffusers pipeline; `files` by component, each with a scheduler and a U-Net beside."""
    index: dict[str, Any] = {"_class_name": "P", "_diffusers_version": "0.30.0"}
    index |= {name: list(entry) for name, entry in components.items()}
    index |= {"scheduler": ["diffusers", "DDIM"], "unet": ["diffusers", "UNet2DConditionModel"]}
    unet = {
        "config.json": as_json({"_class_name": "UNet2DConditionModel"}),
        "diffusion_pytorch_model.safetensors": file(other()),
    }
    found = {"model_index.json": as_json(index), **within("unet", unet)}
    found["scheduler/scheduler_config.json"] = b"{}"
    for component, content in files.items():
        found |= within(component, content)
    return found
