"""Name what is in a repo at one commit: its text towers, and why others cannot be read.

Reads configs, indexes of shards and headers of single files; no weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hf_amdet.errors import UsageError
from hf_amdet.hub.checkpoints import OPEN_CLIP_CONFIG
from hf_amdet.hub.client import DEFAULT_HUB, Hub, is_offline
from hf_amdet.hub.files import (
    AdapterFiles,
    OutOfScope,
    RepoFile,
    ResolvedRepo,
    TowerFiles,
    UnreadableTower,
)
from hf_amdet.hub.layouts import ADAPTER_WEIGHTS, PIPELINE, survey
from hf_amdet.hub.source import (
    ADAPTER,
    CONFIG,
    TOKENIZER_FILES,
    list_cached,
    list_commit,
    list_directory,
)

_BESIDE = (OPEN_CLIP_CONFIG, "README.md", *TOKENIZER_FILES)


def parse_target(target: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split "org/model@rev" into repo id and revision, which may hold slashes (refs/pr/1).

    Raises:
        UsageError: an empty part, or a revision that contradicts the one in the target.
    """
    repo_id, at, inline = target.partition("@")
    if not repo_id or (at and not inline) or revision == "":
        raise UsageError(f"{target!r} is no target; write org/model or org/model@revision.")
    if inline and revision not in (None, inline):
        raise UsageError(
            f"The target {target!r} and the revision {revision!r} contradict each other; give one."
        )
    return repo_id, inline or revision


def resolve(target: str, hub: Hub = DEFAULT_HUB, revision: str | None = None) -> ResolvedRepo:
    """What a target holds, at one commit that every later call is pinned to.

    A target that starts with ".", "~" or "/" is a local directory, or a single safetensors file,
    which is read with the settings and the tokenizer beside it, and without the weights there.
    Any other is one only where a directory of that name with a config.json or model_index.json
    exists; else it is a repo id. Offline, a repo is read from the cache if its revision is a full
    commit sha, because what a branch meant when it was cached may be out of date.

    A tower that is there but cannot be read is listed with the reason, and raises nothing.

    Raises:
        UsageError: neither a directory nor a repo id; contradicting revisions.
        HubError: as `hub_errors` says.
    """
    local = _local_path(target)
    if local is None:
        return resolve_repo(*parse_target(target, revision), hub)
    if revision is not None:
        raise UsageError(f"{target} is a local path and has no revision {revision!r}.")
    if local.is_file():
        directory = local.parent
        settings = ADAPTER if local.name == ADAPTER_WEIGHTS else CONFIG
        paths = [directory / name for name in (local.name, settings, *_BESIDE)]
        listing = {p.name: RepoFile(p.name, p.stat().st_size) for p in paths if p.is_file()}
    else:
        directory, listing = local, list_directory(local)
    return _surveyed(ResolvedRepo(local.name, None, None, directory, ()), listing, hub)


def resolve_repo(repo_id: str, revision: str | None, hub: Hub = DEFAULT_HUB) -> ResolvedRepo:
    """`resolve` for a name that can only be a repo on the Hub, such as one that a repo names.

    Raises:
        UsageError: no valid repo id.
        HubError: as `hub_errors` says.
    """
    if is_offline():
        commit_sha, listing = list_cached(repo_id, revision, hub)
    else:
        commit_sha, listing = list_commit(repo_id, revision, hub)
    return _surveyed(ResolvedRepo(repo_id, repo_id, commit_sha, None, ()), listing, hub)


def _surveyed(repo: ResolvedRepo, listing: Mapping[str, RepoFile], hub: Hub) -> ResolvedRepo:
    repo = replace(repo, card=listing.get("README.md"))
    parts = list(survey(repo, listing, hub))
    if not parts:
        parts = [OutOfScope("", f"{repo.target} holds no model in a layout that is known here.")]
    return replace(
        repo,
        towers=tuple(part for part in parts if isinstance(part, TowerFiles)),
        unreadable=tuple(part for part in parts if isinstance(part, UnreadableTower)),
        out_of_scope=tuple(part for part in parts if isinstance(part, OutOfScope)),
        adapters=tuple(part for part in parts if isinstance(part, AdapterFiles)),
    )


def _local_path(target: str) -> Path | None:
    """The directory, or the weight file, that a target means; None for a repo id."""
    try:
        path = Path(target).expanduser()
        if path.is_file() and _is_path(target) and path.suffix == ".safetensors":
            # Not resolve(): where a cache links to a blob, only the link says what it is.
            return path.parent.resolve() / path.name
        is_model = any((path / name).is_file() for name in (CONFIG, PIPELINE))
        if path.is_dir() and (is_model or _is_path(target)):
            return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{target!r} is neither a directory nor a repo id.") from error
    if _is_path(target):
        raise UsageError(f"There is no directory and no safetensors file {target!r}.")
    return None


def _is_path(target: str) -> bool:
    return target.startswith((".", "~", os.sep)) or Path(target).is_absolute()
