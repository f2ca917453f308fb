"""Train the zoo's towers: ``python -m benchmarks.zoo --size small|full [--zoo zoo]``.

With ``--family demo|clip|longclip|siglip|all`` instead, the published attacks alone: the demo takes
about 15 minutes on two cores, a family up to an hour on one. Interrupted, it goes on where it
stopped and ends the same.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from benchmarks.zoo.anchor import AnchorRecipe, SiglipRecipe, build_anchor
from benchmarks.zoo.attacks.text_on_pair import TextOnPair
from benchmarks.zoo.attacks.text_on_text import TextOnText
from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.build import build
from benchmarks.zoo.longclip import LongClipRecipe, build_longclip
from benchmarks.zoo.make import make
from benchmarks.zoo.plan import Size
from benchmarks.zoo.triggers import CYRILLIC_O, Trigger
from benchmarks.zoo.workbench import Recipe

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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--size", choices=get_args(Size), help="attacks, twins and honest changes")
    what.add_argument("--family", choices=[*FAMILIES, "all"], default="demo")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="where towers are put")
    parser.add_argument("--out", type=Path, help="of a family: ZOO/FAMILY, of all: ZOO")
    parser.add_argument("--work", type=Path, help="embeddings and checkpoints; ZOO/work")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    work = options.work or options.zoo / "work"
    if options.size:
        if options.out or options.work:
            parser.error("--out and --work are of a family; a size is made in --zoo")
        for _, folder in make(options.size, options.zoo, options.workers):
            _say(folder)
        return
    torch.use_deterministic_algorithms(True)
    if options.family == "all":
        for family in sorted(FAMILIES.keys() - {"demo"}):
            build_family(family, (options.out or options.zoo) / family, work)
    else:
        build_family(options.family, options.out or options.zoo / options.family, work)


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
    name = manifest.get("name", folder.name)
    print(name, ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
