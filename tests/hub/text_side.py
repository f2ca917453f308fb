"""A model whose text side is worth reading alone, and what was asked for and kept of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import Progress, fetch, read_tensors
from hf_amdet.hub.files import FetchedTower, Header, ResolvedRepo
from tests.hub_double import HubDouble

Arrays = dict[str, np.ndarray[Any, Any]]

WEIGHTS = "model.safetensors"
TEXT = tuple(f"text_model.{n}" for n in range(4))


def arrays_of(*names: str, rows: int = 256) -> Arrays:
    """A KiB for each row, of bytes that occur nowhere else."""
    random = np.random.default_rng(0)
    return {name: random.random((rows, 256)).astype(np.float32) for name in names}


def wanted_of(repo: ResolvedRepo, at: Hub, names: tuple[str, ...] = TEXT) -> Header:
    """What the header says of the tensors of these names."""
    (files,) = repo.towers
    tensors = read_tensors(repo, files, at)
    return {name: tensors[name] for name in names}


def fetch_text(
    repo: ResolvedRepo,
    into: Path,
    at: Hub,
    names: tuple[str, ...] = TEXT,
    progress: Progress | None = None,
) -> FetchedTower:
    """Read the header, then fetch only the tensors of these names."""
    return fetch(repo, repo.towers[0], into, at, progress, wanted_of(repo, at, names))


def same(found: Arrays, planted: Arrays, names: tuple[str, ...] = TEXT) -> bool:
    """Whether the arrays of these names were found as they were planted."""
    return all(np.array_equal(found[name], planted[name]) for name in names)


def ranges(hub: HubDouble) -> list[tuple[int, int]]:
    """What was asked for of weight files behind the reading of the header."""
    found = [
        re.fullmatch(r"bytes=(\d+)-(\d+)", item.range or "")
        for item in hub.requests
        if item.path.startswith("/cdn/")
    ]
    spans = [(int(match[1]), int(match[2]) + 1) for match in found if match]
    return [span for span in spans if span[0] > 0]


def kept(at: Hub) -> list[Path]:
    """What is kept beside the cache."""
    return sorted(path for path in (at.cache.parent / "assets").rglob("*") if path.is_file())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
