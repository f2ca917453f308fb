"""One folder with a config.json: the text tower that it holds, once for each set of weights.

A variant (`model.fp16.safetensors`) is a tower of its own: who asks for it gets other bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from hf_amdet.errors import (
    MalformedFileError,
    NoTextTowerError,
    PickleOnlyError,
    TooManyError,
    TowerError,
)
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import OutOfScope, RepoFile, ResolvedRepo, TowerFiles, UnreadableTower
from hf_amdet.hub.header import parse_json, shown
from hf_amdet.hub.source import (
    ADAPTER,
    CONFIG,
    INDEX,
    TOKENIZER_FILES,
    WEIGHTS,
    local_path,
    read_start,
    verify,
)

Folder = Mapping[str, RepoFile]
"""The files directly in a folder of a target, by their plain names."""

MAX_CONFIG_BYTES = 1024**2
MAX_SUPPORT_BYTES = 64 * 1024**2
MAX_WEIGHT_BYTES = 32 * 1024**3
MAX_SETS = 8
"""Sets of weights that are read of one folder: the model and its variants."""
MAX_SHARDS = 256

ARCHITECTURES = {
    "clip": ("CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_text_model": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "siglip": ("SiglipModel", "SiglipTextModel"),
    "siglip_text_model": ("SiglipTextModel",),
    "siglip2": ("Siglip2Model", "Siglip2TextModel"),
    "siglip2_text_model": ("Siglip2TextModel",),
}
"""By model_type; the first is meant where config.json names none."""
KNOWN = frozenset(name for names in ARCHITECTURES.values() for name in names)

UNSAFE_SUFFIXES = (
    *(".bin", ".pt", ".pt2", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz"),
    *(".msgpack", ".h5", ".keras", ".gguf", ".onnx"),
)
"""Formats that are never opened; most of them can run code when they are loaded."""

_DETOURS = ("transformers_weights", "quantization_config")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_NUMBERED = re.compile(r"-\d{5}-of-\d{5}\b")
_SINGLE = re.compile(r"model(\.[A-Za-z0-9_-]{1,40})?\.safetensors")
INDEXED = re.compile(
    r"model\.safetensors(\.index|\.index\.[A-Za-z0-9_-]{1,40}|\.[A-Za-z0-9_-]{1,40}\.index)\.json"
)
"""The index of a set of shards, in the spellings of transformers and diffusers."""


def examine(
    repo: ResolvedRepo,
    path: str,
    folder: Folder,
    hub: Hub,
    *,
    tokenizer: Folder | None = None,
    component: str | None = None,
) -> Iterator[TowerFiles | UnreadableTower | OutOfScope]:
    """What a folder with a config.json holds.

    Args:
        path: of the folder inside the repo, "" for its root.
        tokenizer: the folder with its tokenizer, where that is another one.
        component: the class that a pipeline loads the folder as; None for what the config says.
    """
    architecture = component
    try:
        config = parse_json(read_file(repo, folder[CONFIG], MAX_CONFIG_BYTES, hub), CONFIG)
        architecture = component or _architecture(config)
        if architecture is None:
            yield OutOfScope(
                path, f"{_declared(config)}{_in(path)} is no text tower that is known here."
            )
            return
        _refuse_detours(config, folder)
        sets = _weight_sets(folder)
    except TowerError as error:
        yield UnreadableTower(path, architecture, error.code, str(error))
        return
    support = [folder[CONFIG], *tokenizer_files(folder if tokenizer is None else tokenizer)]
    if len(sets) > MAX_SETS:
        yield UnreadableTower(
            path,
            architecture,
            TooManyError.code,
            f"There are {len(sets)} variants of the weights{_in(path)}; {MAX_SETS} are read. Scan "
            "the others from a folder of their own.",
        )
    for name in sets[:MAX_SETS]:
        place = path if name in (WEIGHTS, INDEX) else folder[name].path
        try:
            yield _tower(repo, place, folder, name, (architecture, config), support, hub)
        except TowerError as error:
            yield UnreadableTower(place, architecture, error.code, str(error))


def is_shard(name: str) -> bool:
    """Whether a plain name is that of one file of several that make a model."""
    return _NUMBERED.search(name) is not None


def weight_files(folder: Folder) -> set[str]:
    """Plain names of the safetensors files that a folder with a config.json keeps its model in."""
    return {name for name in folder if name.endswith(".safetensors") and _belongs(name)}


def tokenizer_files(folder: Folder) -> list[RepoFile]:
    """The files of a tokenizer that are in a folder."""
    return [folder[name] for name in TOKENIZER_FILES if name in folder]


def check_files(repo: ResolvedRepo, weights: list[RepoFile], support: list[RepoFile]) -> None:
    """
    Raises:
        MalformedFileError: larger than what is read, or a link that leaves a local folder.
    """
    for file in support:
        check_size(file, MAX_SUPPORT_BYTES)
    total = sum(file.size for file in weights)
    if total > MAX_WEIGHT_BYTES:
        raise MalformedFileError(
            f"The weights have {total} bytes; more than {MAX_WEIGHT_BYTES} are not read."
        )
    if repo.directory is not None:
        for file in (*weights, *support):
            local_path(repo, file)


def check_size(file: RepoFile, limit: int) -> None:
    """
    Raises:
        MalformedFileError: larger than `limit` bytes.
    """
    if file.size > limit:
        raise MalformedFileError(
            f"{file.path} has {file.size} bytes; more than {limit} are not read."
        )


def read_file(repo: ResolvedRepo, file: RepoFile, limit: int, hub: Hub) -> bytes:
    """A whole small file of the target, verified.

    Raises:
        TowerError: larger than `limit`, or not the declared bytes.
        HubError: the Hub refused or did not answer.
    """
    check_size(file, limit)
    data = read_start(repo, file, limit, hub)
    verify(file, io.BytesIO(data))
    return data


def read_json(repo: ResolvedRepo, file: RepoFile, hub: Hub) -> dict[str, Any]:
    """A JSON object of the target, verified.

    Raises:
        TowerError: too large, not the declared bytes, or no JSON object.
        HubError: the Hub refused or did not answer.
    """
    return parse_json(read_file(repo, file, MAX_CONFIG_BYTES, hub), file.path)


def pickle_only(name: str) -> PickleOnlyError:
    """The error for weights that are there only in a format that can run code."""
    return PickleOnlyError(
        f"The weights are only there as {shown(name)}, a format that can run code when it is "
        "loaded. Name a revision that has safetensors, or convert the repo: "
        "https://huggingface.co/spaces/safetensors/convert opens a pull request."
    )


def _belongs(name: str) -> bool:
    return name.startswith(("model.", "model-", "diffusion_pytorch_model"))


def _in(path: str) -> str:
    return f" in {shown(path)}" if path else ""


def _weight_sets(folder: Folder) -> list[str]:
    """A file name for each set of weights: the single file, or the index of shards."""
    # What everybody gets comes first, then the variants, whose names are longer.
    single = [name for name in folder if _SINGLE.fullmatch(name) and not is_shard(name)]
    indexed = [name for name in folder if INDEXED.fullmatch(name)]
    for names in (single, indexed):
        names.sort(key=lambda name: (len(name), name))
    # A single file counts before an index, as loaders have it.
    if WEIGHTS in single and INDEX in indexed:
        indexed.remove(INDEX)
    if single or indexed:
        return [*single, *indexed]
    unsafe = sorted(n for n in folder if PurePosixPath(n).suffix.lower() in UNSAFE_SUFFIXES)
    if unsafe:
        raise pickle_only(unsafe[0])
    raise NoTextTowerError(f"There is a {CONFIG}, but neither {WEIGHTS} nor {INDEX}.")


def _tower(
    repo: ResolvedRepo,
    place: str,
    folder: Folder,
    name: str,
    model: tuple[str, Mapping[str, Any]],
    support: list[RepoFile],
    hub: Hub,
) -> TowerFiles:
    weights, weight_map = [folder[name]], None
    if INDEXED.fullmatch(name):
        weight_map = _read_index(repo, folder[name], hub)
        weights = _shards(folder, name, weight_map)
        support = [*support, folder[name]]
    check_files(repo, weights, support)
    architecture, config = model
    return TowerFiles(place, architecture, config, tuple(weights), tuple(support), weight_map)


def _shards(folder: Folder, index: str, weight_map: Mapping[str, str]) -> list[RepoFile]:
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise MalformedFileError(
            f"{index} names {len(names)} files; more than {MAX_SHARDS} are not read."
        )
    for name in names:
        if name not in folder:
            raise MalformedFileError(f"{index} names {name}, which is not there.")
    return [folder[name] for name in names]


def _read_index(repo: ResolvedRepo, file: RepoFile, hub: Hub) -> dict[str, str]:
    content = parse_json(read_file(repo, file, MAX_SUPPORT_BYTES, hub), file.path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFileError(f"{file.path} has no weight_map.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise MalformedFileError(
                f"{file.path} names {shown(shard)}, which is not the plain name of a safetensors "
                "file."
            )
    return weight_map


def _refuse_detours(config: Mapping[str, Any], folder: Folder) -> None:
    """Refuse what makes loaders use other weights than those that a scan would read."""
    for key in _DETOURS:
        if _holds(config, key):
            raise MalformedFileError(
                f"{CONFIG} sets {key}: users get other weights than those in {WEIGHTS}, and they "
                "are not read here. Name a revision with plain weights."
            )
    if ADAPTER in folder:
        raise MalformedFileError(
            f"There is an {ADAPTER} beside the model: loaders that know PEFT load the model that "
            "it names in place of this one. Upload the model and its adapter apart."
        )


def _holds(value: Any, key: str) -> bool:
    """Whether a key stands anywhere in a JSON value."""
    if isinstance(value, Mapping):
        return key in value or any(_holds(item, key) for item in value.values())
    return isinstance(value, list) and any(_holds(item, key) for item in value)


def _architecture(config: Mapping[str, Any]) -> str | None:
    """The class that config.json declares; None if it is none of ours."""
    model_type, names = config.get("model_type"), config.get("architectures")
    if names is None:
        names = []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise MalformedFileError(f"{CONFIG}: architectures {shown(names)} is no list of names.")
    ours = ARCHITECTURES.get(model_type, ()) if isinstance(model_type, str) else ()
    if not names:
        return ours[0] if ours else None
    known = [name for name in names if name in KNOWN]
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
