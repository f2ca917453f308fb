"""A text tower that says it is something else is seen all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.folder import MAX_SETS
from hf_amdet.hub.resolve import resolve
from tests.hub.models import clip, config, file, other
from tests.hub_double import HubDouble

TEXT = {
    "config.json": config("clip_text_model", "CLIPTextModel"),
    "model.safetensors": file(clip()),
}
DECOY = {f"decoy/{name}": data for name, data in TEXT.items()}
PROJECTED = ["transformers", "CLIPTextModelWithProjection"]


@pytest.fixture
def at(hub: HubDouble, tmp_path: Path) -> Hub:
    return Hub(hub.endpoint, cache_dir=tmp_path / "cache")


def _resolved(hub: HubDouble, at: Hub, files: dict[str, bytes]) -> ResolvedRepo:
    hub.add_repo("org/model", DECOY | files)
    return resolve("org/model", at)


def _read_or_refused(repo: ResolvedRepo) -> set[str]:
    """Everything that is scanned or withholds the answer, but the decoy."""
    paths = {part.path for part in repo.towers} | {part.path for part in repo.unreadable}
    return paths - {"decoy"}


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "clip", "architectures": ["Foo"]},
        {"model_type": "clip", "architectures": ["CLIPVisionModel"]},
        {"model_type": "clipseg", "architectures": ["CLIPSegModel"]},
        {"model_type": "bert"},
        {},
    ],
)
def test_a_config_cannot_declare_a_tower_out_of_scope(
    hub: HubDouble, at: Hub, settings: dict[str, Any]
) -> None:
    files = {"config.json": json.dumps(settings).encode(), "model.safetensors": file(clip())}

    repo = _resolved(hub, at, files)

    # Refused rather than read: with which heads or activation it is used, nobody can tell.
    assert [(part.path, part.code) for part in repo.unreadable] == [
        ("model.safetensors", "malformed_file")
    ]
    assert repo.out_of_scope  # what the config says is said, too


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("clip", ["diffusers", "UNet2DConditionModel"]),
        ("unet", ["diffusers", "UNet2DConditionModel"]),
        ("text_encoder", ["transformers", "CLIPSegTextModel"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
    ],
)
def test_an_index_cannot_hide_a_tower(hub: HubDouble, at: Hub, name: str, entry: list[str]) -> None:
    index = json.dumps({"_class_name": "P", name: entry}).encode()
    below = {f"{name}/{file_name}": data for file_name, data in TEXT.items()}

    repo = _resolved(hub, at, {"model_index.json": index, **below})

    assert _read_or_refused(repo) == {f"{name}/model.safetensors"}


@pytest.mark.parametrize("name", ["clip_l.sft", "clip_l.SAFETENSORS", "deep/clip_l.SafeTensors"])
def test_an_unusual_ending_is_read(hub: HubDouble, at: Hub, name: str) -> None:
    assert _read_or_refused(_resolved(hub, at, {name: file(clip())})) == {name}


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.ckpt", "tf_model.h5", "open_clip_pytorch_model.bin"]
)
def test_a_pickle_that_is_not_there_as_safetensors_withholds_the_answer(
    hub: HubDouble, at: Hub, name: str
) -> None:
    repo = _resolved(hub, at, {name: b"x"})

    (part,) = repo.unreadable
    assert part.code == "pickle_only" and name in part.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "optimizer.pt", "x.gguf"])
def test_a_pickle_beside_its_safetensors_is_named(hub: HubDouble, at: Hub, name: str) -> None:
    repo = _resolved(hub, at, {f"decoy/{name}": b"x"})

    assert not repo.unreadable
    (part,) = repo.out_of_scope
    assert name in part.message


def test_a_modular_pipeline_is_not_passed_over(hub: HubDouble, at: Hub) -> None:
    repo = _resolved(hub, at, {"modular_model_index.json": b"{}"})

    assert _read_or_refused(repo) == {"modular_model_index.json"}


@pytest.mark.parametrize("key", ["transformers_weights", "quantization_config"])
def test_a_detour_is_found_at_any_depth(hub: HubDouble, at: Hub, key: str) -> None:
    settings = {"model_type": "clip", "text_config": {"deeper": [{key: "other.safetensors"}]}}
    files = {"config.json": json.dumps(settings).encode(), "model.safetensors": file(clip())}

    (part,) = _resolved(hub, at, files).unreadable

    assert part.path == "" and key in part.message


def test_more_variants_than_are_read_are_said(hub: HubDouble, at: Hub) -> None:
    variants = {f"model.v{n}.safetensors": file(clip()) for n in range(MAX_SETS + 2)}

    repo = _resolved(hub, at, {**TEXT, **variants})

    assert len(repo.towers) == 1 + MAX_SETS
    (part,) = repo.unreadable
    assert part.code == "too_many" and f"{MAX_SETS + 3} variants" in part.message


def test_other_models_stay_out_of_scope(hub: HubDouble, at: Hub) -> None:
    t5 = {"config.json": config("t5", "T5EncoderModel"), "model.safetensors": file(other())}

    repo = _resolved(hub, at, t5)

    assert _read_or_refused(repo) == set()
    assert "T5EncoderModel" in repo.out_of_scope[0].message
