"""Where a target's bytes come from: a local directory, a commit on the Hub, or the cache.

Everything here is pinned: a listing states each file's size and digest, and whoever reads a whole
file checks it against them with `verify`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

from hf_amdet.errors import (
    HashMismatchError,
    HubUnavailableError,
    MalformedFileError,
    UsageError,
)
from hf_amdet.hub.client import DEFAULT_HUB, Hub, get_start, hub_errors, is_offline, size_mismatch
from hf_amdet.hub.files import RepoFile, ResolvedRepo
from hf_amdet.report.schema import FileRecord

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUPPORT = (
    CONFIG,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that are read besides weights; a repo's other files never come near a loader."""

_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024


def list_directory(directory: Path) -> dict[str, RepoFile]:
    """The regular files of a local directory and of the folders directly below it.

    Raises:
        UsageError: the directory cannot be read.
    """
    try:
        paths = sorted(directory.iterdir())
        for folder in [path for path in paths if path.is_dir() and not path.is_symlink()]:
            paths += sorted(folder.iterdir())
        names = {path.relative_to(directory).as_posix(): path for path in paths if path.is_file()}
        return {name: RepoFile(name, path.stat().st_size) for name, path in names.items()}
    except OSError as error:
        raise UsageError(f"{directory} cannot be read: {error.strerror}.") from error


def list_commit(repo_id: str, revision: str | None, hub: Hub) -> tuple[str, dict[str, RepoFile]]:
    """The commit that a revision stands for now, and its files.

    Raises:
        HubError: as `hub_errors` says.
    """
    from huggingface_hub import constants

    no_hub = HubUnavailableError(
        f"{hub.url} did not answer as a Hub does about {repo_id}. Check HF_ENDPOINT."
    )
    with hub_errors(repo_id, revision, hub=hub):
        try:
            info = hub.api().model_info(
                repo_id,
                revision=revision,
                files_metadata=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise no_hub from error
    sha = str(info.sha)
    if not _COMMIT_SHA.fullmatch(sha) or info.siblings is None:
        raise no_hub
    # A branch may be named like a commit; a pinned commit must be that commit.
    if revision is not None and _COMMIT_SHA.fullmatch(revision) and revision != sha:
        raise HubUnavailableError(f"{hub.url} answered with commit {sha} instead of {revision}.")
    listing = {}
    for file in info.siblings:
        size = file.lfs.size if file.lfs else file.size
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        if not (isinstance(size, int) and size >= 0 and isinstance(digest, str)):
            raise no_hub
        listing[file.rfilename] = (
            RepoFile(file.rfilename, size, sha256=digest)
            if file.lfs
            else RepoFile(file.rfilename, size, git_oid=digest)
        )
    return sha, listing


def list_cached(repo_id: str, revision: str | None, hub: Hub) -> tuple[str, dict[str, RepoFile]]:
    """The files of a pinned commit that are in the cache, for offline use.

    A cache that was not filled by `hf download` or by `fetch` may lack a tokenizer file without
    anyone being able to tell; what is enough to build a tokenizer is asked for.

    Raises:
        HubUnavailableError: the revision is no full commit sha, or the cache lacks a file.
    """
    if revision is None or not _COMMIT_SHA.fullmatch(revision):
        raise HubUnavailableError(
            f"Offline mode is on (HF_HUB_OFFLINE), and {revision or 'main'!r} of {repo_id} may have"
            " moved since it was cached. Nothing was read. Give the full commit sha of a"
            f" downloaded commit, {repo_id}@<40 hex digits>, or go online."
        )
    with hub_errors(repo_id, revision, hub=hub):
        folder = Path(
            # Raises if the commit was downloaded as a whole and one of these is missing now.
            hub.api().snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=hub.cache,
                local_files_only=True,
                allow_patterns=[*SUPPORT, WEIGHTS, INDEX],
            )
        )
    listing = {path.name: _cached_file(path) for path in folder.iterdir() if path.is_file()}
    has_tokenizer = "tokenizer.json" in listing or {"vocab.json", "merges.txt"} <= listing.keys()
    if CONFIG not in listing or not {WEIGHTS, INDEX} & listing.keys() or not has_tokenizer:
        raise HubUnavailableError(
            f"Offline mode is on (HF_HUB_OFFLINE), and {repo_id} at {revision} is not complete in"
            f" {hub.cache}. Download it first: `hf download {repo_id} --revision {revision}`."
        )
    return revision, listing


