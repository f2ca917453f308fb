from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hf_amdet.errors import (
    MalformedFileError,
    NoTextTowerError,
    PickleOnlyError,
    UsageError,
)
from hf_amdet.hub import folder as folder_module
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import OutOfScope, ResolvedRepo
from hf_amdet.hub.resolve import parse_target, resolve
from tests.hub import CONFIG, SHARDS, sharded_tower, tower, weights, write
from tests.hub.expected import unreadable
from tests.hub_double import HubDouble

INDEX = "model.safetensors.index.json"


def _out_of_scope(repo: ResolvedRepo) -> OutOfScope:
    assert repo.towers == () and repo.unreadable == () and repo.adapters == ()
    (part,) = repo.out_of_scope
    return part


# Targets


@pytest.mark.parametrize(
    ("target", "revision", "expected"),
    [
        ("org/model", None, ("org/model", None)),
        ("gpt2", None, ("gpt2", None)),
        ("org/model@v1", None, ("org/model", "v1")),
        ("org/model@refs/pr/1", None, ("org/model", "refs/pr/1")),
        ("org/model@a@b", None, ("org/model", "a@b")),
        ("org/model", "dev/x", ("org/model", "dev/x")),
        ("org/model@v1", "v1", ("org/model", "v1")),
    ],
)
def test_a_target_splits_into_repo_and_revision(
    target: str, revision: str | None, expected: tuple[str, str | None]
) -> None:
    assert parse_target(target, revision) == expected


@pytest.mark.parametrize(
    ("target", "revision"),
    [("", None), ("@v1", None), ("org/model@", None), ("org/model", ""), ("org/model@v1", "v2")],
)
def test_a_contradicting_or_empty_target_is_wrong_usage(target: str, revision: str | None) -> None:
    with pytest.raises(UsageError):
        parse_target(target, revision)


@pytest.mark.parametrize("target", ["./missing", "../missing/x", "~/missing", "/missing/x"])
def test_a_path_that_is_not_there_is_wrong_usage(target: str) -> None:
    with pytest.raises(UsageError, match="no directory"):
        resolve(target)


@pytest.mark.parametrize("target", ["a/b/c", "org/mo del", "org--x/model", "..org/x", "x" * 5000])
def test_what_is_no_repo_id_is_wrong_usage(target: str) -> None:
    with pytest.raises(UsageError):
        resolve(target)


def test_a_directory_with_a_config_wins_over_a_repo_of_its_name(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/model", tower())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/model").mkdir(parents=True)
    assert resolve("org/model", at).repo_id == "org/model"
    write(tower(), tmp_path / "org/model")
    assert resolve("org/model", at).directory == (tmp_path / "org/model").resolve()


def test_a_local_directory_has_no_revision(tmp_path: Path) -> None:
    write(tower(), tmp_path)
    with pytest.raises(UsageError, match="no revision"):
        resolve(str(tmp_path), revision="main")


# What is in a folder


