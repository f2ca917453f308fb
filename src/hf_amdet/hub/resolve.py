"""Name what is in a repo at one commit: its text towers, and why others cannot be read.

Reads config.json and, for sharded weights, the index; no weights. Knows CLIP towers at the root
of a repo or of a local directory.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_amdet.errors import (
    MalformedFileError,
    NoTextTowerError,
    PickleOnlyError,
    TowerError,
    UsageError,
)
from hf_amdet.hub.client import DEFAULT_HUB, Hub, is_offline
from hf_amdet.hub.files import OutOfScope, RepoFile, ResolvedRepo, TowerFiles, UnreadableTower
from hf_amdet.hub.header import parse_json, shown
from hf_amdet.hub.source import (
    ADAPTER,
    CONFIG,
    INDEX,
    SUPPORT,
    WEIGHTS,
    list_cached,
    list_commit,
    list_directory,
    local_path,
    read_start,
    verify,
)

Listing = Mapping[str, RepoFile]
"""The files of a target by path; those at its root are under their plain names."""

MAX_CONFIG_BYTES = 1024**2
MAX_SUPPORT_BYTES = 32 * 1024**2
MAX_WEIGHT_BYTES = 32 * 1024**3

_ARCHITECTURES = {
    "clip": ("CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
"""By model_type; the first is meant where config.json names none."""

_DETOURS = ("transformers_weights", "quantization_config")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")


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

    A target that starts with ".", "~" or "/" is a local directory. Any other is one only where a
    directory of that name with a config.json exists; else it is a repo id. Offline, a repo is read
    from the cache if its revision is a full commit sha, because what a branch meant when it was
    cached may be out of date.

    A tower that is there but cannot be read is listed with the reason, and raises nothing.

    Raises:
        UsageError: neither a directory nor a repo id; contradicting revisions.
        HubError: as `hub_errors` says.
    """
    directory = _local_directory(target)
    if directory is not None:
        if revision is not None:
            raise UsageError(f"{target} is a local directory and has no revision {revision!r}.")
        repo = ResolvedRepo(directory.name, None, None, directory, ())
        listing = list_directory(directory)
    else:
        repo_id, revision = parse_target(target, revision)
        if is_offline():
            commit_sha, listing = list_cached(repo_id, revision, hub)
        else:
            commit_sha, listing = list_commit(repo_id, revision, hub)
        repo = ResolvedRepo(repo_id, repo_id, commit_sha, None, ())
    towers, unreadable, out_of_scope = [], [], []
    for part in (_examine(repo, "", listing, hub), *_below(listing)):
        match part:
            case TowerFiles():
                towers.append(part)
            case UnreadableTower():
                unreadable.append(part)
            case OutOfScope():
                out_of_scope.append(part)
    return replace(
        repo,
        towers=tuple(towers),
        unreadable=tuple(unreadable),
        out_of_scope=tuple(out_of_scope),
    )


def _below(listing: Listing) -> Iterator[UnreadableTower | OutOfScope]:
    """Folders that look like models: they are not read yet, which has to be said."""
    for name in sorted(listing):
        folder, _, file = name.rpartition("/")
        if not folder or file != CONFIG:
            continue
        kinds = {PurePosixPath(n).suffix for n in listing if n.rpartition("/")[0] == folder}
        if not kinds & {".safetensors", *_UNSAFE_SUFFIXES}:
            continue
        if PurePosixPath(folder).name.startswith("text_encoder"):
            yield UnreadableTower(
                folder,
                None,
                NoTextTowerError.code,
                f"{shown(folder)} looks like a text encoder, but only towers at the root of a repo"
                " are read. Download that folder with its tokenizer and scan it as a folder.",
            )
        else:
            yield OutOfScope(folder, f"The model in {shown(folder)} was not looked into.")


def _local_directory(target: str) -> Path | None:
    try:
        path = Path(target).expanduser()
        if path.is_dir() and ((path / CONFIG).is_file() or _is_path(target)):
            return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{target!r} is neither a directory nor a repo id.") from error
    if _is_path(target):
        raise UsageError(f"There is no directory {target!r}.")
    return None


def _is_path(target: str) -> bool:
    return target.startswith((".", "~", os.sep)) or Path(target).is_absolute()


