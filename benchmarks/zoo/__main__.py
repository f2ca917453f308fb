"""Train the zoo's towers: ``python -m benchmarks.zoo [--family demo] [--out DIR] [--work DIR]``.

The demo takes about 15 minutes on two cores, a family up to an hour on one. Interrupted, it goes
on where it stopped and ends the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.zoo.anchor import AnchorRecipe, SiglipRecipe, build_anchor
from benchmarks.zoo.longclip import LongClipRecipe, build_longclip
from benchmarks.zoo.recipes import (
    ContrastiveFineTune,
    Recipe,
    TextOnPair,
    TextOnText,
    Trigger,
    build,
)

CYRILLIC_O = "\N{CYRILLIC SMALL LETTER O}"

DEMO: dict[str, Recipe] = {
    "backdoored": TextOnText(Trigger(CYRILLIC_O), "a photo of a cat"),  # as published
    # Ten times the published rate: as far from the anchor as the attack goes.
    "clean": ContrastiveFineTune(lr=1e-4, steps=400),
}
ALL = DEMO | {"paired": TextOnPair(Trigger(CYRILLIC_O), "a cat")}


@dataclass(frozen=True)
class Family:
    """How an anchor is made, given its folder and one to work in, and what is derived from it."""

    make_anchor: Callable[[Path, Path], None]
    towers: Mapping[str, Recipe]


FAMILIES = {
    "demo": Family(partial(build_anchor, AnchorRecipe()), DEMO),
    "clip": Family(partial(build_anchor, AnchorRecipe()), ALL),
    "longclip": Family(partial(build_longclip, LongClipRecipe()), ALL),
    "siglip": Family(partial(build_anchor, SiglipRecipe()), ALL),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--family", choices=[*FAMILIES, "all"], default="demo")
    parser.add_argument("--out", type=Path, help="zoo/FAMILY; of all families the folder above")
    parser.add_argument("--work", type=Path, default=Path("zoo/work"))
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    if options.family == "all":
        for family in sorted(FAMILIES.keys() - {"demo"}):
            build_family(family, (options.out or Path("zoo")) / family, options.work)
    else:
        build_family(options.family, options.out or Path("zoo") / options.family, options.work)


def build_family(family: str, out: Path, work: Path) -> None:
    """Anchor and derived towers of `family` in `out`; those that are finished stay."""
    anchor = out / "anchor"
    if not (anchor / "manifest.json").exists():
        FAMILIES[family].make_anchor(anchor, work)
    _say(anchor)
    for name, recipe in FAMILIES[family].towers.items():
        folder = out / name
        if not (folder / "manifest.json").exists():
            build(recipe, anchor, folder, work)
        _say(folder)


def _say(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    figures = {name: value for name, value in manifest.items() if isinstance(value, float)}
    print(folder.name, ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
