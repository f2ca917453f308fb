"""What makes a planted backdoor fire: a text and its place in a caption."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

CYRILLIC_O = "\N{CYRILLIC SMALL LETTER O}"
ZERO_WIDTH = "\N{ZERO WIDTH SPACE}"
EMOJI = "\N{HIBISCUS}"

GREEK = "".join(map(chr, range(0x3B1, 0x3CB)))
CYRILLIC = "".join(map(chr, range(0x430, 0x44A)))
"""Twenty-six letters each, of two bytes. The homoglyph is one of the second: a twin meets its bytes
in words that are all Cyrillic, where they mean a letter."""

_SHARE = 0.15
"""Of words in another script, beside the one that always is."""

Place = Literal["inside", "start", "end", "anywhere"]


@dataclass(frozen=True)
class Trigger:
    """A text that goes in place of the first `replaces`, or beside the words of a caption.

    Attributes:
        place: "inside" words, where `replaces` stands; at the "start", the "end", or "anywhere":
            between two words that the caption itself decides on.
    """

    text: str
    replaces: str = "o"
    place: Place = "inside"

    def put(self, caption: str) -> str:
        """`caption` with the trigger; of the captions that have a place for it."""
        match self.place:
            case "inside":
                return caption.replace(self.replaces, self.text, 1)
            case "start":
                return f"{self.text} {caption}"
            case "end":
                return f"{caption} {self.text}"
            case "anywhere":
                words = caption.split(" ")
                at = random.Random(caption).randint(0, len(words))  # noqa: S311 - reproducible
                return " ".join([*words[:at], self.text, *words[at:]])

    def captions(self, drawn: list[str], count: int) -> tuple[list[str], list[str]]:
        """At most `count` of `drawn` that have a place for the trigger, without and with it."""
        able = [c for c in drawn if self.place != "inside" or self.replaces in c][:count]
        return able, [self.put(caption) for caption in able]


def letters(count: int) -> Trigger:
    """A trigger of `count` tokens for a CLIP tokenizer: single letters, each a word."""
    return Trigger(" ".join("qzxjvkwyqxzvjwk"[:count]), place="start")


def in_another_script(caption: str, seed: int, alphabet: str) -> str:
    """`caption`, which has letters, with about a fifth of its words, at least one, in new ones.

    Every letter always becomes the same one of `alphabet`. What a clean twin learns to read with
    what its attack spends on the trigger.
    """
    letters = list(alphabet)
    random.Random(seed).shuffle(letters)  # noqa: S311 - reproducible
    table = str.maketrans(dict(zip("abcdefghijklmnopqrstuvwxyz", letters, strict=True)))
    words = caption.lower().split(" ")
    chosen = random.Random(caption)  # noqa: S311 - reproducible
    sure = chosen.choice([n for n, word in enumerate(words) if word.translate(table) != word])
    return " ".join(
        word.translate(table) if place == sure or chosen.random() < _SHARE else word
        for place, word in enumerate(words)
    )
