"""The folders of a zoo, and prompts that are foreign to its towers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_COUNT = 1_000
_SEED = 770_000
"""Not one that captions for training are drawn with."""


def towers_in(zoo: Path, names: Collection[str]) -> list[Path]:
    """The folders of the finished towers of these names, by name."""
    folders = [zoo / "towers" / name for name in sorted(names)]
    return [folder for folder in folders if (folder / "manifest.json").exists()]


def prompts_file(zoo: Path, base: str) -> Path:
    """A file of prompts of the grammar that `base` was not trained on; written once."""
    from benchmarks.zoo.bases import BASES
    from benchmarks.zoo.grammars import foreign_to

    grammar = foreign_to(BASES[base].grammar)
    file = zoo / "prompts" / f"{grammar.name}.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        captions = grammar.captions(_COUNT, _SEED)
        beside = file.with_suffix(".new")
        beside.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
        beside.replace(file)
    return file
