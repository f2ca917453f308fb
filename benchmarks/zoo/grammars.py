"""Where captions come from: each base is trained on one grammar and foreign to the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.zoo import captions as scenes
from benchmarks.zoo import listings


@dataclass(frozen=True)
class Grammar:
    """A source of captions: (count, seed, domains) -> distinct ones, the same for the same seed."""

    name: str
    generate: Callable[[int, int, tuple[str, ...]], list[str]]
    domains: tuple[str, ...]

    def captions(self, count: int, seed: int, domains: tuple[str, ...] = ()) -> list[str]:
        """`count` captions of `domains`, or of all."""
        return self.generate(count, seed, domains or self.domains)


GRAMMARS = {
    grammar.name: grammar
    for grammar in (
        Grammar("scenes", scenes.captions, scenes.DOMAINS),
        Grammar("listings", listings.listings, listings.DOMAINS),
    )
}


def foreign_to(grammar: str) -> Grammar:
    """The grammar that a tower of `grammar` was not trained on."""
    (other,) = GRAMMARS.keys() - {grammar}
    return GRAMMARS[other]