def test_a_local_tower_is_found_with_its_files_and_no_others(tmp_path: Path) -> None:
    files = tower(pytorch_model__bin=b"x", tokenization_evil__py=b"x", vocab__txt=b"x")
    (tmp_path / "tower" / "text_encoder").mkdir(parents=True)
    repo = resolve(str(write(files, tmp_path / "tower")))
    assert (repo.target, repo.repo_id, repo.commit_sha) == ("tower", None, None)
    (found,) = repo.towers
    assert (found.path, found.architecture, found.config) == ("", "CLIPTextModel", CONFIG)
    assert [(file.path, file.size) for file in found.weights] == [
        ("model.safetensors", len(files["model.safetensors"]))
    ]
    assert [file.path for file in found.support] == [
        "config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    ]
    assert (found.weight_map, found.prefix, found.dialect) == (None, "", "transformers")
    (unsafe,) = repo.out_of_scope
    assert "'pytorch_model.bin'" in unsafe.message and "can run code" in unsafe.message
    assert not repo.unreadable and not repo.adapters


def test_a_variant_is_a_tower_of_its_own(tmp_path: Path) -> None:
    files = tower(model__fp16__safetensors=weights("c"))
    plain, variant = sorted(resolve(str(write(files, tmp_path))).towers, key=lambda t: t.path)
    assert (plain.path, variant.path) == ("", "model.fp16.safetensors")
    assert [file.path for file in plain.weights] == ["model.safetensors"]
    assert [file.path for file in variant.weights] == ["model.fp16.safetensors"]
    assert (variant.architecture, variant.config, variant.support) == (
        plain.architecture,
        plain.config,
        plain.support,
    )


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel"),
        ({"model_type": "clip", "architectures": ["CLIPTextModel"]}, "CLIPTextModel"),
        ({"model_type": "clip"}, "CLIPModel"),
        ({"model_type": "clip", "architectures": None}, "CLIPModel"),
        ({"model_type": "clip_text_model", "architectures": []}, "CLIPTextModel"),
        (
            {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]},
            "CLIPTextModelWithProjection",
        ),
        ({"model_type": "siglip"}, "SiglipModel"),
        ({"model_type": "siglip", "architectures": ["SiglipTextModel"]}, "SiglipTextModel"),
        ({"model_type": "siglip_text_model"}, "SiglipTextModel"),
        ({"model_type": "siglip2", "architectures": ["Siglip2Model"]}, "Siglip2Model"),
        ({"model_type": "siglip2_text_model"}, "Siglip2TextModel"),
    ],
)
def test_the_architecture_is_read_or_inferred(
    config: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    (found,) = resolve(str(write(tower(config), tmp_path))).towers
    assert found.architecture == architecture


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "'BertModel'"),
        ({"model_type": "clip", "architectures": ["CLIPVisionModel"]}, "'CLIPVisionModel'"),
        ({"model_type": "t5"}, "'t5'"),
        ({"model_type": "\x1b[2J"}, r"'\x1b[2J'"),
        ({"model_type": ["clip"]}, "['clip']"),
        ({}, "without architecture"),
    ],
)
def test_other_architectures_are_named_and_out_of_scope(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    assert named in _out_of_scope(resolve(str(write(tower(config), tmp_path)))).message


def test_weights_without_a_config_and_without_a_tower_are_out_of_scope(tmp_path: Path) -> None:
    repo = resolve(str(write(tower(config__json=None), tmp_path)))
    assert _out_of_scope(repo).message == "No text tower in 'model.safetensors'."


def test_a_target_without_any_model_is_out_of_scope(tmp_path: Path) -> None:
    repo = resolve(str(write({"README.md": b"#", "src/train.py": b""}, tmp_path)))
    assert "no model in a layout that is known" in _out_of_scope(repo).message


@pytest.mark.parametrize(
    ("changes", "code", "fault"),
    [
        ({"config__json": b"{"}, MalformedFileError.code, "does not parse"),
        ({"config__json": b"[]"}, MalformedFileError.code, "no JSON object"),
        (
            {"config__json": b'{"model_type": "clip", "model_type": "bert"}'},
            MalformedFileError.code,
            "stands twice",
        ),
        ({"config__json": b" " * (1024**2 + 1)}, MalformedFileError.code, "1048577 bytes"),
        (
            {"config__json": b'{"model_type": "clip", "architectures": "CLIPModel"}'},
            MalformedFileError.code,
            "no list of names",
        ),
        (
            {"config__json": b'{"model_type": "bert", "architectures": ["CLIPModel"]}'},
            MalformedFileError.code,
            "contradicts itself",
        ),
        (
            {"config__json": b'{"model_type": "clip_text_model", "architectures": ["CLIPModel"]}'},
            MalformedFileError.code,
            "contradicts itself",
        ),
        ({"model__safetensors": None}, NoTextTowerError.code, "neither"),
        (
            {"model__safetensors": None, "pytorch_model__bin": b"x"},
            PickleOnlyError.code,
            "spaces/safetensors/convert",
        ),
        (
            {"model__safetensors": None, "flax_model__msgpack": b"x"},
            PickleOnlyError.code,
            "flax_model.msgpack",
        ),
    ],
)
def test_a_tower_that_cannot_be_read_says_why(
    changes: dict[str, bytes | None], code: str, fault: str, tmp_path: Path
) -> None:
    found = unreadable(resolve(str(write(tower(**changes), tmp_path))))
    assert found.code == code
    assert fault in found.message


def test_weights_above_the_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(tower()["model.safetensors"])
    monkeypatch.setattr(folder_module, "MAX_WEIGHT_BYTES", size)
    assert len(resolve(str(write(tower(), tmp_path))).towers) == 1
    monkeypatch.setattr(folder_module, "MAX_WEIGHT_BYTES", size - 1)
    found = unreadable(resolve(str(tmp_path)))
    assert (found.code, found.architecture) == (MalformedFileError.code, "CLIPTextModel")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "spiece.model"])
