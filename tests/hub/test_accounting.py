"""No weight file of a target is passed over in silence, however the target is laid out."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import write
from tests.hub.models import (
    as_json,
    clip,
    config,
    file,
    low_rank,
    open_clip,
    other,
    siglip,
)

FOLDERS = ("", "text_encoder", "text_encoder_2", "unet", "a", "a/text_encoder", "a/b/c")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WEIGHTS = (
    "model.safetensors",
    "model.fp16.safetensors",
    *SHARDS,
    "model.fp16-00001-of-00001.safetensors",
    "model-ema.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "open_clip_model.safetensors",
    "x.safetensors",
    "'odd', name.safetensors",
)
PEFT = "base_model.model.text_model.encoder.layers.0.mlp.fc1"
CONTENTS = (
    file(clip()),
    file(clip(), other()),
    file(clip("a."), clip("b.")),
    file(clip("a."), other("b.embeddings.token_embedding.weight")),
    file(open_clip()),
    file(siglip()),
    file(other()),
    file(low_rank(f"{PEFT}.lora_A.weight", f"{PEFT}.lora_B.weight")),
    file(low_rank("unet.x.lora_A.weight", "unet.x.lora_B.weight")),
    b"",
    b"junk",
    bytes(8) + b"{}",
)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("transformers"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
CLASSES = ("CLIPTextModel", "T5EncoderModel", "UNet2DConditionModel", "SiglipModel")
COMPONENTS = st.dictionaries(
    st.sampled_from(("text_encoder", "text_encoder_2", "unet", "b", "..", "")),
    st.tuples(st.sampled_from(("transformers", "diffusers", "mine")), st.sampled_from(CLASSES))
    | JUNK,
    max_size=4,
)
SETTINGS = st.one_of(
    st.tuples(
        st.just("config.json"),
        st.sampled_from(
            (
                config("clip_text_model", "CLIPTextModel"),
                config("siglip"),
                config("bert", "BertModel"),
                config("bert", "CLIPModel"),
                b"{",
            )
        )
        | JUNK.map(as_json),
    ),
    st.tuples(
        st.sampled_from(("model.safetensors.index.json", "model.safetensors.index.fp16.json")),
        st.sampled_from((SHARDS, SHARDS[:1], ("gone.safetensors",), ("../x.safetensors",))).map(
            lambda names: as_json({"weight_map": dict(zip("ab", names, strict=False))})
        )
        | JUNK.map(as_json),
    ),
    st.tuples(st.just("model_index.json"), COMPONENTS.map(as_json) | JUNK.map(as_json)),
    st.tuples(
        st.just("adapter_config.json"),
        st.just(as_json({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "org/base"}))
        | JUNK.map(as_json),
    ),
    st.tuples(st.just("open_clip_config.json"), JUNK.map(as_json)),
    st.tuples(st.just("vocab.json"), st.just(b"{}")),
    st.tuples(st.just("pytorch_model.bin"), st.just(b"x")),
    st.tuples(st.just("README.md"), st.just(b"---\nbase_model: org/base\n---\n")),
)


def _placed(entry: tuple[str, tuple[str, bytes]]) -> tuple[str, bytes]:
    folder, (name, data) = entry
    return (f"{folder}/{name}" if folder else name), data


ANYWHERE = st.sampled_from(FOLDERS)
# Four weight files at most, because a message names no more of them.
LOADS = st.tuples(st.sampled_from(WEIGHTS), st.sampled_from(CONTENTS))
TREES = st.tuples(
    st.lists(st.tuples(ANYWHERE, LOADS).map(_placed), max_size=4),
    st.lists(st.tuples(ANYWHERE, SETTINGS).map(_placed), max_size=6),
).map(lambda parts: dict(parts[0] + parts[1]))

PIPELINE = as_json({"unet": ["diffusers", "U"], "text_encoder": ["mine", "CLIPTextModel"]})


@given(TREES)
@settings(max_examples=300, deadline=None)
@example({"config.json": config("clip"), "model-ema.safetensors": CONTENTS[0]})
@example({"config.json": config("clip"), SHARDS[0]: CONTENTS[0]})
@example(
    {
        "config.json": config("clip"),
        "model.safetensors": CONTENTS[0],
        "model.safetensors.index.json": b"{}",
        SHARDS[0]: CONTENTS[0],
    }
)
@example({"model_index.json": PIPELINE, "unet/x.safetensors": CONTENTS[0]})
@example({"model_index.json": PIPELINE, "text_encoder/model.safetensors": CONTENTS[0]})
@example({"model_index.json": as_json({"": ["transformers", "CLIPTextModel"]}), "x.bin": b""})
@example(
    {
        "model_index.json": as_json({"text_encoder": ["transformers", "CLIPTextModel"]}),
        "text_encoder/config.json": config("clip"),
        "text_encoder/model.safetensors": CONTENTS[0],
    }
)
@example({"model_index.json": as_json({"text_encoder": ["transformers", ["CLIPTextModel"]]})})
def test_every_weight_file_is_accounted_for_once(tree: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repo = resolve(f"{write(tree, Path(folder))}/")
    for path in tree:
        if path.endswith(".safetensors"):
            assert _places(repo, path) == 1, (path, repo)
    messages = [part.message for part in repo.unreadable]
    messages += [part.message for part in repo.out_of_scope]
    if any(path.endswith(".bin") for path in tree):
        assert any("run code" in message for message in messages)
    assert len({(tower.path, tower.prefix) for tower in repo.towers}) == len(repo.towers)
    for tower in repo.towers:
        assert {file.path for file in (*tower.weights, *tower.support)} <= tree.keys()


def _places(repo: ResolvedRepo, path: str) -> int:
    """In how many ways a weight file is accounted for."""
    exact = [
        any(file.path == path for tower in repo.towers for file in tower.weights),
        any(adapter.weights.path == path for adapter in repo.adapters),
        any(part.path == path for part in repo.unreadable),
        any(path == part.path or ascii(path) in part.message for part in repo.out_of_scope),
    ]
    # What is said of a folder is said of the files in it that have no place of their own.
    return sum(exact) or int(_is_covered(repo, PurePosixPath(path)))


def _is_covered(repo: ResolvedRepo, path: PurePosixPath) -> bool:
    folder = "" if str(path.parent) == "." else str(path.parent)
    parent, _, name = folder.rpartition("/")
    return (
        any(part.path == folder for part in repo.unreadable)
        or any(
            part.path == folder and "is no text tower" in part.message for part in repo.out_of_scope
        )
        or any(
            part.path == parent and re.search(rf"'{name}' \(", part.message)
            for part in repo.out_of_scope
        )
    )
