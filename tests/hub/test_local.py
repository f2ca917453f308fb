"""How far a local target reaches: its folders, its links, and a single file as the target."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_amdet.errors import MalformedFileError, UsageError
from hf_amdet.hub import source as source_module
from hf_amdet.hub.resolve import resolve
from tests.hub import CONFIG, tower, weights, write
from tests.hub.expected import unreadable
from tests.hub.hostile import PEFT
from tests.hub.models import as_json, file, open_clip


def test_local_folders_are_looked_into_eight_levels_down(tmp_path: Path) -> None:
    for depth in range(10):
        write(tower(), tmp_path.joinpath(*"abcdefghi"[:depth]))
    assert [found.path for found in resolve(str(tmp_path)).towers] == [
        "/".join("abcdefgh"[:depth]) for depth in range(9)
    ]


def test_linked_folders_and_circles_of_links_are_not_descended(tmp_path: Path) -> None:
    inside = write(tower(), tmp_path / "inside")
    write(tower(), tmp_path / "outside")
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "circle").symlink_to(inside)
    (inside / "self").symlink_to("self")
    assert [found.path for found in resolve(str(inside)).towers] == [""]


def test_a_folder_of_more_files_than_a_model_has_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tower(), tmp_path)
    monkeypatch.setattr(source_module, "_MOST_FILES", len(tower()))
    assert len(resolve(str(tmp_path)).towers) == 1
    write({"sub/more": b""}, tmp_path)
    with pytest.raises(UsageError, match="Name the folder of a model"):
        resolve(str(tmp_path))


# A single local file


def test_a_safetensors_file_is_a_target_with_the_settings_beside_it(tmp_path: Path) -> None:
    files = tower(model__fp16__safetensors=weights("c"), other__safetensors=weights("d"))
    write(files, tmp_path)
    repo = resolve(str(tmp_path / "model.fp16.safetensors"))
    (found,) = repo.towers
    assert (repo.target, repo.directory) == ("model.fp16.safetensors", tmp_path.resolve())
    assert (found.path, found.config) == ("model.fp16.safetensors", CONFIG)
    assert [file.path for file in found.weights] == ["model.fp16.safetensors"]
    assert len(found.support) == 4
    assert not repo.unreadable and not repo.out_of_scope


@pytest.mark.parametrize("name", ["model.bin", "missing.safetensors"])
def test_no_other_file_is_a_target(name: str, tmp_path: Path) -> None:
    write({"model.bin": b"x"}, tmp_path)
    with pytest.raises(UsageError, match="no safetensors file"):
        resolve(str(tmp_path / name))


def test_a_single_file_that_is_a_link_out_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    write({"blob": weights()}, tmp_path)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "x.safetensors").symlink_to(tmp_path / "blob")
    found = unreadable(resolve(str(tmp_path / "snapshot" / "x.safetensors")))
    assert found.code == MalformedFileError.code
    assert "x.safetensors is a link that leaves its folder" in found.message


def test_a_single_adapter_is_read_with_its_settings(tmp_path: Path) -> None:
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["fc1"],
        "base_model_name_or_path": "org/base",
    }
    files = {
        "adapter_config.json": as_json(settings),
        "adapter_model.safetensors": PEFT,
        "model.safetensors": weights(),
    }
    write(files, tmp_path)
    repo = resolve(str(tmp_path / "adapter_model.safetensors"))
    (adapter,) = repo.adapters
    assert (adapter.path, adapter.base) == ("adapter_model.safetensors", "org/base")
    assert adapter.parts[0].changes[0].scale == 2
    assert not repo.towers and not repo.unreadable and not repo.out_of_scope
    # The settings of a neighbour are not its own.
    assert not resolve(str(tmp_path / "model.safetensors")).unreadable


def test_a_single_file_of_openclip_is_read_with_its_settings(tmp_path: Path) -> None:
    settings = {"model_cfg": {"text_cfg": {"heads": 2}}}
    files = {
        "open_clip_config.json": as_json(settings),
        "open_clip_model.safetensors": file(open_clip()),
    }
    (found,) = resolve(str(write(files, tmp_path) / "open_clip_model.safetensors")).towers
    assert found.config["num_attention_heads"] == 2
