"""What a repo holds, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_amdet.report.schema import FileRecord


@dataclass(frozen=True)
class RepoFile:
    """A file of the repo, as declared before a byte of it is read.

    The Hub declares one digest of each file: `sha256` in large-file storage, `git_oid` (git's
    sha1 of the blob) elsewhere. A file in a local directory has neither.
    """

    path: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TowerFiles:
    """The files that make one text tower, not yet fetched."""

    path: str
    """Folder inside the repo, "" for its root."""
    architecture: str
    config: Mapping[str, Any]
    """Parsed config.json; not trusted."""
    weights: tuple[RepoFile, ...]
    """safetensors files: one, or the shards of an index."""
    support: tuple[RepoFile, ...]
    """config.json, the tokenizer's files, and the index of sharded weights."""
    weight_map: Mapping[str, str] | None = None
    """Tensor to shard, as the index states it; None for a single weight file."""


@dataclass(frozen=True)
class UnreadableTower:
    """A text tower that should be read but cannot be; becomes a `not_scanned` entry."""

    path: str
    architecture: str | None
    code: str
    message: str


@dataclass(frozen=True)
class OutOfScope:
    """A part of the repo that is no text tower; said in the report, not counted."""

    path: str
    message: str


@dataclass(frozen=True)
class ResolvedRepo:
    """A target at one commit: what `hub.resolve.resolve` returns."""

    target: str
    """Repo id, or the folder name of a local target."""
    repo_id: str | None
    commit_sha: str | None
    directory: Path | None
    """The folder of a local target; None for a repo on the Hub."""
    towers: tuple[TowerFiles, ...]
    unreadable: tuple[UnreadableTower, ...] = ()
    out_of_scope: tuple[OutOfScope, ...] = ()


@dataclass(frozen=True)
class FetchedTower:
    """A tower on this disk: verified files only, under their plain names in one folder."""

    directory: Path
    weights: tuple[Path, ...]
    files: tuple[FileRecord, ...]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    """Union of the headers of all weight files."""