def _examine(
    repo: ResolvedRepo, folder: str, listing: Listing, hub: Hub
) -> TowerFiles | UnreadableTower | OutOfScope:
    """What one folder of the repo is."""
    if CONFIG not in listing:
        return OutOfScope(
            folder, f"No {CONFIG} at the root; pipelines and other layouts are not read."
        )
    architecture = None
    try:
        config = parse_json(_read_whole(repo, listing[CONFIG], MAX_CONFIG_BYTES, hub), CONFIG)
        architecture = _architecture(config)
        if architecture is None:
            return OutOfScope(folder, f"{_declared(config)} is no text tower that is known here.")
        _refuse_detours(config, listing)
        weights, weight_map = _weights(repo, listing, hub)
        support = [listing[name] for name in SUPPORT if name in listing]
        if weight_map is not None:
            support.append(listing[INDEX])
        _check_files(repo, weights, support)
    except TowerError as error:
        return UnreadableTower(folder, architecture, error.code, str(error))
    return TowerFiles(folder, architecture, config, tuple(weights), tuple(support), weight_map)


def _refuse_detours(config: Mapping[str, Any], listing: Listing) -> None:
    """Refuse what makes loaders use other weights than those that a scan would read."""
    for key in _DETOURS:
        if key in config:
            raise MalformedFileError(
                f"{CONFIG} sets {key}: users get other weights than those in {WEIGHTS}, and they "
                "are not read here. Name a revision with plain weights."
            )
    if ADAPTER in listing:
        raise MalformedFileError(
            f"There is an {ADAPTER}: loaders merge it into the weights, and merged adapters are "
            "not read yet. Scan the merged model."
        )


def _architecture(config: Mapping[str, Any]) -> str | None:
    """The class that config.json declares; None if it is none of ours."""
    model_type, names = config.get("model_type"), config.get("architectures")
    if names is None:
        names = []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise MalformedFileError(f"{CONFIG}: architectures {shown(names)} is no list of names.")
    ours = _ARCHITECTURES.get(model_type, ()) if isinstance(model_type, str) else ()
    if not names:
        return ours[0] if ours else None
    known = [name for name in names if name in _ARCHITECTURES["clip"]]
    if known and known[0] not in ours:
        raise MalformedFileError(
            f"{CONFIG} contradicts itself: architecture {known[0]} with model_type"
            f" {shown(model_type)}."
        )
    return known[0] if known else None


def _declared(config: Mapping[str, Any]) -> str:
    names, model_type = config.get("architectures"), config.get("model_type")
    if names:
        return f"Architecture {shown(names[0])}"
    return f"Model type {shown(model_type)}" if model_type else f"A {CONFIG} without architecture"


def _weights(
    repo: ResolvedRepo, listing: Listing, hub: Hub
) -> tuple[list[RepoFile], dict[str, str] | None]:
    """The weight files and, if they are sharded, which tensor is in which."""
    if WEIGHTS in listing:
        return [listing[WEIGHTS]], None
    if INDEX in listing:
        weight_map = _read_index(repo, listing[INDEX], hub)
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if shard not in listing:
                raise MalformedFileError(f"{INDEX} names {shard}, which is not there.")
        return [listing[shard] for shard in shards], weight_map
    unsafe = sorted(
        n for n in listing if "/" not in n and PurePosixPath(n).suffix.lower() in _UNSAFE_SUFFIXES
    )
    if unsafe:
        raise PickleOnlyError(
            f"The weights are only there as {shown(unsafe[0])}, a format that can run code when it"
            " is loaded. Name a revision that has safetensors, or convert the repo:"
            " https://huggingface.co/spaces/safetensors/convert opens a pull request."
        )
    raise NoTextTowerError(f"There is a {CONFIG}, but neither {WEIGHTS} nor {INDEX}.")


def _read_index(repo: ResolvedRepo, file: RepoFile, hub: Hub) -> dict[str, str]:
    weight_map = parse_json(_read_whole(repo, file, MAX_SUPPORT_BYTES, hub), INDEX).get(
        "weight_map"
    )
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFileError(f"{INDEX} has no weight_map.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise MalformedFileError(
                f"{INDEX} names {shown(shard)}, which is not the plain name of a safetensors file."
            )
    return weight_map


def _check_files(repo: ResolvedRepo, weights: list[RepoFile], support: list[RepoFile]) -> None:
    for file in support:
        _check_size(file, MAX_SUPPORT_BYTES)
    total = sum(file.size for file in weights)
    if total > MAX_WEIGHT_BYTES:
        raise MalformedFileError(
            f"The weights have {total} bytes; more than {MAX_WEIGHT_BYTES} are not read."
        )
    if repo.directory is not None:
        for file in (*weights, *support):
            local_path(repo, file)


def _check_size(file: RepoFile, limit: int) -> None:
    if file.size > limit:
        raise MalformedFileError(
            f"{file.path} has {file.size} bytes; more than {limit} are not read."
        )


def _read_whole(repo: ResolvedRepo, file: RepoFile, limit: int, hub: Hub) -> bytes:
    _check_size(file, limit)
    data = read_start(repo, file, limit, hub)
    verify(file, io.BytesIO(data))
    return data
