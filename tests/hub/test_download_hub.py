"""Fetching from a Hub: pinned, verified, and told plainly where it fails."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pytest
from huggingface_hub import HfApi, file_download
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from hf_amdet.errors import (
    AmdetError,
    GatedRepoError,
    HashMismatchError,
    HubUnavailableError,
    OutputError,
    UnknownRepoError,
)
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import _Meter, _progress_class, fetch, read_tensors
from hf_amdet.hub.files import FetchedTower, RepoFile, ResolvedRepo, TowerFiles
from hf_amdet.hub.resolve import resolve
from tests.hub import described, tower, weights, write
from tests.hub_double import HubDouble

TENSORS = described(weights())
READ = ["config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json"]
WEIGHTS = "model.safetensors"


def _tower(repo: ResolvedRepo) -> TowerFiles:
    (found,) = repo.towers
    return found


def _fetch(target: str, into: Path, at: Hub) -> FetchedTower:
    repo = resolve(target, at)
    return fetch(repo, _tower(repo), into, at)


def _blob(at: Hub, name: str) -> Path:
    (link,) = at.cache.glob(f"models--*/snapshots/*/{name}")
    return link.resolve()


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_commit_stays_pinned_when_main_moves(hub: HubDouble, into: Path, at: Hub) -> None:
    old = tower()
    hub.add_repo("org/model", old)
    repo = resolve("org/model", at)
    hub.commit("org/model", {WEIGHTS: weights("c"), "vocab.json": b'{"b": 0}'})
    assert read_tensors(repo, _tower(repo), at) == TENSORS
    fetch(repo, _tower(repo), into, at)
    assert _content(into) == {name: old[name] for name in READ}


def test_reading_headers_transfers_little(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower(model__safetensors=weights("a", "b", rows=100_000)))
    repo = resolve("org/model", at)
    hub.forget_requests()
    read_tensors(repo, _tower(repo), at)
    assert 0 < hub.bytes_sent("safetensors") < 102_000
    assert all(request.range == "bytes=0-99999" for request in hub.requests)


def test_a_second_fetch_transfers_nothing(
    hub: HubDouble, into: Path, tmp_path: Path, at: Hub
) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    first = fetch(repo, _tower(repo), into, at)
    hub.forget_requests()
    second = fetch(repo, _tower(repo), tmp_path / "again", at)
    assert hub.requests == []
    assert first.files == second.files


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
def test_tampered_bytes_are_refused_and_do_not_stay(
    name: str, hub: HubDouble, into: Path, at: Hub
) -> None:
    files = tower()
    hub.add_repo("org/model", files)
    repo = resolve("org/model", at)
    hub.tamper("org/model", name, files[name][:-1] + b"!")
    with pytest.raises(HashMismatchError, match=name):
        fetch(repo, _tower(repo), into, at)
    assert not into.exists()
    assert not list(at.cache.glob(f"models--*/snapshots/*/{name}"))
    hub.heal()
    fetch(repo, _tower(repo), into, at)
    assert _content(into)[name] == files[name]


def test_a_broken_cache_heals_at_the_second_try(hub: HubDouble, into: Path, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    for broken in (weights("x", "y"), b"cut"):
        _blob(at, WEIGHTS).write_bytes(broken)
        with pytest.raises(HashMismatchError):
            fetch(repo, _tower(repo), into, at)
        fetch(repo, _tower(repo), into, at)
        shutil.rmtree(into)


def test_a_bad_file_is_removed_through_every_link_but_not_outside_the_cache(
    hub: HubDouble, into: Path, tmp_path: Path, at: Hub
) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    shared, outside = at.cache / "blobs" / "00" / "shared", tmp_path / "outside"
    for store in (shared, outside):
        blob = _blob(at, WEIGHTS)
        blob.unlink()
        write({store.name: b"bad"}, store.parent)
        blob.symlink_to(store)
        with pytest.raises(HashMismatchError):
            fetch(repo, _tower(repo), into, at)
        assert not os.path.lexists(blob)
        fetch(repo, _tower(repo), into, at)
        shutil.rmtree(into)
    assert not shared.exists()
    assert outside.read_bytes() == b"bad"


@pytest.mark.parametrize("size", [1, 50, 10**6])
def test_another_size_than_declared_is_refused_before_the_download(
    size: int, hub: HubDouble, into: Path, at: Hub
) -> None:
    hub.add_repo("org/model", tower())
    hub.lie_size("org/model", WEIGHTS, size)
    repo = resolve("org/model", at)
    hub.forget_requests()
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), into, at),
    ):
        with pytest.raises(HashMismatchError):
            read()
    assert not into.exists()
    assert not list(at.cache.glob("models--*/blobs/*"))


def test_a_transfer_that_breaks_off_is_hub_unavailable(hub: HubDouble, into: Path, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    hub.truncate("safetensors", keep=0)
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), into, at),
    ):
        with pytest.raises(HubUnavailableError):
            read()
    assert not into.exists()
    hub.heal()
    fetch(repo, _tower(repo), into, at)


def test_a_transfer_that_breaks_off_once_is_resumed(hub: HubDouble, into: Path, at: Hub) -> None:
    hub.add_repo("org/model", tower(model__safetensors=weights("a", "b", rows=1000)))
    repo = resolve("org/model", at)
    hub.truncate("safetensors", times=1)
    seen: list[int] = []
    fetch(repo, _tower(repo), into, at, lambda done, total: seen.append(done))
    assert seen == sorted(seen)


@pytest.mark.parametrize("status", [429, 503])
def test_an_outage_in_mid_scan_is_hub_unavailable(
    status: int, hub: HubDouble, into: Path, at: Hub
) -> None:
    old = hub.add_repo("org/model", tower())
    HfApi(hub.endpoint).snapshot_download("org/model", revision=old, cache_dir=at.cache)
    hub.commit("org/model", {WEIGHTS: weights("c"), "vocab.json": b"{}"})
    repo = resolve("org/model", at)
    hub.fail(status=status)
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), into, at),
    ):
        with pytest.raises(HubUnavailableError, match=str(status)):
            read()


def test_access_that_is_taken_away_in_mid_scan_is_said(hub: HubDouble, into: Path, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    hub.add_repo("org/model", tower(), gated=True)
    with pytest.raises(GatedRepoError, match="ask for access"):
        fetch(repo, _tower(repo), into, at)
    hub.remove_repo("org/model")
    with pytest.raises(UnknownRepoError):
        fetch(repo, _tower(repo), into, at)


def test_a_private_tower_is_fetched_with_its_token(
    hub: HubDouble, into: Path, tmp_path: Path, at: Hub
) -> None:
    hub.add_user("hf_owner", "alice", orgs=["org"])
    hub.add_repo("org/model", tower(), private=True)
    me = Hub(hub.endpoint, "hf_owner", tmp_path / "cache")
    repo = resolve("org/model", me)
    assert read_tensors(repo, _tower(repo), me) == TENSORS
    assert fetch(repo, _tower(repo), into, me).tensors == TENSORS


def test_no_message_holds_the_token_or_a_signed_address(
    hub: HubDouble, into: Path, tmp_path: Path, at: Hub
) -> None:
    hub.add_user("hf_secret", "alice", orgs=["org"])
    hub.add_repo("org/model", tower(), private=True)
    me = Hub(hub.endpoint, "hf_secret", tmp_path / "cache")
    repo = resolve("org/model", me)
    for match, status in (("/cdn/", 403), ("/cdn/", 503), ("/resolve/", 401), ("/resolve/", 503)):
        hub.heal()
        hub.fail(match=match, status=status)
        for read in (
            lambda: read_tensors(repo, _tower(repo), me),
            lambda: fetch(repo, _tower(repo), into, me),
        ):
            with pytest.raises(AmdetError) as caught:
                read()
            assert "hf_secret" not in str(caught.value)
            assert "Signature" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "ours"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), OutputError),
        (OSError(errno.EROFS, "Read-only file system"), OutputError),
        # As hf_xet raises them, which writes files itself.
        (RuntimeError("IO error: No space left on device (os error 28)"), OutputError),
        (RuntimeError("hf_secret"), HubUnavailableError),
    ],
)
def test_a_failed_write_to_the_cache_is_told_and_leaves_nothing(
    failure: Exception,
    ours: type[AmdetError],
    hub: HubDouble,
    into: Path,
    at: Hub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Disk:
        """A file that can be written no more."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            self._file.write(data[:1])
            raise failure

    def http_get(url: str, file: Any, **options: Any) -> None:
        real(url, cast(BinaryIO, Disk(file)), **options)

    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)
    real = file_download.http_get
    monkeypatch.setattr(file_download, "http_get", http_get)
    with pytest.raises(ours) as caught:
        fetch(repo, _tower(repo), into, at)
    assert (str(at.cache) in str(caught.value)) == (ours is OutputError)
    assert "hf_secret" not in str(caught.value)
    assert not into.exists()
    assert not list(at.cache.glob("models--*/blobs/*"))


