"""The clean towers that hf-amdet knows by itself, and which of them can be a suspect's anchor."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from hf_amdet.encoders.anchors import SHAPE
from hf_amdet.encoders.config import family_of, text_config

ADDED_ROWS = 8_192
"""By so many rows the embedding table of a suspect may differ from its anchor's."""

FAR = 0.5
"""Relative weight distance from which two towers are taken for separately trained ones.

Independent trainings lie above 1 (two seeds of the small towers: docs/benchmarks.md), since
unrelated weights of equal norm differ by the square root of two; fine-tunes stay far below.
"""


@dataclass(frozen=True)
class Known:
    """An entry of anchors.toml.

    Attributes:
        revision: the commit that is pinned; None for one that nobody vouches for.
        path: of the tower inside the repo.
        sha256: of its weight file, where it is known.
        text: the settings that a suspect must share, its family and the rows of its table.
    """

    repo_id: str
    revision: str | None
    path: str
    sha256: str | None
    provenance: str
    text: Mapping[str, Any]

    @property
    def target(self) -> str:
        """As `hf-amdet scan` takes it."""
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"

    @property
    def vouched(self) -> bool:
        """Whether what was looked at when the entry was made is what is fetched now."""
        return self.revision is not None

    def misfit(self, config: Mapping[str, Any], architecture: str) -> str | None:
        """Why it cannot be the anchor of a tower of that configuration; None if it can.

        Raises:
            MalformedFileError: the configuration makes no sense.
        """
        return misfit(shape_of(config, architecture), self.text)


def known_anchors() -> tuple[Known, ...]:
    """Every entry of the registry, in its order."""
    text = (resources.files("hf_amdet.encoders") / "anchors.toml").read_text(encoding="utf-8")
    return tuple(
        Known(
            entry["repo_id"],
            entry.get("revision"),
            entry.get("path", ""),
            entry.get("sha256"),
            entry["provenance"],
            entry["text"],
        )
        for entry in tomllib.loads(text)["anchor"]
    )


def shape_of(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """What decides whether two towers can be compared, from a parsed config.json.

    Raises:
        MalformedFileError: the configuration makes no sense.
    """
    family = family_of(architecture)
    sizes = text_config(config, family)
    names = (*SHAPE, "projection_size", "vocab_size")
    return {
        "family": family.name,
        **{name: getattr(sizes, name) for name in names if hasattr(sizes, name)},
    }


def misfit(suspect: Mapping[str, Any], anchor: Mapping[str, Any]) -> str | None:
    """The first setting in which two shapes differ, in words; None where they fit."""
    for name in ("family", *SHAPE, "projection_size"):
        ours, theirs = suspect.get(name), anchor.get(name)
        if ours != theirs:
            return f"its {name} is {theirs}, the suspect's {ours}"
    if abs(suspect["vocab_size"] - anchor["vocab_size"]) > ADDED_ROWS:
        return f"its table has {anchor['vocab_size']} rows, the suspect's {suspect['vocab_size']}"
    return None
