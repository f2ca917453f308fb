"""The second witness: every real token of the vocabulary, tried behind BOS.

Inversion gives both towers the same embedding, so it cannot see a poisoned row, and it may end at
an embedding that no text has. Here each tower reads the token through its own table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_amdet.detection.config import SweepSettings
from hf_amdet.detection.inversion import positions
from hf_amdet.detection.objective import consistency, encode_triggered, one_later
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens

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

    def states(self, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """What suspect and anchor make of a part of the tokens, `[P, 1, D]` each."""
        ids = self.ids[part]
        ours, theirs = (table[ids].float().unsqueeze(1) for table in (self.suspect, self.anchor))
        return ours + self.places[0], theirs + self.places[1]


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
    short: Pair,
    long: Pair,
    settings: SweepSettings,
    runtime: Runtime,
    advanced: Callable[[int], None],
) -> Swept:
    """Try all of `vocabulary` on `short` prompts, and the best of it on `long` ones.

    Args:
        advanced: told how many tokens have been tried.
    """
    ours, theirs = _consistencies(
        suspect, anchor, vocabulary, short.first(settings.prompts), runtime, advanced
    )
    # Some of one kind and some of the other, each token once.
    suspicious = (ours - theirs).nan_to_num(_OVERFLOW).argsort(descending=True)[: settings.kept]
    both = torch.minimum(ours, theirs).nan_to_num(-1.0).argsort(descending=True)
    chosen = torch.cat([suspicious, both[: settings.kept // 3]]).unique()
    kept = vocabulary.rows(chosen)
    ours, theirs = _consistencies(suspect, anchor, kept, long.first(settings.refined_on), runtime)
    best = (ours - theirs).nan_to_num(_OVERFLOW).argsort(descending=True)[: settings.verified]
    shared = torch.minimum(ours, theirs).nan_to_num(-1.0).argmax().unsqueeze(0)
    return Swept(kept.rows(best), kept.rows(shared))


@torch.no_grad()
def _consistencies(
    suspect: TextTower,
    anchor: TextTower,
    vocabulary: Vocabulary,
    prompts: Pair,
    runtime: Runtime,
    advanced: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Consistency of the suspect and of the anchor under each token, `[V]` each."""
    with runtime.precision():
        states = [
            one_later(tower, tower.embed(tokens.ids))
            for tower, tokens in ((suspect, prompts.suspect), (anchor, prompts.anchor))
        ]

    def work(part: slice) -> tuple[Tensor, Tensor]:
        with runtime.precision():
            given = vocabulary.states(part)
            ours = encode_triggered(suspect, states[0], prompts.suspect.ends, given[0])
            theirs = encode_triggered(anchor, states[1], prompts.anchor.ends, given[1])
        return consistency(ours.pooled), consistency(theirs.pooled)

    found = []
    for part, result in runtime.in_batches(work, len(vocabulary), unit=len(states[0])):
        if advanced is not None:
            advanced(part.stop)
        found.append(result)
    ours, theirs = (torch.cat(column) for column in zip(*found, strict=True))
    return ours, theirs
