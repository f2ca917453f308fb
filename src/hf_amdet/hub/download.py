"""Bring one text tower here: pinned to its commit, verified byte for byte, nothing else beside it.

What a loader gets is a folder that holds the tower's files and no others, so that nothing in a
cache or a repo but those files can influence what is loaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hf_amdet.errors import (
    HashMismatchError,
    MalformedFileError,
    OutputError,
)
from hf_amdet.hub.client import (
    DEFAULT_HUB,
    Hub,
    RangeIgnoredError,
    hub_errors,
    is_offline,
    size_mismatch,
)
from hf_amdet.hub.files import FetchedTower, Header, RepoFile, ResolvedRepo, TensorInfo, TowerFiles
from hf_amdet.hub.header import header_end, parse_head, read_header, shown
from hf_amdet.hub.partial import fetch_tensors, is_worth, size_of, tensors_in
from hf_amdet.hub.source import cached_path, local_path, read_start, unreadable, verify
from hf_amdet.report.schema import FileRecord

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes in all."""

_FIRST_READ = 100_000
"""Bytes asked for at first; nearly every header is shorter, so that one request is enough."""


def read_tensors(
    resolved: ResolvedRepo, tower: TowerFiles, hub: Hub = DEFAULT_HUB
) -> dict[str, TensorInfo]:
    """The tensors of a tower from the headers of its weight files, without their data.

    Raises:
        MalformedFileError: a header lies or does not parse, shards contradict their index.
        HashMismatchError: a file has not the declared size.
        HubError: the Hub refused or did not answer.
    """
    return _union(tower, [read_head(resolved, file, hub)[0] for file in tower.weights])