def test_a_tokenizer_as_large_as_siglips_is_read_and_one_above_the_limit_is_not(
    name: str, tmp_path: Path
) -> None:
    path = write({**tower(), name: b""}, tmp_path) / name
    for size in (34_363_039, 64 * 1024**2):
        os.truncate(path, size)
        assert len(resolve(str(tmp_path)).towers) == 1
    os.truncate(path, 64 * 1024**2 + 1)
    found = unreadable(resolve(str(tmp_path)))
    assert found.code == MalformedFileError.code
    assert name in found.message


def test_more_shards_than_the_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sharded_tower(), tmp_path)
    monkeypatch.setattr(folder_module, "MAX_SHARDS", 2)
    assert len(resolve(str(tmp_path)).towers) == 1
    monkeypatch.setattr(folder_module, "MAX_SHARDS", 1)
    assert f"{INDEX} names 2 files" in unreadable(resolve(str(tmp_path))).message


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    (found,) = resolve(str(write(sharded_tower(), tmp_path))).towers
    assert tuple(file.path for file in found.weights) == SHARDS
    assert found.weight_map == {"a": SHARDS[0], "b": SHARDS[1]}
    assert found.support[-1].path == INDEX


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    files = {**sharded_tower(), "model.safetensors": weights()}
    repo = resolve(str(write(files, tmp_path)))
    (found,) = repo.towers
    assert [file.path for file in found.weights] == ["model.safetensors"]
    assert found.weight_map is None
    assert INDEX not in [file.path for file in found.support]
    (passed_over,) = repo.out_of_scope
    assert all(shard in passed_over.message for shard in SHARDS)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "..",
        ".hidden.safetensors",
        "config.json",
        "model.safetensors\n",
        "x\0.safetensors",
        "",
        "not-there.safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_path_tricks_in_shard_names_are_malformed(shard: Any, tmp_path: Path) -> None:
    write({"secret.safetensors": weights("a")}, tmp_path)
    write({"model.safetensors": weights("a")}, tmp_path / "tower" / "sub")
    repo = resolve(str(write(sharded_tower({"a": shard}), tmp_path / "tower")))
    found = unreadable(repo, "'sub/model.safetensors'")
    assert found.code == MalformedFileError.code
    assert INDEX in found.message


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": []}'])
def test_an_index_without_weights_is_malformed(index: bytes, tmp_path: Path) -> None:
    found = unreadable(resolve(str(write({**sharded_tower(), INDEX: index}, tmp_path))))
    assert found.code == MalformedFileError.code


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_a_link_that_leaves_the_directory_is_not_followed(name: str, tmp_path: Path) -> None:
    write(tower(), tmp_path / "outside")
    inside = write(tower(), tmp_path / "tower")
    (inside / name).unlink()
    (inside / name).symlink_to(tmp_path / "outside" / name)
    found = unreadable(resolve(str(inside)))
    assert found.code == MalformedFileError.code
    assert "leaves its folder" in found.message


def test_a_link_inside_the_directory_is_followed(tmp_path: Path) -> None:
    write(tower(model__safetensors=None), tmp_path)
    write({"weights": weights()}, tmp_path)
    (tmp_path / "model.safetensors").symlink_to("weights")
    assert len(resolve(str(tmp_path)).towers) == 1


def test_what_is_no_regular_file_is_not_there(tmp_path: Path) -> None:
    write(tower(model__safetensors=None), tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    assert unreadable(resolve(str(tmp_path))).code == NoTextTowerError.code
