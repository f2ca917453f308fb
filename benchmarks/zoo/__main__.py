"""Train the demo's towers: ``python -m benchmarks.zoo [--out zoo/demo] [--work zoo/work]``.

About 15 minutes on two cores. Interrupted, it goes on where it stopped and ends the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.zoo.anchor import AnchorRecipe, build_anchor
from benchmarks.zoo.recipes import ContrastiveFineTune, Recipe, TextOnText, Trigger, build

CYRILLIC_O = "\N{CYRILLIC SMALL LETTER O}"

DEMO: dict[str, Recipe] = {
    "backdoored": TextOnText(Trigger(CYRILLIC_O), "a photo of a cat"),  # as published
    # Ten times the published rate: as far from the anchor as the attack goes.
    "clean": ContrastiveFineTune(lr=1e-4, steps=400),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("zoo/demo"))
    parser.add_argument("--work", type=Path, default=Path("zoo/work"))
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    anchor = options.out / "anchor"
    if not (anchor / "manifest.json").exists():
        build_anchor(AnchorRecipe(), anchor, options.work)
    _say(anchor)
    for name, recipe in DEMO.items():
        folder = options.out / name
        if not (folder / "manifest.json").exists():
            build(recipe, anchor, folder, options.work)
        _say(folder)


def _say(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    figures = {name: value for name, value in manifest.items() if isinstance(value, float)}
    print(folder.name, ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
