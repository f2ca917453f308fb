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
from hf_amdet.hub.header import shown
from hf_amdet.hub.partial import read_in_part
from hf_amdet.report.schema import FileRecord

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All that is read of a tokenizer; a repo's other files never come near a loader."""

_DEEPEST = 8
_MOST_FILES = 20_000
_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024


def list_directory(directory: Path) -> dict[str, RepoFile]:
    """The regular files of a local directory, up to eight folders down; links are not descended.

    Raises:
        UsageError: the directory cannot be read, or holds more files than a model has.
    """
    listing: dict[str, RepoFile] = {}

    def walk(folder: Path, depth: int) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                name = path.relative_to(directory).as_posix()
                listing[name] = RepoFile(name, path.stat().st_size)
            elif depth < _DEEPEST and path.is_dir() and not path.is_symlink():
                walk(path, depth + 1)
            if len(listing) > _MOST_FILES:
                raise UsageError(
                    f"{directory} holds more than {_MOST_FILES} files. Name the folder of a model."
                )

    try:
        walk(directory, 0)
    except OSError as error:
        raise UsageError(f"{directory} cannot be read: {error.strerror}.") from error
    return listing


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

    A cache that was filled by anything but `hf download` or `fetch` may lack files without anyone
    being able to tell; at the root, a config, weights or a tokenizer without the others is noticed.

    Raises:
        HubUnavailableError: the revision is no full commit sha, the cache lacks a file, or only
            some tensors of a file were read when the commit was scanned online.
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
                allow_patterns=["*.json", "*.txt", "*spiece.model", "*.safetensors"],
            )
        )
    listing = {
        path.relative_to(folder).as_posix(): _cached_file(path, folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    partly = sorted(read_in_part(repo_id, revision, hub) - listing.keys())
    if partly or not _is_complete(listing, repo_id, revision, hub):
        why = f": only some tensors of {shown(partly[0])} were read before" if partly else ""
        raise HubUnavailableError(
            f"Offline mode is on (HF_HUB_OFFLINE), and {repo_id} at {revision} is not complete in"
            f" {hub.cache}{why}. Download it first: `hf download {repo_id} --revision {revision}`."
        )
    return revision, listing


def _is_complete(listing: dict[str, RepoFile], repo_id: str, revision: str, hub: Hub) -> bool:
    """Whether nothing is known to be missing of the cached files."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        # Written when a commit is downloaded as a whole, and compared with the files above.
        get_cached_repo_tree(repo_id, revision=revision, cache_dir=hub.cache)
    except CachedRepoTreeNotFoundError:
        has_weights = any(name.endswith(".safetensors") for name in listing)
        return has_weights and not _lacks_tokenizer(listing)
    return True


def _lacks_tokenizer(listing: dict[str, RepoFile]) -> bool:
    """Whether a model at the root has weights and config but nothing to tokenise with."""
    if CONFIG not in listing:
        return WEIGHTS in listing
    return not (
        {"tokenizer.json", "spiece.model"} & listing.keys()
        or {"vocab.json", "merges.txt"} <= listing.keys()
    )


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
        cached = cached_path(resolved, file, hub)
        if cached is None:
            raise HubUnavailableError(
                f"Offline mode is on (HF_HUB_OFFLINE) and {file.path} of {resolved.repo_id} at "
                f"{resolved.commit_sha} is not in {hub.cache}."
            )
        path = cached
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


def _cached_file(path: Path, snapshot: Path) -> RepoFile:
    # huggingface_hub links each file to a blob that is named by the digest the Hub declared.
    blob = path.readlink().name if path.is_symlink() else ""
    return RepoFile(
        path.relative_to(snapshot).as_posix(),
        path.stat().st_size,
        sha256=blob if _SHA256.fullmatch(blob) else None,
        git_oid=blob if _COMMIT_SHA.fullmatch(blob) else None,
    )


def cached_path(resolved: ResolvedRepo, file: RepoFile, hub: Hub) -> Path | None:
    """Where a file of a commit lies in the cache, if it does."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(
        str(resolved.repo_id), file.path, cache_dir=hub.cache, revision=resolved.commit_sha
    )
    return Path(path) if isinstance(path, str) else None
