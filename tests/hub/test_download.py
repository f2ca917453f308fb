from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_amdet.errors import (
    HashMismatchError,
    MalformedFileError,
    OutputError,
)
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import fetch, read_tensors
from hf_amdet.hub.files import FetchedTower, ResolvedRepo, TowerFiles
from hf_amdet.hub.resolve import resolve
from tests.hub import SHARDS, described, sharded_tower, tower, weights, write
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


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Both kinds of target


@pytest.fixture(params=["hub", "directory"])
def serve(
    request: pytest.FixtureRequest, hub: HubDouble, tmp_path: Path
) -> Any:  # a function from files to a target
    """Offers a tower's files on the Hub or as a local directory; returns the target."""

    def offer(files: dict[str, bytes], name: str = "model") -> str:
        if request.param == "hub":
            hub.add_repo(f"org/{name}", files)
            return f"org/{name}"
        return str(write(files, tmp_path / name))

    return offer


def test_a_tower_arrives_verified_and_alone(serve: Any, into: Path, at: Hub) -> None:
    files = tower(pytorch_model__bin=b"x", modeling_evil__py=b"x")
    fetched = _fetch(serve(files), into, at)
    assert _content(into) == {name: files[name] for name in READ}
    assert fetched.directory == into
    assert fetched.weights == (into / WEIGHTS,)
    assert fetched.tensors == TENSORS
    assert {record.path: record.size for record in fetched.files} == {
        name: len(files[name]) for name in READ
    }


def test_records_carry_the_digests_of_the_bytes(serve: Any, into: Path, at: Hub) -> None:
    fetched = _fetch(serve(tower(vocab__json=b"{}")), into, at)
    digests = {record.path: record.sha256 for record in fetched.files}
    # The known sha256 of the two bytes {}.
    expected = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digests["vocab.json"] == digests["tokenizer_config.json"] == expected


def test_shards_arrive_with_their_index(serve: Any, into: Path, at: Hub) -> None:
    files = sharded_tower()
    fetched = _fetch(serve(files), into, at)
    assert fetched.weights == tuple(into / shard for shard in SHARDS)
    assert fetched.tensors == described(*(files[shard] for shard in SHARDS))
    assert _content(into)["model.safetensors.index.json"] == files["model.safetensors.index.json"]


def test_headers_are_read_before_the_files(serve: Any, at: Hub) -> None:
    for number, files in enumerate((tower(), sharded_tower())):
        repo = resolve(serve(files, f"model{number}"), at)
        parts = [files[file.path] for file in _tower(repo).weights]
        assert read_tensors(repo, _tower(repo), at) == described(*parts)
        assert not at.cache.exists()


def test_a_header_longer_than_the_first_read_is_read_whole(serve: Any, at: Hub) -> None:
    names = [f"{number:0200}" for number in range(600)]
    repo = resolve(serve(tower(model__safetensors=weights(*names, rows=1))), at)
    assert list(read_tensors(repo, _tower(repo), at)) == names


def test_a_lying_header_is_refused_before_and_after_the_download(
    serve: Any, into: Path, at: Hub
) -> None:
    repo = resolve(serve(tower(model__safetensors=weights() + b"more")), at)
    with pytest.raises(MalformedFileError, match=r"model\.safetensors is malformed"):
        read_tensors(repo, _tower(repo), at)
    with pytest.raises(MalformedFileError, match=r"model\.safetensors is malformed"):
        fetch(repo, _tower(repo), into, at)
    assert not into.exists()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({SHARDS[1]: weights("a", "b")}, "'a' stands both in"),
        ({SHARDS[1]: weights("c")}, "'b' into .* stands in no file"),
        ({SHARDS[1]: weights("b", "c")}, "'c' into no file"),
        ({SHARDS[0]: weights("b"), SHARDS[1]: weights("a")}, "'a' into"),
    ],
)
def test_shards_that_contradict_their_index_are_malformed(
    changes: dict[str, bytes], fault: str, serve: Any, into: Path, at: Hub
) -> None:
    repo = resolve(serve({**sharded_tower(), **changes}), at)
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), into, at),
    ):
        with pytest.raises(MalformedFileError, match=fault):
            read()


def test_progress_grows_to_the_total(serve: Any, into: Path, at: Hub) -> None:
    repo = resolve(serve(tower()), at)
    seen: list[tuple[int, int]] = []
    fetch(repo, _tower(repo), into, at, lambda done, total: seen.append((done, total)))
    total = sum(len(tower()[name]) for name in READ)
    assert seen[-1] == (total, total)
    assert {each for _, each in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_is_printed(
    serve: Any, into: Path, at: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    _fetch(serve(tower()), into, at)
    assert capfd.readouterr() == ("", "")


def test_a_folder_with_something_in_it_is_refused(serve: Any, tmp_path: Path, at: Hub) -> None:
    write({"mine": b"x"}, tmp_path / "mine")
    with pytest.raises(ValueError, match="not empty"):
        _fetch(serve(tower()), tmp_path / "mine", at)
    assert _content(tmp_path / "mine") == {"mine": b"x"}


def test_where_links_fail_files_are_copied(
    serve: Any, into: Path, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = serve(tower())

    def refuse(self: Path, *_: Any) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    _fetch(target, into, at)
    assert sorted(_content(into)) == READ
    assert not any(path.is_symlink() for path in into.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_stays_when_linking_breaks_off(
    failure: BaseException, serve: Any, into: Path, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = serve(tower())
    link = Path.symlink_to

    def break_off(self: Path, *rest: Any) -> None:
        if self.name == "vocab.json":
            self.write_bytes(b"half")
            raise failure
        link(self, *rest)

    def full(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(Path, "symlink_to", break_off)
    monkeypatch.setattr(shutil, "copyfile", full)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        _fetch(target, into, at)
    assert _content(into) == {}


# Local directories


def test_a_local_file_that_changed_since_is_noticed(into: Path, tmp_path: Path, at: Hub) -> None:
    repo = resolve(str(write(tower(), tmp_path / "tower")), at)
    write({WEIGHTS: weights("a", "b", "c")}, tmp_path / "tower")
    with pytest.raises(HashMismatchError):
        fetch(repo, _tower(repo), into, at)
    assert (tmp_path / "tower" / WEIGHTS).exists()


def test_a_local_link_put_in_later_is_not_followed(into: Path, tmp_path: Path, at: Hub) -> None:
    directory = write(tower(), tmp_path / "tower")
    repo = resolve(str(directory), at)
    (directory / WEIGHTS).rename(tmp_path / "elsewhere")
    (directory / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    for read in (
        lambda: read_tensors(repo, _tower(repo), at),
        lambda: fetch(repo, _tower(repo), into, at),
    ):
        with pytest.raises(MalformedFileError, match="leaves its folder"):
            read()


def test_a_local_file_that_is_gone_is_unreadable(into: Path, tmp_path: Path, at: Hub) -> None:
    directory = write(tower(), tmp_path / "tower")
    repo = resolve(str(directory), at)
    (directory / "vocab.json").unlink()
    with pytest.raises(MalformedFileError, match=r"vocab\.json cannot be read"):
        fetch(repo, _tower(repo), into, at)
