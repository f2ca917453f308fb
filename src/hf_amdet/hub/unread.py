"""Weights that are never opened, and how they are said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from hf_amdet.errors import PickleOnlyError, TooManyError
from hf_amdet.hub.files import OutOfScope, UnreadableTower
from hf_amdet.hub.folder import UNSAFE_SUFFIXES, is_shard
from hf_amdet.hub.header import shown

SAFETENSORS = (".safetensors", ".sft")
"""Endings of safetensors files, in any case: some loaders are not particular."""

_NAMED = 12
_TWINS = {
    "pytorch_model": "model",
    "tf_model": "model",
    "flax_model": "model",
    "adapter_model": "adapter_model",
    "open_clip_pytorch_model": "open_clip_model",
}
"""What a model is called in other formats, and as safetensors."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def is_safetensors(path: str) -> bool:
    return path.lower().endswith(SAFETENSORS)


def is_unsafe(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in UNSAFE_SUFFIXES


def unsafe_in(names: Mapping[str, object]) -> list[str]:
    """The files among `names` that are never opened."""
    return sorted(name for name in names if is_unsafe(name))


def unread(listing: Mapping[str, object]) -> Iterator[UnreadableTower | OutOfScope]:
    """What is said of weights that are not opened, beside towers that are read.

    A model that is there as safetensors too is just named. Of one that is not, nobody here knows
    what is in it, and some loader reads it.
    """
    beside: list[str] = []
    alone: list[str] = []
    for path in sorted(path for path in listing if is_unsafe(path)):
        (beside if _has_twin(path, listing) else alone).append(path)
    if alone:
        yield UnreadableTower(
            "",
            None,
            PickleOnlyError.code,
            f"Not there as safetensors, and therefore not read: {names(alone)}. Loading them can "
            "run code, and what they hold was not looked at. Convert or remove them.",
        )
    if beside:
        yield OutOfScope("", unopened(beside))


def _has_twin(path: str, listing: Mapping[str, object]) -> bool:
    """Whether what a file may hold is there as safetensors, or it is no model by its name."""
    file = PurePosixPath(path)
    stem = _SHARD.sub("", file.stem)
    plain = stem.partition(".")[0]  # without the name of a variant
    twin = _TWINS.get(plain, stem if file.suffix.lower() == ".ckpt" else None)
    if twin is None:
        return True
    folder = "" if file.parent == PurePosixPath() else f"{file.parent}/"
    others = (name.removeprefix(folder) for name in listing if name.startswith(folder))
    return any(
        is_safetensors(name) and (name.rpartition(".")[0] == twin or name.startswith(f"{twin}-"))
        for name in others
    )


def not_looked_into(paths: list[str], what: str) -> UnreadableTower:
    return UnreadableTower(
        "",
        None,
        TooManyError.code,
        f"{len(paths)} more {what} were not looked into: {names(paths)}. Scan them from a folder "
        "of their own.",
    )


def unopened(paths: list[str]) -> str:
    """That these files are in formats which are not read."""
    return f"In formats that are not opened, most of which can run code: {names(paths)}."


def passed_over(paths: list[str]) -> str:
    """That loaders do not take these shards."""
    assert all(is_shard(PurePosixPath(path).name) for path in paths)
    return f"Not read, because loaders pass it over: {names(paths)}."


def names(paths: list[str]) -> str:
    """The first of `paths`, and how many more there are."""
    named = ", ".join(shown(path) for path in paths[:_NAMED])
    more = len(paths) - _NAMED
    return f"{named} and {more} more" if more > 0 else named
