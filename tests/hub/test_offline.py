"""Without a network, a pinned commit is read from the cache, or it is said what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_amdet.errors import HubUnavailableError
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import fetch, read_tensors
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import sharded_tower, tower
from tests.hub.models import (
    BPE,
    as_json,
    clip,
    config,
    file,
    open_clip,
    other,
    pipeline,
    within,
)
from tests.hub.text_side import fetch_text
from tests.hub_double import HubDouble

COMPLAINT = r"not complete.*`hf download org/model --revision [0-9a-f]{40}`"
TEXT = {
    "config.json": config("clip_text_model", "CLIPTextModel"),
    "model.safetensors": file(clip()),
}
PIPELINE = {
    "README.md": b"# SD",
    **pipeline(
        {
            "text_encoder": ("transformers", "CLIPTextModel"),
            "text_encoder_2": ("transformers", "T5EncoderModel"),
        },
        text_encoder={**TEXT, "model.fp16.safetensors": file(clip(), v="16")},
        text_encoder_2={"config.json": b"{}", "model.safetensors": file(other())},
        tokenizer=BPE,
        tokenizer_2={"spiece.model": b"x"},
    ),
}


OFFLINE = ("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _download(hub: HubDouble, at: Hub, sha: str | None = None) -> Path:
    """As `hf download` does it."""
    folder = HfApi(hub.endpoint).snapshot_download("org/model", revision=sha, cache_dir=at.cache)
    return Path(folder)


def _scan(repo: ResolvedRepo, at: Hub, into: Path) -> None:
    """Fetch every tower whole."""
    for number, found in enumerate(repo.towers):
        fetch(repo, found, into / str(number), at)


def test_offline_a_pinned_commit_is_read_from_the_cache(
    hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", sharded_tower())
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    online = resolve("org/model", at)
    hub.forget_requests()
    monkeypatch.setattr(*OFFLINE)
    assert resolve(f"org/model@{sha}", at) == online
    assert hub.requests == []


@pytest.mark.parametrize("revision", [None, "main", "v1", "short"])
def test_offline_a_name_that_may_have_moved_is_refused(
    revision: str | None, hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match=r"may have moved.*full commit sha"):
        resolve("org/model", at, sha[:12] if revision == "short" else revision)


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "vocab.json", "merges.txt", None]
)
def test_offline_an_incomplete_commit_is_refused(
    missing: str | None, hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    for name in tower() if missing else ():
        if name != missing:
            HfApi(hub.endpoint).hf_hub_download("org/model", name, revision=sha, cache_dir=at.cache)
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match=r"not complete.*hf download org/model"):
        resolve(f"org/model@{sha}", at)


def test_offline_a_tokenizer_file_that_the_commit_is_known_to_have_is_missed(
    hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    snapshot = HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    (Path(snapshot) / "tokenizer_config.json").unlink()
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match="not complete"):
        resolve(f"org/model@{sha}", at)


@pytest.mark.parametrize(
    "files",
    [
        PIPELINE,
        within("deep/er", PIPELINE),
        # A root config and no tokenizer anywhere: nothing is missing, and it is known.
        {**TEXT, "README.md": b"# No tokenizer"},
        {"config.json": TEXT["config.json"], "pytorch_model.bin": b"x"},
        {"clip_l.safetensors": file(clip()), "README.md": b""},
    ],
)
def test_offline_a_downloaded_commit_of_any_layout_is_as_it_is_online(
    files: Mapping[str, bytes], hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", files)
    _download(hub, at)
    online = resolve("org/model", at)
    hub.forget_requests()
    monkeypatch.setattr(*OFFLINE)
    found = resolve(f"org/model@{sha}", at)
    assert found == online
    for each in found.towers:
        read_tensors(found, each, at)
    assert hub.requests == []


@pytest.mark.parametrize(
    "missing",
    ["text_encoder/model.fp16.safetensors", "tokenizer/merges.txt", "tokenizer_2/spiece.model"],
)
def test_offline_a_file_that_a_downloaded_commit_is_known_to_have_is_missed_in_any_folder(
    missing: str, hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", PIPELINE)
    (_download(hub, at) / missing).unlink()
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match=COMPLAINT):
        resolve(f"org/model@{sha}", at)


def test_offline_the_towers_that_were_fetched_whole_are_found_again(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", PIPELINE)
    online = resolve("org/model", at)
    _scan(online, at, tmp_path / "online")
    hub.forget_requests()
    monkeypatch.setattr(*OFFLINE)
    found = resolve(f"org/model@{sha}", at)
    assert found.towers == online.towers
    _scan(found, at, tmp_path / "offline")
    assert hub.requests == []


def test_offline_openclips_settings_are_there_with_its_weights(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"width": 64, "heads": 2, "layers": 2}
    settings = {"model_cfg": {"text_cfg": text}}
    files = {
        "open_clip_config.json": as_json(settings),
        "open_clip_model.safetensors": file(open_clip()),
    }
    sha = hub.add_repo("org/model", files)
    online = resolve("org/model", at)
    _scan(online, at, tmp_path / "online")
    monkeypatch.setattr(*OFFLINE)
    (found,) = resolve(f"org/model@{sha}", at).towers
    assert (found,) == online.towers
    assert found.config["num_attention_heads"] == 2


def test_offline_a_file_of_which_only_tensors_were_read_is_named(
    repo: ResolvedRepo, at: Hub, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_text(repo, tmp_path / "online", at)
    with monkeypatch.context() as offline:
        offline.setattr(*OFFLINE)
        with pytest.raises(
            HubUnavailableError, match=r"'model.safetensors' were read.*hf download"
        ):
            resolve(f"org/model@{repo.commit_sha}", at)
        with pytest.raises(HubUnavailableError, match="Offline"):
            fetch_text(repo, tmp_path / "offline", at)
    _download(hub, at, repo.commit_sha)
    monkeypatch.setattr(*OFFLINE)
    found = resolve(f"org/model@{repo.commit_sha}", at)
    assert found.towers == repo.towers
    fetch_text(found, tmp_path / "offline", at)


def test_offline_a_tower_read_in_part_is_missed_beside_one_that_was_fetched_whole(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = file(clip(), other("vision_model.x"), {"vision_model.y": (1000, 1000)})
    files = {**within("text_encoder", TEXT), "sd.safetensors": large}
    sha = hub.add_repo("org/model", files)
    online = resolve("org/model", at)
    for number, found in enumerate(online.towers):
        tensors = read_tensors(online, found, at)
        wanted = {n: info for n, info in tensors.items() if not n.startswith("vision_model")}
        fetch(online, found, tmp_path / str(number), at, wanted=wanted)
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match=r"'sd.safetensors' were read.*hf download"):
        resolve(f"org/model@{sha}", at)


def test_offline_the_cache_may_be_read_only(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    _download(hub, at)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(*OFFLINE)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(resolve(f"org/model@{sha}", at).towers) == 1


def test_offline_a_commit_that_was_never_seen_is_to_be_downloaded(
    at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*OFFLINE)
    with pytest.raises(HubUnavailableError, match=COMPLAINT):
        resolve(f"org/model@{'a' * 40}", at)
