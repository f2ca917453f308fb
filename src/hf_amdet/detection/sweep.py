"""The second witness: every real token of the vocabulary, tried behind BOS.

Inversion gives both towers the same embedding, so it cannot see a poisoned row, and it may end at
an embedding that no text has. Here each tower reads the token through its own table.

A whole vocabulary costs as much as all other stages together, so tokens are dropped in rounds: the
first has the least to encode, and no later one sees more than a small part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.detection.config import SweepSettings
from hf_amdet.detection.inversion import positions
from hf_amdet.detection.objective import consistency, encode_triggered, one_later
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens
from hf_amdet.errors import PromptsError

_WORD = 4
"""Positions of a token with a word behind it: BOS, token, word, EOS."""
_OVERFLOW = 2.0
"""What is no number comes first: it must be looked at, and no gap is as wide."""


@dataclass(frozen=True)
class Pair:
    """The same N prompts as both towers read them."""

    suspect: Tokens
    anchor: Tokens

    def first(self, count: int) -> Pair:
        part = slice(count)
        return Pair(self.suspect.rows(part), self.anchor.rows(part))


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that both towers can be given.

    Attributes:
        ids: `[V]`, the suspect's.
        suspect, anchor: `[T, D]`, the row that each has for every id of the suspect's table.
        places: `[1, D]` each, the position embeddings behind BOS.
    """

    ids: Tensor
    suspect: Tensor
    anchor: Tensor
    places: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, suspect: TextTower, anchor: TextTower, rows: Tensor) -> Vocabulary:
        """All pieces of the suspect's tokenizer but for the special ones.

        Args:
            rows: `[T, D]`, the anchor's row for each of the suspect's (`static.aligned_rows`).
        """
        ids = torch.tensor(sorted(set(suspect.pieces.values()) - suspect.special))
        places = positions(suspect, 1), positions(anchor, 1)
        return cls(ids.to(suspect.device), suspect.table, rows, places)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> Vocabulary:
        return replace(self, ids=self.ids[index])

    def ours(self, part: slice = slice(None)) -> Tensor:
        """What the suspect makes of a part of the tokens, `[P, 1, D]`."""
        return self.suspect[self.ids[part]].float().unsqueeze(1) + self.places[0]

    def theirs(self, part: slice = slice(None)) -> Tensor:
        """What the anchor makes of a part of the tokens, `[P, 1, D]`."""
        return self.anchor[self.ids[part]].float().unsqueeze(1) + self.places[1]


@dataclass(frozen=True)
class Swept:
    """What the sweep found, the most suspicious first.

    Attributes:
        suspicious: tokens that unite prompts in the suspect and not in the anchor.
        shared: the token that unites them most in both.
    """

    suspicious: Vocabulary
    shared: Vocabulary


def sweep(
    suspect: TextTower,
    anchor: TextTower,
    vocabulary: Vocabulary,
    words: Pair,
    short: Pair,
    long: Pair,
    settings: SweepSettings,
    runtime: Runtime,
    advanced: Callable[[int], None],
) -> Swept:
    """Try all of `vocabulary` on `words`, the best of it on `short` prompts, and then on `long`.

    Behind one word a trigger hardly unites more than other tokens do, but the towers already part
    under it: the first round goes by anchor divergence, and by consistency for what both share.

    Args:
        words: as little as two texts can differ in (`two_words`).
        advanced: told how many tokens have been tried.
    """
    first = Pair(words.suspect, words.anchor.rows(slice(1)))
    divergence, united = _try(suspect, anchor, vocabulary, first, _apart, runtime, advanced)
    screened = max(settings.kept, math.ceil(len(vocabulary) * settings.screened))
    kept = vocabulary.rows(_some_of_each(divergence, united, screened))

    second = short.first(settings.prompts)
    ours, theirs = _try(suspect, anchor, kept, second, _consistencies, runtime)
    kept = kept.rows(_some_of_each(ours - theirs, _both(ours, theirs), settings.kept))

    third = long.first(settings.refined_on)
    ours, theirs = _try(suspect, anchor, kept, third, _consistencies, runtime)
    suspicious = _highest(ours - theirs, settings.verified)
    return Swept(kept.rows(suspicious), kept.rows(_highest(_both(ours, theirs), 1)))


def two_words(
    suspect: TextTower, anchor: TextTower, prompts: Sequence[str], generator: torch.Generator
) -> Pair:
    """Two words of `prompts`, drawn: what is always the same can be trained around.

    Raises:
        PromptsError: the suspect reads all words as one.
    """
    order = torch.randperm(len(prompts), generator=generator).tolist()
    parts = [prompts[row].split() for row in order]
    # What captions end with says more than most of what they begin with.
    last = [word for part in parts for word in part[-1:]]
    words = list(dict.fromkeys([*last, *(word for part in parts for word in part)]))
    read = suspect.tokenize(words, length=min(_WORD, suspect.context), reserve=1).ids
    other = int((read != read[0]).any(dim=1).int().argmax())
    if not other:
        raise PromptsError("The prompts have no two words that the tokenizer tells apart.")
    return Pair(
        *(
            tower.tokenize([words[0], words[other]], length=min(_WORD, tower.context), reserve=1)
            for tower in (suspect, anchor)
        )
    )


def _some_of_each(suspicious: Tensor, shared: Tensor, count: int) -> Tensor:
    """The indices of the `count` most suspicious and of a third as many shared, each once."""
    chosen: Tensor = torch.cat([_highest(suspicious, count), _highest(shared, count // 3)]).unique()
    return chosen


def _highest(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` highest of `values`, the highest first."""
    order: Tensor = values.nan_to_num(_OVERFLOW).argsort(descending=True)
    return order[:count]


def _both(ours: Tensor, theirs: Tensor) -> Tensor:
    """How much a token unites prompts in the tower where it does so least."""
    return torch.minimum(ours, theirs).nan_to_num(-1.0)


def _apart(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Anchor divergence on the first prompt, and consistency of the suspect's, `[V]` each."""
    return 1 - cosine_similarity(ours[:, 0], theirs[:, 0], dim=-1), consistency(ours)


def _consistencies(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Of suspect and anchor, `[V]` each."""
    return consistency(ours), consistency(theirs)


@torch.no_grad()
def _try(
    suspect: TextTower,
    anchor: TextTower,
    vocabulary: Vocabulary,
    prompts: Pair,
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    runtime: Runtime,
    advanced: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """What `score` makes of the pooled features `[V, B, P]` of both towers under each token."""
    with runtime.precision():
        states = [
            one_later(tower, tower.embed(tokens.ids))
            for tower, tokens in ((suspect, prompts.suspect), (anchor, prompts.anchor))
        ]

    def work(part: slice) -> tuple[Tensor, Tensor]:
        given = vocabulary.ours(part), vocabulary.theirs(part)
        with runtime.precision():
            ours = encode_triggered(suspect, states[0], prompts.suspect.ends, given[0])
            theirs = encode_triggered(anchor, states[1], prompts.anchor.ends, given[1])
        return score(ours.pooled.float(), theirs.pooled.float())

    found = []
    for part, result in runtime.in_batches(work, len(vocabulary), unit=len(states[0])):
        if advanced is not None:
            advanced(part.stop)
        found.append(result)
    first, second = (torch.cat(column) for column in zip(*found, strict=True))
    return first, second
