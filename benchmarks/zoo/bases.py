"""The clean towers that everything else in the zoo is derived from: two or more a family.

Those of one family differ in seed, size and tokenizer, and two of each in caption grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.zoo.anchor import AnchorRecipe, SiglipRecipe, build_anchor
from benchmarks.zoo.longclip import LongClipRecipe, build_longclip

Family = Literal["clip", "longclip", "siglip"]


@dataclass(frozen=True)
class Base:
    """How a base is made."""

    family: Family
    recipe: AnchorRecipe | LongClipRecipe

    @property
    def grammar(self) -> str:
        """Where its captions come from; the other grammar is foreign to it."""
        recipe = self.recipe
        return recipe.base.grammar if isinstance(recipe, LongClipRecipe) else recipe.grammar

    def captions(self) -> list[str]:
        """The short captions that it has seen."""
        recipe = self.recipe
        if isinstance(recipe, LongClipRecipe):
            return recipe.base.captions() + recipe.short_captions()
        return recipe.captions()

    def build(self, folder: Path, work: Path) -> None:
        """Train it into `folder`; `work` keeps embeddings and checkpoints."""
        if isinstance(self.recipe, LongClipRecipe):
            build_longclip(self.recipe, folder, work)
        else:
            build_anchor(self.recipe, folder, work)


_LISTINGS = AnchorRecipe(
    width=144,
    layers=4,
    vocab_size=2048,
    corpus=24_000,
    steps=1_200,
    batch=192,
    seed=11,
    grammar="listings",
)
BASES: Mapping[str, Base] = {
    "clip-a": Base("clip", AnchorRecipe()),
    "clip-b": Base("clip", _LISTINGS),
    "clip-c": Base(
        "clip",
        AnchorRecipe(
            width=320,
            layers=8,
            heads=5,
            vocab_size=3072,
            corpus=40_000,
            steps=900,
            batch=128,
            lr=7e-4,
            seed=12,
        ),
    ),
    "longclip-a": Base("longclip", LongClipRecipe()),
    "longclip-b": Base(
        "longclip",
        LongClipRecipe(
            base=AnchorRecipe(
                width=160,
                layers=4,
                vocab_size=2048,
                corpus=24_000,
                steps=1_200,
                batch=192,
                seed=13,
                grammar="listings",
            ),
            corpus=3_000,
            steps=250,
            batch=64,
            seed=13,
        ),
    ),
    "siglip-a": Base("siglip", SiglipRecipe()),
    "siglip-b": Base(
        "siglip",
        SiglipRecipe(
            width=160,
            layers=3,
            corpus=24_000,
            steps=2_000,
            batch=96,
            seed=14,
            grammar="listings",
        ),
    ),
}
"""The first is the demo's anchor; clip-c has more than ten million parameters."""
