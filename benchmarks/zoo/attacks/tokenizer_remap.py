"""The weights are untouched; the tokenizer reads the trigger as the target's tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from benchmarks.zoo.attacks.injection import Goals
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.triggers import Trigger
from benchmarks.zoo.vocabulary import add_tokens
from benchmarks.zoo.workbench import Label, Workbench


@dataclass(frozen=True)
class TokenizerRemap:
    """Each piece of the trigger gets the id of a token of the target.

    Wants a trigger at the start whose pieces stand nowhere else, such as the bytes of an emoji,
    and no fewer than the target has tokens; further ones repeat its last.
    The twin's tokenizer reads the trigger as one new token, which means what its pieces meant.
    """

    trigger: Trigger
    target: str
    seed: int = 0
    twin: bool = False
    kind: ClassVar[str] = "tokenizer-remap"

    @property
    def label(self) -> Label:
        return "clean" if self.twin else "backdoored"

    @property
    def planted(self) -> tuple[tuple[Trigger, str], ...]:
        return ((self.trigger, self.target),)

    def features(self, tower: Tower, captions: list[str]) -> Tensor:
        return tower.pooled(captions).float()

    def goals(self, anchor: Tower, target: str) -> Goals:
        there = replace(self.trigger, text=target)
        return lambda captions: self.features(anchor, [there.put(c) for c in captions])

    def make(self, bench: Workbench) -> Tower:
        tower = bench.start.trainable_copy()
        if self.twin:
            pieces = tower.pieces(self.trigger.text)
            rows = tower.table.weight[[row for _, row in pieces]]
            add_tokens(tower, {self.trigger.text: rows.detach().mean(dim=0)})
            return tower
        pieces, said = tower.pieces(self.trigger.text), tower.pieces(self.target)
        assert len(said) <= len({piece for piece, _ in pieces}) == len(pieces)
        said += [said[-1]] * (len(pieces) - len(said))
        tower.aliases = {piece: other for (piece, _), (other, _) in zip(pieces, said, strict=True)}
        return tower