def read_start(resolved: ResolvedRepo, file: RepoFile, limit: int, hub: Hub = DEFAULT_HUB) -> bytes:
    """The first `limit` bytes of a file of the target, or all of it if it is shorter.

    Offline, a file of a pinned commit comes from the cache.

    Raises:
        MalformedFileError: a local file that cannot be read, or a link that leaves its folder.
        HashMismatchError: a file has not the declared size.
        HubError: the Hub refused or did not answer.
    """
    if resolved.repo_id is None or resolved.commit_sha is None:
        path = local_path(resolved, file)
    elif is_offline():
        path = _cached_path(resolved.repo_id, resolved.commit_sha, file, hub)
    else:
        return get_start(resolved.repo_id, resolved.commit_sha, file, limit, hub=hub)
    try:
        with path.open("rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise unreadable(file, error) from error


def local_path(resolved: ResolvedRepo, file: RepoFile) -> Path:
    """Where a file of a local target lies.

    Raises:
        MalformedFileError: it is a link to somewhere outside the target's folder.
    """
    assert resolved.directory is not None
    path = (resolved.directory / file.path).resolve()
    if not path.is_relative_to(resolved.directory.resolve()):
        raise MalformedFileError(
            f"{file.path} is a link that leaves its folder, and is not followed. Scan the folder"
            " that it leads to, or put a copy in its place (`cp -L`)."
        )
    return path


def verify(file: RepoFile, stream: BinaryIO) -> FileRecord:
    """Read a file to its end and compare it with what the Hub declared about it.

    Raises:
        HashMismatchError: another size or another digest.
    """
    sha256 = hashlib.sha256()
    # Git names a blob by the digest of this line and the content; SHA-1 is git's choice.
    git_oid = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    size = 0
    while chunk := stream.read(_CHUNK_BYTES):
        sha256.update(chunk)
        size += len(chunk)
        if file.git_oid is not None:
            git_oid.update(chunk)
    if size != file.size:
        raise size_mismatch(file, size)
    for declared, found in (
        (file.sha256, sha256.hexdigest()),
        (file.git_oid, git_oid.hexdigest()),
    ):
        if declared not in (None, found):
            raise HashMismatchError(
                f"{file.path} is not the file that was declared: its digest is {found}, not"
                f" {declared}. Try again; if it stays so, do not use the file."
            )
    return FileRecord(path=file.path, size=size, sha256=sha256.hexdigest())


def unreadable(file: RepoFile, error: OSError) -> MalformedFileError:
    """The error for a file that the operating system does not let us read."""
    return MalformedFileError(f"{file.path} cannot be read: {error.strerror}.")


def _cached_file(path: Path) -> RepoFile:
    # huggingface_hub links each file to a blob that is named by the digest the Hub declared.
    blob = path.readlink().name if path.is_symlink() else ""
    return RepoFile(
        path.name,
        path.stat().st_size,
        sha256=blob if _SHA256.fullmatch(blob) else None,
        git_oid=blob if _COMMIT_SHA.fullmatch(blob) else None,
    )


def _cached_path(repo_id: str, commit_sha: str, file: RepoFile, hub: Hub) -> Path:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, file.path, cache_dir=hub.cache, revision=commit_sha)
    if not isinstance(path, str):
        raise HubUnavailableError(
            f"Offline mode is on (HF_HUB_OFFLINE) and {file.path} of {repo_id} at {commit_sha} is"
            f" not in {hub.cache}."
        )
    return Path(path)