def test_the_progress_of_xet_transfers_is_counted_once() -> None:
    seen: list[tuple[int, int]] = []
    file = RepoFile(WEIGHTS, 100)
    meter = _Meter(file.size, lambda done, total: seen.append((done, total)))
    with XetDownloadProgressReporter(
        reconstruction_desc="x", total=100, log_level=0, tqdm_class=_progress_class(file, meter)
    ) as reporter:
        for done in (0, 40, 100):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=100,
                    total_bytes_completed=done,
                    total_bytes_completion_rate=None,
                    total_transfer_bytes_completed=done // 2,
                    total_transfer_bytes_completion_rate=None,
                )
            )
    assert seen == [(40, 100), (100, 100)]


def test_an_interrupted_download_leaves_nothing(hub: HubDouble, into: Path, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    repo = resolve("org/model", at)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(repo, _tower(repo), into, at, interrupt)
    assert not into.exists()
    assert not list(at.cache.glob("models--*/blobs/*"))


def test_offline_a_pinned_commit_is_fetched_from_the_cache(
    hub: HubDouble, into: Path, tmp_path: Path, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    online = _fetch("org/model", into, at)
    hub.commit("org/model", {WEIGHTS: weights("c")})
    hub.forget_requests()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = resolve(f"org/model@{sha}", at)
    assert read_tensors(repo, _tower(repo), at) == TENSORS
    assert fetch(repo, _tower(repo), tmp_path / "again", at).files == online.files
    assert hub.requests == []
    shutil.rmtree(at.cache)
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), tmp_path / "third", at),
    ):
        with pytest.raises(HubUnavailableError, match="Offline"):
            read()
