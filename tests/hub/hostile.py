"""Targets made to break a scanner, with what is to be said of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.hub import tower, weights
from tests.hub.models import as_json, clip, config, file, low_rank, open_clip

LAYER = "text_model.encoder.layers.0.mlp.fc1"
KOHYA = file(
    low_rank(
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    )
)
PEFT = file(
    low_rank(f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight")
)
INDEX = "model.safetensors.index.json"
DEEP = b'{"a":' * 100_000
OPEN_CLIP = "open_clip_config.json"


@dataclass(frozen=True)
class Target:
    """Files, where the reason for not reading them is given, and pieces of it."""

    files: Mapping[str, bytes]
    path: str
    reason: str
    code: str = "malformed_file"
    fault: str = ""
    on_hub: bool = True
    """False for what a Hub refuses, so that only a folder can hold it."""


def _entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _weights(header: Any, size: int = 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


WEIGHTS = {
    "a header longer than the file": ((10**6).to_bytes(8, "little") + b"{}", "claims 1000000"),
    "a header above the limit": ((2**62).to_bytes(8, "little") + b"{}", "limit 25000000"),
    "overlapping tensors": (_weights({"a": _entry(), "b": _entry()}), "overlaps"),
    "a gap between tensors": (_weights({"a": _entry(offsets=(4, 8))}, 8), "gap"),
    "offsets behind the end": (_weights({"a": _entry(offsets=(2**40, 2**40 + 4))}), "gap"),
    "offsets that run backwards": (_weights({"a": _entry(offsets=(4, 0))}), "needs 4 bytes"),
    "a shape that overflows": (_weights({"a": _entry((2**62, 2**62))}), "too large"),
    "a shape beyond the file": (_weights({"a": _entry((2**40,))}), "needs"),
    "negative sizes": (_weights({"a": _entry((-1, -1))}), "not a list of sizes"),
    "too many dimensions": (_weights({"a": _entry((1,) * 1000)}), "not a list of sizes"),
    "an unknown dtype": (_weights({"a": _entry(dtype="\x1b[2J")}), r"dtype '\x1b[2J'"),
    "a tensor twice": (_weights(b'{"a": 1, "a": 2}'), "stands twice"),
    "nested without end": (_weights(DEEP), "nested too deeply"),
    "a number without end": (_weights(b'{"a":' + b"9" * 10_000 + b"}"), "does not parse"),
    "no text": (_weights(b'{"\xff": 1}'), "does not parse"),
    "nothing": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "a zip archive": (b"PK\x03\x04" + bytes(100), "a zip archive"),
    "a web page": (b"<!DOCTYPE html><html></html>", "an HTML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS pointer"),
    "a GGUF file": (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
}
"""What stands where a safetensors file should, and what is said of it."""

CONFIGS = {
    "a list": b"[]",
    "a key twice": b'{"model_type": "clip", "model_type": "bert"}',
    "nested without end": DEEP,
    "NaN": b'{"a": NaN}',
    "no text": b'{"a": "\xff"}',
    "half a character": b'{"\\ud800": 1}',
    "too large": b" " * (1024**2 + 1),
    "other weights": b'{"model_type": "clip", "transformers_weights": "evil.safetensors"}',
    "quantized weights": b'{"model_type": "clip", "quantization_config": {}}',
    "architectures of any kind": b'{"model_type": "clip", "architectures": [["CLIPModel"]]}',
}

INDEXES = {
    "a list": b"[]",
    "a key twice": b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    "nested without end": DEEP,
    "100,000 tensors of a file that is not there": as_json(
        {"weight_map": {str(n): "gone.safetensors" for n in range(100_000)}}
    ),
    "100,000 files": as_json({"weight_map": {str(n): f"{n}.safetensors" for n in range(100_000)}}),
    "a path": as_json({"weight_map": {"a": "../../etc/passwd.safetensors"}}),
    "a device": as_json({"weight_map": {"a": "/dev/zero"}}),
    "a long name": as_json({"weight_map": {"a": "x" * 10_000 + ".safetensors"}}),
    "control characters": as_json({"weight_map": {"a": "\x1b[2J\n.safetensors"}}),
    "numbers": as_json({"weight_map": {"a": 1}}),
}


def _pipeline(*names: str) -> bytes:
    return as_json({name: ["transformers", "CLIPTextModel"] for name in names})


PIPELINES = {
    "a list": b"[]",
    "a key twice": b'{"text_encoder": [null, null], "text_encoder": [null, null]}',
    "nested without end": DEEP,
    "a component above the folder": _pipeline("../x"),
    "a component at the root of the disk": _pipeline("/etc"),
    "a component in a folder": _pipeline("a/text_encoder"),
    "a component without a name": _pipeline(""),
    "a component that is the folder": _pipeline("."),
    "a component of a long name": _pipeline("x" * 10_000),
    "a component of control characters": _pipeline("text_encoder\x1b[2J\n"),
    "10,000 components": _pipeline(*(f"text_encoder_{n}" for n in range(10_000))),
    "too large": b" " * (1024**2 + 1),
}

_BOMB = b"a: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (c + 1, c + 1, *[c] * 8)
    for c in range(ord("a"), ord("j"))
)
"""Eight to the tenth strings, once it is expanded."""

CARDS = {
    "a bomb": _BOMB + b"base_model: *j",
    "a bomb in a list": _BOMB + b"base_model: [*j, *j]",
    "a path": b"base_model: /etc/passwd",
    "a path upwards": b"base_model: ../../base",
    "an address": b"base_model: https://evil.example/org/base",
    "an address in disguise": b"base_model: https:/evil",
    "an object": b"base_model: !!python/object/apply:os.system [id]",
    "several": b"base_model: [org/a, org/b]",
    "nested without end": b"base_model: " + b"[" * 10_000,
    "control characters": b'base_model: "org/\\e[2J"',
    "a revision": b"base_model: org/base@main",
    "no YAML": b"base_model: [",
    "two documents": b"base_model: org/a\n--- !x\nbase_model: org/b",
    "too large": b"x: " + b"y" * (2 * 1024**2),
}
UNHOSTED = ("a bomb", "a bomb in a list", "nested without end", "too large")
"""Cards that would break the Hub before they break us."""


def _adapter(**changes: Any) -> dict[str, bytes]:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc1"], **changes}
    return {"adapter_config.json": as_json(settings), "adapter_model.safetensors": PEFT}


def targets() -> dict[str, Target]:
    """Every target by its name."""
    found: dict[str, Target] = {}
    for name, (data, reason) in WEIGHTS.items():
        found[f"weights: {name}"] = Target(
            tower(model__safetensors=data), "", "model.safetensors is malformed: ", fault=reason
        )
        found[f"single file: {name}"] = Target(
            {"x.safetensors": data}, "x.safetensors", "x.safetensors is malformed: ", fault=reason
        )
    for name, data in CONFIGS.items():
        found[f"config: {name}"] = Target(tower(config__json=data), "", "config.json")
    for name, data in INDEXES.items():
        files = {**tower(model__safetensors=None), INDEX: data}
        found[f"index: {name}"] = Target(files, "", INDEX)
    for name, data in PIPELINES.items():
        found[f"pipeline: {name}"] = Target(
            {"model_index.json": data, "readme.txt": b""}, "model_index.json", "model_index.json"
        )
    for name, data in CARDS.items():
        found[f"card: {name}"] = Target(
            {"README.md": b"---\n" + data + b"\n---\n", "x.safetensors": KOHYA},
            "x.safetensors",
            "'x.safetensors'",
            "no_base",
            on_hub=name not in UNHOSTED,
        )
    for name, base in {
        "a path": "/etc/passwd",
        "a path upwards": "../base",
        "a path of Windows": "C:\\base",
        "an address": "https://evil.example/base",
        "no name": ["org/base"],
        "a long name": "o/" + "x" * 10_000,
    }.items():
        found[f"adapter: the base is {name}"] = Target(
            _adapter(base_model_name_or_path=base),
            "adapter_model.safetensors",
            "'adapter_model.safetensors'",
            "no_base",
        )
    for name, data in {"a list": b"[]", "nested": DEEP, "twice": b'{"r": 1, "r": 2}'}.items():
        found[f"adapter: settings of {name}"] = Target(
            {**_adapter(), "adapter_config.json": data},
            "adapter_model.safetensors",
            "adapter_config.json",
        )
        found[f"OpenCLIP: settings of {name}"] = Target(
            {OPEN_CLIP: data, "open_clip_model.safetensors": file(open_clip())},
            "open_clip_model.safetensors",
            OPEN_CLIP,
        )
    found["adapter: the revision is a path"] = Target(
        _adapter(base_model_name_or_path="org/base", revision="../../main"),
        "adapter_model.safetensors",
        "adapter_config.json",
    )
    tables = {n: s for n, s in clip().items() if ".layers." not in n}
    found["single file: a table without a tower"] = Target(
        {"x.safetensors": file(tables)}, "x.safetensors", "x.safetensors holds a table"
    )
    found["single file: 1,000 towers"] = Target(
        {
            "x.safetensors": file(
                {f"{n}.embeddings.token_embedding.weight": (1, 1) for n in range(1000)}
            )
        },
        "x.safetensors",
        "x.safetensors holds 1000 tables",
    )
    found["single file: 100,000 layers with gaps"] = Target(
        {
            "x.safetensors": file(
                tables, {f"text_model.encoder.layers.{2 * n}.x": (0,) for n in range(100_000)}
            )
        },
        "x.safetensors",
        "x.safetensors holds a table",
    )
    return found


CLAIMED = {
    "the weights": (tower(), "model.safetensors", "", "The weights have"),
    "a single file": (
        {"x.safetensors": weights()},
        "x.safetensors",
        "x.safetensors",
        "The weights have",
    ),
    "config.json": (tower(), "config.json", "", "config.json has"),
    "a tokenizer": (tower(), "vocab.json", "", "vocab.json has"),
    "an index": ({**tower(model__safetensors=None), INDEX: b"{}"}, INDEX, "", f"{INDEX} has"),
    "a pipeline": (
        {"model_index.json": b"{}", "config.json": config("bert", "BertModel")},
        "model_index.json",
        "model_index.json",
        "model_index.json has",
    ),
    "an adapter's settings": (
        _adapter(),
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_config.json has",
    ),
    "OpenCLIP's settings": (
        {OPEN_CLIP: b"{}", "open_clip_model.safetensors": file(open_clip())},
        OPEN_CLIP,
        "open_clip_model.safetensors",
        f"{OPEN_CLIP} has",
    ),
}
"""Files, the one that claims to have 100 GB, and path and piece of the reason."""
