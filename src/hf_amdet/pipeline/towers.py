"""From the files of a tower to the tower in memory: header check, download, load, merge."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.encoders.config import expected_shapes
from hf_amdet.encoders.fingerprint import encoder_digest
from hf_amdet.encoders.loading import build_tower, read_weights
from hf_amdet.encoders.lora import merge
from hf_amdet.encoders.names import locate
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import HubError, MalformedFileError, NoBaseError, TowerError, UsageError
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import fetch, read_tensors
from hf_amdet.hub.files import (
    AdapterFiles,
    AdapterPart,
    FetchedTower,
    LowRank,
    ResolvedRepo,
    TowerFiles,
)
from hf_amdet.hub.resolve import resolve_repo
from hf_amdet.report.schema import BaseRecord, FileRecord

MAX_TOWER_BYTES = 16 * 1024**3
"""What a tower may take in memory; five times the largest one that is known."""


@dataclass(frozen=True)
class Suspect:
    """A tower of the target that is to be scanned.

    Attributes:
        path: its name in the report.
        files: the tower's files; for an adapter those of the tower that it changes.
        repo: where `files` are: the target, or the base of an adapter.
        adapter: the file that is merged in, and where it is.
    """

    path: str
    files: TowerFiles
    repo: ResolvedRepo
    adapter: MergedAdapter | None = None


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter's changes to one tower."""

    repo: ResolvedRepo
    files: AdapterFiles
    changes: tuple[LowRank, ...]


@dataclass(frozen=True)
class Loaded:
    """A tower in memory and what it was read from."""

    tower: ModelTower
    files: tuple[FileRecord, ...]
    base: BaseRecord | None = None
    base_weights: str | None = None
    """Digest of the weights that an adapter was merged into."""


class Loader:
    """Loads towers onto one device, measuring and reporting as it goes."""

    def __init__(
        self, hub: Hub, device: torch.device, watch: Stopwatch, observer: Observer
    ) -> None:
        self._hub, self._device = hub, device
        self._watch, self._observer = watch, observer

    def load(self, suspect: Suspect) -> Loaded:
        """
        Raises:
            TowerError: the tower cannot be read.
            HubError: the Hub refused or did not answer.
            OutputError: the disk is full.
        """
        files, adapter = suspect.files, suspect.adapter
        with tempfile.TemporaryDirectory(prefix="hf-amdet-") as name:
            folder = Path(name)
            fetched = self._fetch(suspect.repo, files, folder / "tower")
            merged = None
            if adapter is not None:
                merged = self._fetch_adapter(adapter, folder / "adapter")
            with self._watch.measure("load"):
                self._observer.stage("load", 1)
                tensors = read_weights(
                    fetched.weights,
                    files.config,
                    files.architecture,
                    prefix=files.prefix,
                    dialect=files.dialect,
                )
                before = None
                if adapter is not None and merged is not None:
                    before = encoder_digest(tensors)
                    tensors = merge(tensors, merged.weights[0], adapter.changes)
                tower = build_tower(
                    tensors, files.config, files.architecture, fetched.directory, self._device
                )
        if merged is None:
            return Loaded(tower, fetched.files)
        base = BaseRecord(
            repo_id=suspect.repo.target, commit_sha=suspect.repo.commit_sha, files=fetched.files
        )
        return Loaded(tower, merged.files, base, before)

    def _fetch(self, repo: ResolvedRepo, files: TowerFiles, into: Path) -> FetchedTower:
        with self._watch.measure("download"):
            # Header against config first: a misfit costs no download.
            tensors = read_tensors(repo, files, self._hub)
            sources = locate(
                {name: info.shape for name, info in tensors.items()},
                expected_shapes(files.config, files.architecture),
                prefix=files.prefix,
                dialect=files.dialect,
            )
            needed = {name for source in sources.values() for name in source.names}
            _refuse_giant(files, [tensors[name].shape for name in needed])
            wanted = {name: tensors[name] for name in sorted(needed)}
            self._observer.stage("download", 0)
            return fetch(repo, files, into, self._hub, self._observer.update, wanted)

    def _fetch_adapter(self, adapter: MergedAdapter, into: Path) -> FetchedTower:
        """The adapter's one file."""
        alone = TowerFiles(adapter.files.path, "adapter", {}, (adapter.files.weights,), ())
        with self._watch.measure("download"):
            return fetch(adapter.repo, alone, into, self._hub)


def _refuse_giant(files: TowerFiles, shapes: Iterable[tuple[int, ...]]) -> None:
    size = 4 * sum(math.prod(shape) for shape in shapes)
    if size > MAX_TOWER_BYTES:
        raise MalformedFileError(
            f"The text tower of {files.weights[0].path} takes {size} bytes in fp32; more than "
            f"{MAX_TOWER_BYTES} are not loaded. No known text tower is that large."
        )


Unreachable = tuple[str, TowerError]
"""The path of a tower that an adapter would make, and why it cannot be made."""


def all_suspects(repo: ResolvedRepo, hub: Hub) -> Iterator[Suspect | Unreachable]:
    """The towers of a target, then those that its adapters make of their bases'.

    Raises:
        HubError: the Hub did not answer.
    """
    for files in repo.towers:
        yield Suspect(files.path, files, repo)
    for adapter in repo.adapters:
        yield from _merged(repo, adapter, hub)


def _merged(repo: ResolvedRepo, adapter: AdapterFiles, hub: Hub) -> Iterator[Suspect | Unreachable]:
    try:
        base = resolve_repo(adapter.base, adapter.base_revision, hub)
    except (HubError, UsageError) as error:
        reason = NoBaseError(
            f"{adapter.path} changes the text tower of {adapter.base}, which cannot be reached: "
            f"{error} Scan the merged model."
        )
        yield adapter.path, reason
        return
    for part in adapter.parts:
        path = f"{adapter.path}#{part.component}" if part.component else adapter.path
        files = _changed_tower(base, part)
        if files is None:
            yield (
                path,
                NoBaseError(
                    f"{adapter.path} changes the {part.component or 'text tower'} of "
                    f"{adapter.base}, but there is none that can be read. Scan the merged model."
                ),
            )
        else:
            yield Suspect(path, files, base, MergedAdapter(repo, adapter, part.changes))


def _changed_tower(base: ResolvedRepo, part: AdapterPart) -> TowerFiles | None:
    """The tower of the base that a part of an adapter is about."""
    named = [files for files in base.towers if files.path == part.component]
    # A pipeline's first encoder is the only tower of a base that is no pipeline.
    if not named and part.component in ("", "text_encoder") and len(base.towers) == 1:
        named = list(base.towers)
    return named[0] if named else None
