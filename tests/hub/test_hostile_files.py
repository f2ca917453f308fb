"""Targets made to break a scanner: each ends as a reason that names the file, and costs nothing."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path

import pytest

from hf_amdet.encoders.config import CLIP, text_config
from hf_amdet.errors import MalformedFileError, TowerError
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import read_tensors
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import tower, write
from tests.hub.hostile import CLAIMED, KOHYA, OPEN_CLIP, Target, targets
from tests.hub.models import clip, file, low_rank, open_clip
from tests.hub_double import HubDouble

TARGETS = targets()
MEMORY = 200_000_000
"""Bytes that looking at one of these may take; many claim far more."""
HUGE = 100 * 10**9


def _reasons(repo: ResolvedRepo, at: Hub) -> list[tuple[str, str, str]]:
    """Path, code and message of all that cannot be read, as a scan comes upon it."""
    found = [(part.path, part.code, part.message) for part in repo.unreadable]
    for each in repo.towers:
        try:
            read_tensors(repo, each, at)
        except TowerError as error:
            found.append((each.path, error.code, str(error)))
    return found


def _check(target: str, expected: Target, at: Hub) -> None:
    tracemalloc.start()
    try:
        ((path, code, message),) = _reasons(resolve(target, at), at)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (path, code) == (expected.path, expected.code)
    assert expected.reason in message and expected.fault in message
    assert message.isascii() and message.isprintable() and len(message) < 600
    assert peak < MEMORY


def _check_costs(hub: HubDouble, at: Hub) -> None:
    """Nothing was written, and of weights no more was asked for than a header can have."""
    assert not at.cache.exists() and not (at.cache.parent / "assets").exists()
    for request in hub.requests:
        if ".safetensors?" in request.path:
            begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "").groups()  # type: ignore[union-attr]
            assert begin == "0" and int(end) < 25_000_008


@pytest.mark.parametrize("name", TARGETS)
def test_a_hostile_target_ends_as_a_reason_and_costs_nothing(
    name: str, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    expected = TARGETS[name]
    if expected.on_hub:
        hub.add_repo("org/model", expected.files)
        _check("org/model", expected, at)
        _check_costs(hub, at)
    _check(str(write(expected.files, tmp_path / "local")), expected, at)


def test_there_is_a_target_for_every_way_in() -> None:
    assert len(TARGETS) >= 40
    kinds = {name.partition(":")[0] for name in TARGETS}
    assert kinds == {
        "weights",
        "single file",
        "config",
        "index",
        "pipeline",
        "card",
        "adapter",
        "OpenCLIP",
    }


@pytest.mark.parametrize("name", CLAIMED)
def test_a_claim_of_100_gb_is_refused_before_a_byte_is_read(
    name: str, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    files, liar, path, reason = CLAIMED[name]
    expected = Target(files, path, reason)
    hub.add_repo("org/model", files)
    hub.lie_size("org/model", liar, HUGE)
    _check("org/model", expected, at)
    _check_costs(hub, at)
    assert not [request for request in hub.requests if f"/{liar}" in request.path]
    os.truncate(write(files, tmp_path / "local") / liar, HUGE)
    _check(str(tmp_path / "local"), expected, at)


def test_a_card_of_100_gb_is_not_read(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", {"README.md": b"---\nbase_model: a/b\n---\n", "x.safetensors": KOHYA})
    hub.lie_size("org/model", "README.md", HUGE)
    _check("org/model", Target({}, "x.safetensors", "'x.safetensors'", "no_base"), at)
    assert not [request for request in hub.requests if "README.md" in request.path]


LINKED: list[tuple[str, dict[str, bytes], str]] = [
    ("config.json", tower(), ""),
    ("model.safetensors", tower(), ""),
    ("vocab.json", tower(), ""),
    ("x.safetensors", {"x.safetensors": file(clip())}, "x.safetensors"),
    ("model_index.json", {"model_index.json": b"{}"}, "model_index.json"),
    (
        "adapter_config.json",
        {"adapter_config.json": b"{}", "adapter_model.safetensors": KOHYA},
        "adapter_model.safetensors",
    ),
    (
        OPEN_CLIP,
        {OPEN_CLIP: b"{}", "open_clip_model.safetensors": file(open_clip())},
        "open_clip_model.safetensors",
    ),
]


@pytest.mark.parametrize(("name", "files", "path"), LINKED)
def test_a_link_out_of_the_folder_is_never_read(
    name: str, files: dict[str, bytes], path: str, at: Hub, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(files[name])
    inside = write(files, tmp_path / "local")
    for link in (secret, Path("../secret")):
        (inside / name).unlink()
        (inside / name).symlink_to(link)
        reason = f"{name} is a link that leaves its folder"
        _check(str(inside), Target(files, path, reason), at)


def test_a_card_that_is_a_link_out_of_the_folder_is_never_read(at: Hub, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"---\nbase_model: org/base\n---\n")
    inside = write({"x.safetensors": KOHYA}, tmp_path / "local")
    (inside / "README.md").symlink_to(tmp_path / "secret")
    _check(str(inside), Target({}, "x.safetensors", "'x.safetensors'", "no_base"), at)


@pytest.mark.parametrize("link", ["/dev/zero", "/dev/stdin", "model.safetensors", "."])
def test_what_is_no_file_is_not_there(link: str, at: Hub, tmp_path: Path) -> None:
    inside = write(tower(model__safetensors=None), tmp_path / "local")
    (inside / "model.safetensors").symlink_to(link)
    _check(str(inside), Target({}, "", "neither model.safetensors nor", "no_text_tower"), at)


def test_junk_in_a_pipeline_hides_no_text_encoder(hub: HubDouble, at: Hub, tmp_path: Path) -> None:
    junk = (
        b'{"a": {"b": [1, [2]]}, "text_encoder": ["transformers", ["CLIPTextModel"]], "b": [[]],'
        b' "c": ["transformers", {}], "d": [true, false], "e": "transformers", "f": 1e999,'
        b' "g": ["x", "y", "z"], "vae": [null, "AutoencoderKL"], "": null}'
    )
    files = {"model_index.json": junk}
    files |= {f"text_encoder/{name}": data for name, data in tower().items()}
    hub.add_repo("org/model", files)
    for target in ("org/model", str(write(files, tmp_path / "local"))):
        repo = resolve(target, at)
        assert [found.path for found in repo.towers] == ["text_encoder"]
        assert not repo.unreadable


def test_names_of_control_characters_are_shown_escaped(hub: HubDouble, at: Hub) -> None:
    name = "\x1b[2J\u202e.safetensors"
    lora = file(low_rank("unet.x.lora_A.weight", "unet.x.lora_B.weight"))
    hub.add_repo("org/model", {f"a/{name}": lora, f"b/{name}": file({"x": (1,)}), name: KOHYA})
    repo = resolve("org/model", at)
    messages = [part.message for part in repo.unreadable]
    messages += [part.message for part in repo.out_of_scope]
    assert len(messages) == 3
    assert all(message.isascii() and message.isprintable() for message in messages)


def test_a_tower_of_100_000_layers_is_refused_before_it_is_built(at: Hub, tmp_path: Path) -> None:
    tables = {n: s for n, s in clip().items() if ".layers." not in n}
    layers = {f"text_model.encoder.layers.{n}.mlp.fc1.weight": (1, 0) for n in range(100_000)}
    write({"x.safetensors": file(tables, layers)}, tmp_path)
    (found,) = resolve(str(tmp_path), at).towers
    with pytest.raises(MalformedFileError, match="num_hidden_layers is 100000"):
        text_config(found.config, CLIP)
