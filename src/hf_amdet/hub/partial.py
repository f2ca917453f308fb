"""A few tensors of a large safetensors file, by ranged reads, as a small safetensors file.

The text tower is a third of a CLIP model and a tenth of a Stable Diffusion checkpoint. What is
read this way cannot be checked against the digest that the Hub declares of the whole file; the
report carries that digest beside our own of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_amdet.errors import HubUnavailableError, MalformedFileError
from hf_amdet.hub.client import Hub, get_range, hub_errors
from hf_amdet.hub.files import Header, RepoFile, ResolvedRepo
from hf_amdet.hub.header import parse_json, read_header
from hf_amdet.report.schema import FileRecord

_WORTH = 0.5
"""Ranged reads are made where less than this share of a file's bytes is wanted."""
_BACKOFF = (1.0, 2.0, 4.0, 8.0)
_CHUNK_BYTES = 1024 * 1024

Advance = Callable[[int], None]
"""Called with the bytes of the file that are here."""


def is_worth(file: RepoFile, wanted: Header) -> bool:
    """Whether reading only `wanted` of `file` saves more than half of its bytes.

    Only files in large-file storage: the Hub declares a sha256 of them that a report can name.
    """
    return file.sha256 is not None and size_of(wanted) < _WORTH * file.size


def size_of(wanted: Header) -> int:
    """Bytes that the tensors hold."""
    return sum(info.size for info in wanted.values())


def fetch_tensors(
    resolved: ResolvedRepo, file: RepoFile, wanted: Header, hub: Hub, advance: Advance
) -> tuple[Path, FileRecord]:
    """A safetensors file with the `wanted` tensors of `file`, kept for the next scan.

    Raises:
        RangeIgnoredError: the server does not send parts of files.
        HubError, HashMismatchError: as `get_range` says, after a few tries.
        OutputError: the disk is full or must not be written.
    """
    assert resolved.repo_id is not None and resolved.commit_sha is not None
    with hub_errors(resolved.repo_id, resolved.commit_sha, hub=hub):
        folder = hub.assets(resolved.repo_id, resolved.commit_sha)
        key = json.dumps([hub.url, file.path, file.sha256, sorted(wanted)])
        kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        digests = _kept_digests(kept, wanted)
        if digests is None:
            _download(resolved, file, wanted, kept, hub, advance)
            digests = _tensor_digests(kept)
            side = {"path": file.path, "tensors": digests}
            _replace(kept.with_suffix(".json"), [json.dumps(side).encode()])
    assert file.sha256 is not None
    return kept, FileRecord(path=file.path, size=file.size, sha256=file.sha256, tensors=digests)


def read_in_part(repo_id: str, commit_sha: str, hub: Hub) -> set[str]:
    """The paths of the files of a commit of which only tensors were kept."""
    try:
        sides = list(hub.assets(repo_id, commit_sha).glob("*.json"))
    except OSError:  # A disk that nothing can be written to, and nothing was.
        return set()
    return {str(side.get("path")) for path in sides if (side := _side(path)) is not None}


def _side(path: Path) -> dict[str, Any] | None:
    """What stands beside kept tensors, None if it is broken."""
    try:
        return parse_json(path.read_bytes(), path.name)
    except (OSError, MalformedFileError):
        return None


def _kept_digests(kept: Path, wanted: Header) -> dict[str, str] | None:
    """The digests of an earlier read, if its bytes are still those; None to read again."""
    side = _side(kept.with_suffix(".json"))
    try:
        shapes = {name: (info.dtype, info.shape) for name, info in read_header(kept, "").items()}
        if side is None or shapes != {name: (i.dtype, i.shape) for name, i in wanted.items()}:
            return None
        found = _tensor_digests(kept)
    except (OSError, MalformedFileError):
        return None
    return found if found == side.get("tensors") else None


def _tensor_digests(path: Path) -> dict[str, str]:
    """The sha256 of every tensor's bytes."""
    digests = {}
    with path.open("rb") as stream:
        for name, info in sorted(read_header(path, path.name).items()):
            stream.seek(info.span[0])
            digest, left = hashlib.sha256(), info.size
            while left > 0 and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
            digests[name] = digest.hexdigest()
    return digests


def _download(
    resolved: ResolvedRepo, file: RepoFile, wanted: Header, to: Path, hub: Hub, advance: Advance
) -> None:
    order = sorted(wanted, key=lambda name: wanted[name].span)

    def content() -> Iterator[bytes]:
        yield _header_of(wanted, order)
        received = 0
        for run in _runs(wanted, order):
            for chunk in _insistently(resolved, file, run, hub):
                received += len(chunk)
                advance(received)
                yield chunk

    _replace(to, content())


def _header_of(wanted: Header, order: list[str]) -> bytes:
    entries, position = {}, 0
    for name in order:
        info = wanted[name]
        offsets = [position, position + info.size]
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": offsets}
        position += info.size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _runs(wanted: Header, order: list[str]) -> Iterator[tuple[int, int]]:
    """The spans to ask for: tensors that lie one behind the other are one request."""
    begin = end = None
    for name in order:
        first, last = wanted[name].span
        if begin is not None and first == end:
            end = last
            continue
        if begin is not None and end is not None and end > begin:
            yield begin, end
        begin, end = first, last
    if begin is not None and end is not None and end > begin:
        yield begin, end


def _insistently(
    resolved: ResolvedRepo, file: RepoFile, span: tuple[int, int], hub: Hub
) -> Iterator[bytes]:
    """The bytes of a span; where a transfer breaks off it goes on from there."""
    assert resolved.repo_id is not None and resolved.commit_sha is not None
    position, end = span
    waits = iter(_BACKOFF)
    while position < end:
        failure: Exception | None = None
        try:
            for chunk in get_range(
                resolved.repo_id, resolved.commit_sha, file, (position, end), hub=hub
            ):
                position += len(chunk)
                yield chunk
        except HubUnavailableError as error:
            failure = error
        if position < end:
            wait = next(waits, None)
            if wait is None:
                raise failure or HubUnavailableError(
                    f"{hub.url} ended the transfer of {file.path} too early, again and again. Try "
                    "again later."
                )
            time.sleep(wait)


def _replace(path: Path, content: Iterator[bytes] | list[bytes]) -> None:
    """Write a file whole or not at all, also where two scans write it at once."""
    # By hand rather than by tempfile, whose files are private to the user whatever the umask says:
    # a cache may be shared.
    part = path.with_name(f".part-{secrets.token_hex(8)}")
    try:
        with part.open("xb") as stream:
            for chunk in content:
                stream.write(chunk)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def tensors_in(file_name: str, wanted: Header, weight_map: Mapping[str, str] | None) -> Header:
    """Those of `wanted` that stand in the file of that plain name."""
    if weight_map is None:
        return wanted
    return {name: info for name, info in wanted.items() if weight_map[name] == file_name}
