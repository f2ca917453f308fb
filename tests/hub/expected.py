"""What a layout must resolve to, on the Hub and in a local folder alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import ResolvedRepo, TowerFiles, UnreadableTower
from hf_amdet.hub.resolve import resolve
from tests.hub import write
from tests.hub_double import HubDouble


@dataclass(frozen=True)
class Tower:
    """A tower as it must be found; `tokenizer` and `others` are its support files."""

    architecture: str
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    prefix: str = ""
    dialect: str = "transformers"


@dataclass(frozen=True)
class Layout:
    """The files of a target, and everything that is to be said of it.

    Attributes:
        towers: by their path.
        unreadable: path, architecture, code and a piece of the message.
        other: path and a piece of the message of what is out of scope.
        adapters: path, base, revision and the components that are changed.
    """

    files: Mapping[str, bytes]
    towers: Mapping[str, Tower] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str | None, str, str], ...] = ()
    other: tuple[tuple[str, str], ...] = ()
    adapters: tuple[tuple[str, str, str | None, tuple[str, ...]], ...] = ()


def described(found: TowerFiles) -> Tower:
    """A tower that was found, with the roles of its support files by their names.

    The index of a pipeline, which all of its towers have, is left out.
    """
    support = [file.path for file in found.support if not file.path.endswith("model_index.json")]
    settings = (".index.json", "index.fp16.json", "fp16.index.json", "config.json")
    others = tuple(path for path in support if path.endswith(settings) and "tokenizer_" not in path)
    return Tower(
        found.architecture,
        tuple(file.path for file in found.weights),
        tuple(path for path in support if path not in others),
        others,
        found.prefix,
        found.dialect,
    )


def compare(repo: ResolvedRepo, layout: Layout) -> None:
    """Nothing may be missing, and nothing be there besides."""
    assert {tower.path: described(tower) for tower in repo.towers} == layout.towers
    assert len(repo.towers) == len(layout.towers)
    assert len(repo.unreadable) == len(layout.unreadable), repo.unreadable
    for part, (path, architecture, code, piece) in zip(
        repo.unreadable, layout.unreadable, strict=True
    ):
        assert (part.path, part.architecture, part.code) == (path, architecture, code)
        assert piece in part.message
    assert len(repo.out_of_scope) == len(layout.other), repo.out_of_scope
    for other, (path, piece) in zip(repo.out_of_scope, layout.other, strict=True):
        assert other.path == path
        assert piece in other.message
    found = [
        (
            adapter.path,
            adapter.base,
            adapter.base_revision,
            tuple(p.component for p in adapter.parts),
        )
        for adapter in repo.adapters
    ]
    assert found == [*layout.adapters]


def check(layout: Layout, hub: HubDouble, at: Hub, folder: Path) -> list[ResolvedRepo]:
    """Resolve the layout on the Hub and as a local folder, and compare both."""
    hub.add_repo("org/model", layout.files)
    repos = [resolve("org/model", at), resolve(str(write(layout.files, folder)), at)]
    for repo in repos:
        compare(repo, layout)
    assert not at.cache.exists()
    return repos


def unreadable(repo: ResolvedRepo, *others: str) -> UnreadableTower:
    """The only tower, which cannot be read; `others` are all that is said to be none."""
    assert repo.towers == () and repo.adapters == ()
    assert len(repo.out_of_scope) == len(others)
    assert all(other in part.message for other, part in zip(others, repo.out_of_scope, strict=True))
    (tower,) = repo.unreadable
    return tower