def read_head(
    resolved: ResolvedRepo, file: RepoFile, hub: Hub = DEFAULT_HUB
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata in the header of one safetensors file; raises as `read_tensors`."""
    head = read_start(resolved, file, _FIRST_READ, hub)
    end = header_end(head, file.size, file.path)
    if end > len(head):
        head = read_start(resolved, file, end, hub)
    return parse_head(head, file.size, file.path)


def fetch(
    resolved: ResolvedRepo,
    tower: TowerFiles,
    into: Path,
    hub: Hub = DEFAULT_HUB,
    progress: Progress | None = None,
    wanted: Header | None = None,
) -> FetchedTower:
    """Download and verify a tower's files and link them under their plain names into `into`.

    `into` is made if need be and must be empty; on any error nothing is left in it.

    Args:
        wanted: those of `read_tensors` that are needed; None for all. Where they are less than
            half of a file in large-file storage, only they are read, and `into` gets a file with
            them alone. Files without any of them are left out.

    Raises:
        HashMismatchError: bytes that are not those that the Hub declared. They are removed from
            the cache, so that a second try downloads them again.
        MalformedFileError: as for `read_tensors`.
        HubError: the Hub refused or did not answer.
        OutputError: the disk is full or must not be written.
        ValueError: `into` is not empty.
    """
    if into.exists() and any(into.iterdir()):
        raise ValueError(f"{into} is not empty")
    parts = _parts(tower, wanted)
    files = (*(file for file, _ in parts), *tower.support)
    meter = _Meter(sum(file.size for file in files), progress)
    sources: dict[str, Path] = {}
    records = []
    for file, part in (*parts, *((file, None) for file in tower.support)):
        path, record = _obtain(resolved, file, part, hub, meter)
        records.append(record)
        meter.finish(file)
        sources[plain_name(file)] = path
    weights = [file for file, _ in parts]
    headers = [read_header(sources[plain_name(file)], file.path) for file in weights]
    if wanted is None:
        tensors = _union(tower, headers)
    else:
        tensors = {name: info for header in headers for name, info in header.items()}
        _check_unchanged(wanted, tensors, tower)
    _link(sources, into)
    return FetchedTower(
        into, tuple(into / plain_name(file) for file in weights), tuple(records), tensors
    )


def _parts(tower: TowerFiles, wanted: Header | None) -> list[tuple[RepoFile, Header | None]]:
    """The weight files that are needed, and which of their tensors are; None for all."""
    if wanted is None:
        return [(file, None) for file in tower.weights]
    parts = [
        (file, tensors_in(plain_name(file), wanted, tower.weight_map)) for file in tower.weights
    ]
    return [(file, part) for file, part in parts if part]


def _check_unchanged(wanted: Header, found: Header, tower: TowerFiles) -> None:
    """What was decided from the header must be true of the file that came."""
    for name, info in wanted.items():
        other = found.get(name)
        if other is None or (other.dtype, other.shape) != (info.dtype, info.shape):
            raise MalformedFileError(
                f"Tensor {shown(name)} of {tower.weights[0].path} is not the one that the header "
                "announced: the file changed while it was read. Try again."
            )


def plain_name(file: RepoFile) -> str:
    """The file's name without the folder in the repo."""
    return PurePosixPath(file.path).name


class _Meter:
    """Adds up what has come of all files."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._finished = 0
        self._sizes: dict[RepoFile, int] = {}

    def advance(self, received: int) -> None:
        """Of the file that is under way, `received` bytes are here."""
        if self._progress is not None:
            self._progress(min(self._finished + received, self._total), self._total)

    def expect(self, file: RepoFile, size: int) -> None:
        """Of `file`, only `size` bytes will come."""
        self._total += size - self._sizes.get(file, file.size)
        self._sizes[file] = size

    def finish(self, file: RepoFile) -> None:
        self._finished += self._sizes.get(file, file.size)
        self.advance(0)


def _obtain(
    resolved: ResolvedRepo, file: RepoFile, part: Header | None, hub: Hub, meter: _Meter
) -> tuple[Path, FileRecord]:
    """A verified file, or one with the tensors of `part` alone where that saves enough."""
    if part and _can_be_read_in_part(resolved, file, part, hub):
        meter.expect(file, size_of(part))
        try:
            return fetch_tensors(resolved, file, part, hub, meter.advance)
        except RangeIgnoredError:
            meter.expect(file, file.size)
    path = _download(resolved, file, hub, meter)
    return path, _verify_here(resolved, file, path, hub)


def _can_be_read_in_part(resolved: ResolvedRepo, file: RepoFile, part: Header, hub: Hub) -> bool:
    if resolved.repo_id is None or is_offline() or not is_worth(file, part):
        return False
    return cached_path(resolved, file, hub) is None


def _download(resolved: ResolvedRepo, file: RepoFile, hub: Hub, meter: _Meter) -> Path:
    if resolved.repo_id is None or resolved.commit_sha is None:
        return local_path(resolved, file)
    with hub_errors(resolved.repo_id, resolved.commit_sha, hub=hub):
        return Path(
            hub.api().hf_hub_download(
                resolved.repo_id,
                file.path,
                # A full sha: an outage cannot bring back the cached file of another commit.
                revision=resolved.commit_sha,
                cache_dir=hub.cache,
                tqdm_class=_progress_class(file, meter),
            )
        )


def _progress_class(file: RepoFile, meter: _Meter) -> Any:
    """What huggingface_hub takes for a progress bar.

    Draws nothing, reports to `meter`, and stops a transfer that is not of the declared size
    before it fills the disk.
    """

    class Bar:
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            if total is not None and total != file.size:
                raise size_mismatch(file, total)
            self._received = initial

        def update(self, n: float | None = 1) -> None:
            self._received += int(n or 0)
            if self._received > file.size:
                raise size_mismatch(file, self._received)
            meter.advance(self._received)

        def update_transfer(self, n: float) -> None:
            """Bytes on the wire, where they differ from the file's; they are not counted."""

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def close(self) -> None: ...

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar


def _verify_here(resolved: ResolvedRepo, file: RepoFile, path: Path, hub: Hub) -> FileRecord:
    try:
        with path.open("rb") as stream:
            return verify(file, stream)
    except HashMismatchError:
        if resolved.repo_id is not None:
            _discard(path, hub.cache)
        raise
    except OSError as error:
        raise unreadable(file, error) from error


def _discard(path: Path, cache: Path) -> None:
    """Remove a file of the cache with the links that lead to it, never anything outside."""
    while path.is_relative_to(cache):
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        # Not resolve(): that would skip the links in between.
        path = Path(os.path.normpath(target))


def _link(sources: Mapping[str, Path], into: Path) -> None:
    """Put every file into the folder under its name, or none."""
    made = []
    try:
        into.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            made.append(into / name)
            try:
                made[-1].symlink_to(source.resolve())
            except OSError:  # A file system or a Windows account without symbolic links.
                shutil.copyfile(source, made[-1])
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{into} cannot be written: {error.strerror}.") from error
        raise


def _union(tower: TowerFiles, headers: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """All tensors of a tower, each of which stands in one file, the one that the index names."""
    tensors: dict[str, TensorInfo] = {}
    found: dict[str, str] = {}
    for file, header in zip(tower.weights, headers, strict=True):
        if twice := found.keys() & header.keys():
            name = min(twice)
            raise MalformedFileError(
                f"Tensor {shown(name)} stands both in {found[name]} and in {plain_name(file)};"
                " which of them counts is not defined."
            )
        tensors.update(header)
        found.update(dict.fromkeys(header, plain_name(file)))
    if tower.weight_map is not None and found != tower.weight_map:
        name = min(name for name, _ in found.items() ^ tower.weight_map.items())
        raise MalformedFileError(
            f"The index puts tensor {shown(name)} into {tower.weight_map.get(name, 'no file')},"
            f" but it stands in {found.get(name, 'no file')}."
        )
    return tensors
