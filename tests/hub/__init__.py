"""Small towers as files, for the tests of `hf_amdet.hub`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from hf_amdet.hub.files import TensorInfo

CONFIG = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 4}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def weights(*names: str, rows: int = 3) -> bytes:
    """A safetensors file with one float32 tensor of shape (rows, 4) for each name."""
    return save({name: np.full((rows, 4), 0.5, np.float32) for name in names or ("a", "b")})


def tower(config: Any = CONFIG, **changes: bytes | None) -> dict[str, bytes]:
    """The files of a whole tower; `changes` adds files, or removes those that are None.

    A keyword's `__` stands for the dot in a file name.
    """
    files: dict[str, bytes | None] = {
        "README.md": b"# A tower\n",
        "config.json": json.dumps(config).encode(),
        "merges.txt": b"#version: 0.2\n",
        "model.safetensors": weights(),
        "tokenizer_config.json": b"{}",
        "vocab.json": b'{"a": 0}',
    }
    files |= {name.replace("__", "."): data for name, data in changes.items()}
    return {name: data for name, data in files.items() if data is not None}


def sharded_tower(weight_map: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """A tower whose tensors a and b are in two files, with the index given or the right one."""
    right = {"a": SHARDS[0], "b": SHARDS[1]}
    index = {"metadata": {}, "weight_map": right if weight_map is None else weight_map}
    return {
        **tower(model__safetensors=None),
        "model.safetensors.index.json": json.dumps(index).encode(),
        SHARDS[0]: weights("a"),
        SHARDS[1]: weights("b"),
    }


def write(files: Mapping[str, bytes], directory: Path) -> Path:
    """The files as a local directory, with folders for the slashes in their names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def described(*files: bytes) -> dict[str, TensorInfo]:
    """What the headers of safetensors files say, read without the code under test."""
    tensors = {}
    for data in files:
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            begin, end = entry["data_offsets"]
            span = (start + begin, start + end)
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), span)
    return tensors
