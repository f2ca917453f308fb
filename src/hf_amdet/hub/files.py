"""What a repo holds, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    span: tuple[int, int]
    """First byte and first byte behind, counted from the start of the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.span[1] - self.span[0]


Header = Mapping[str, TensorInfo]
"""The tensors of one safetensors file by name."""


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one weight: scale * up @ down.

    Attributes:
        module: the module of the bare text model, such as ``encoder.layers.0.mlp.fc1``.
        down, up: names of the `[r, in]` and `[out, r]` tensors in the adapter's file.
        alpha: name of the tensor that holds alpha, where the file holds it.
        scale: the factor that the adapter's settings state; None for alpha / r, or 1 without an
            alpha.
    """

    module: str
    down: str
    up: str
    alpha: str | None = None
    scale: float | None = None


@dataclass(frozen=True)
class AdapterPart:
    """What an adapter does to one text tower of its base.

    Attributes:
        component: "text_encoder", "text_encoder_2", ... of a pipeline; "" for a base that is a
            text tower itself.
    """

    component: str
    changes: tuple[LowRank, ...]


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA that changes text towers of another repo, its base."""

    path: str
    """The adapter's file inside the repo."""
    weights: RepoFile
    base: str
    """Repo id of the base, the owner's word."""
    base_revision: str | None
    parts: tuple[AdapterPart, ...]


Dialect = Literal["transformers", "open_clip"]
"""Whose tensor names a checkpoint uses."""


@dataclass(frozen=True)
class TowerFiles:
    """The files that make one text tower, not yet fetched."""

    path: str
    """Folder inside the repo, "" for its root; the weight file where the folder holds several
    towers, with the prefix of its tensors behind a # where the file does."""
    architecture: str
    config: Mapping[str, Any]
    """Parsed config.json, or the sizes that the shapes of the tensors say; not trusted."""
    weights: tuple[RepoFile, ...]
    """safetensors files: one, or the shards of an index."""
    support: tuple[RepoFile, ...]
    """config.json, the tokenizer's files (none where the repo has none), the index of shards."""
    weight_map: Mapping[str, str] | None = None
    """Tensor to shard, as the index states it; None for a single weight file."""
    prefix: str = ""
    """What the names of its tensors begin with, in a file that holds other things too."""
    dialect: Dialect = "transformers"


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
    adapters: tuple[AdapterFiles, ...] = ()
    card: RepoFile | None = None
    """README.md at the root."""


@dataclass(frozen=True)
class FetchedTower:
    """A tower on this disk: verified files only, under their plain names in one folder."""

    directory: Path
    weights: tuple[Path, ...]
    files: tuple[FileRecord, ...]
    tensors: Header = field(repr=False)
    """Union of the headers of all weight files."""
