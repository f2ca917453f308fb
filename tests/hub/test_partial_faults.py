"""What goes wrong while a few tensors of a large file are read, and what is kept of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save

from hf_amdet.errors import (
    AmdetError,
    HashMismatchError,
    HubUnavailableError,
    OutputError,
)
from hf_amdet.hub import partial
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import fetch
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import tower
from tests.hub.text_side import (
    TEXT,
    WEIGHTS,
    Arrays,
    fetch_text,
    kept,
    ranges,
    same,
    wanted_of,
)
from tests.hub_double import HubDouble


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _retype(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))


BREAKS: list[tuple[str, Callable[[Path], Any]]] = [
    (".safetensors", _flip),
    (".safetensors", _retype),
    (".safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    (".safetensors", lambda path: path.write_bytes(b"")),
    (".safetensors", Path.unlink),
    (".json", Path.unlink),
    (".json", lambda path: path.write_bytes(b"[]")),
    (".json", lambda path: path.write_bytes(b"{")),
    (".json", lambda path: path.write_bytes(b"\xff")),
    (".json", lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"b"))),
]


@pytest.mark.parametrize(("suffix", "damage"), BREAKS)
def test_what_was_kept_and_is_broken_is_read_again(
    suffix: str,
    damage: Callable[[Path], Any],
    repo: ResolvedRepo,
    hub: HubDouble,
    at: Hub,
    clip: Arrays,
    tmp_path: Path,
) -> None:
    first = fetch_text(repo, tmp_path / "one", at)
    (path,) = [path for path in kept(at) if path.suffix == suffix]
    damage(path)
    hub.forget_requests()
    second = fetch_text(repo, tmp_path / "two", at)
    assert ranges(hub) != []
    assert second.files == first.files
    found = load_file(second.weights[0])
    assert same(found, clip)
    hub.forget_requests()
    fetch_text(repo, tmp_path / "three", at)
    assert ranges(hub) == []


def test_a_transfer_that_breaks_off_goes_on_from_there(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    seen: list[int] = []

    def watch(done: int, total: int) -> None:
        seen.append(done)

    wanted = wanted_of(repo, at)
    hub.forget_requests()
    hub.truncate("/cdn/", times=2, keep=1_000_000)
    fetched = fetch(repo, repo.towers[0], tmp_path / "into", at, watch, wanted)
    begins = [begin for begin, _ in ranges(hub)]
    assert len(begins) == 3
    assert all(0 < b - a <= 1_000_000 for a, b in pairwise(begins))
    assert hub.bytes_sent("/cdn/") <= 1.05 * sum(clip[name].nbytes for name in TEXT)
    assert seen == sorted(seen)
    found = load_file(fetched.weights[0])
    assert same(found, clip)


def test_an_outage_in_the_middle_is_hub_unavailable_and_leaves_nothing(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    wanted = wanted_of(repo, at)
    hub.truncate("/cdn/", times=1, keep=1_000_000)

    def pull_the_plug(done: int, total: int) -> None:
        hub.fail(status=503)

    with pytest.raises(HubUnavailableError, match="503"):
        fetch(repo, repo.towers[0], tmp_path / "into", at, pull_the_plug, wanted)
    assert hub.bytes_sent("/cdn/") > 1_000_000
    assert kept(at) == [] and not (tmp_path / "into").exists()
    hub.heal()
    fetch(repo, repo.towers[0], tmp_path / "into", at, wanted=wanted)


def test_a_transfer_that_ends_too_early_again_and_again_is_hub_unavailable(
    repo: ResolvedRepo, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = wanted_of(repo, at)
    monkeypatch.setattr(partial, "get_range", lambda *rest, **more: iter([b"x"]))
    with pytest.raises(HubUnavailableError, match=r"too early"):
        fetch(repo, repo.towers[0], tmp_path / "into", at, wanted=wanted)
    assert kept(at) == [] and not (tmp_path / "into").exists()


def test_an_interrupt_leaves_nothing(repo: ResolvedRepo, at: Hub, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_text(repo, tmp_path / "into", at, progress=interrupt)
    assert kept(at) == [] and not (tmp_path / "into").exists()


def test_another_size_than_declared_is_refused(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    wanted = wanted_of(repo, at)
    hub.tamper("org/model", WEIGHTS, save(clip) + b"more")
    with pytest.raises(HashMismatchError, match=WEIGHTS):
        fetch(repo, repo.towers[0], tmp_path / "into", at, wanted=wanted)
    assert kept(at) == [] and not (tmp_path / "into").exists()


def test_two_fetches_at_once_both_succeed(
    repo: ResolvedRepo, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda n: fetch_text(repo, tmp_path / str(n), at), range(4)))
    assert all(each.files == fetched[0].files for each in fetched)
    for each in fetched:
        found = load_file(each.weights[0])
        assert same(found, clip)
    assert sorted(path.suffix for path in kept(at)) == [".json", ".safetensors"]


@pytest.mark.parametrize(
    ("code", "fault"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EIO, "cannot be kept")],
)
def test_a_disk_that_fails_is_told_and_leaves_nothing(
    code: int,
    fault: str,
    repo: ResolvedRepo,
    at: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Path.open

    class Failing:
        def __init__(self, path: Path, mode: str, options: dict[str, Any]) -> None:
            self._stream = real(path, mode, **options)

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def write(self, data: bytes) -> int:
            if self._stream.tell() > 1_000_000:
                raise OSError(code, "it fails")
            return int(self._stream.write(data))

    def opened(path: Path, mode: str = "r", **options: Any) -> Any:
        return Failing(path, mode, options) if mode == "xb" else real(path, mode, **options)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OutputError, match=fault):
        fetch_text(repo, tmp_path / "into", at)
    assert kept(at) == [] and not (tmp_path / "into").exists()


def test_a_folder_that_cannot_be_made_is_told(repo: ResolvedRepo, at: Hub, tmp_path: Path) -> None:
    (at.cache.parent / "assets").write_bytes(b"in the way")
    with pytest.raises(OutputError, match="cannot be kept"):
        fetch_text(repo, tmp_path / "into", at)


def test_no_message_holds_the_token_or_a_signed_address(
    hub: HubDouble, clip: Arrays, at: Hub, tmp_path: Path
) -> None:
    hub.add_user("hf_secret", "alice", orgs=["org"])
    hub.add_repo("org/model", tower(model__safetensors=save(clip)), private=True)
    me = Hub(hub.endpoint, "hf_secret", at.cache)
    repo = resolve("org/model", me)
    wanted = wanted_of(repo, me)
    for match, status in (("/cdn/", 403), ("/cdn/", 503), ("/resolve/", 401), ("/resolve/", 429)):
        hub.heal()
        hub.fail(match=match, status=status)
        with pytest.raises(AmdetError) as caught:
            fetch(repo, repo.towers[0], tmp_path / "into", me, wanted=wanted)
        error: BaseException | None = caught.value
        assert "hf_secret" not in str(error) and "Signature" not in str(error)
    hub.heal()
    fetch(repo, repo.towers[0], tmp_path / "into", me, wanted=wanted)
    for path in kept(at):
        assert b"hf_secret" not in path.read_bytes()
