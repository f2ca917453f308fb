"""What a detector gets to see of a tower: no manifest, no name, nothing else of the zoo."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEEDED = ("model.safetensors", "config.json", "tokenizer.json")
_OPTIONAL = ("tokenizer_config.json",)


@contextmanager
def views(tower: Path, anchor: Path) -> Iterator[tuple[Path, Path]]:
    """Copies of both folders that hold the files of a tower alone, and are gone afterwards.

    Raises:
        OSError: a file of a tower is not there.
    """
    with tempfile.TemporaryDirectory(prefix="judge-") as name:
        # What they are called says nothing either.
        shown = Path(name) / "suspect", Path(name) / "anchor"
        for folder, view in zip((tower, anchor), shown, strict=True):
            view.mkdir()
            present = [file for file in _OPTIONAL if (folder / file).exists()]
            for file in (*_NEEDED, *present):
                shutil.copyfile(folder / file, view / file)
        yield shown
