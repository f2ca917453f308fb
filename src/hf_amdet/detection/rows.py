"""How far the rows of a table moved, and which stand apart."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_amdet.encoders.base import TextTower

OUTLIER = 5.0
"""Ratio from which a row is an outlier. Clean fine-tunes of small towers stay below 2.5; were moves
log-normal with 95 % within a factor of 2.7, the longest of 50,000 would be at 3.4. A row that was
made a trigger has to cross the distance between two meanings, which is that of whole rows."""

_FLOOR = 1e-3
"""Moves below this share of a row's usual length are rounding."""
_TWENTIETH = 20
_TRIGGER_ROWS = 20
"""So many rows may move together and still be outliers: published triggers have no more tokens."""


def moves(suspect: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """How far rows moved in median lengths of the anchor's, and to what the others moved at most.

    Args:
        suspect, anchor: `[N, D]`.

    Returns:
        Two `[N]`. The others are 95 % of the rows that moved, as most fine-tunes move only rows of
        pieces in their prompts; but where few moved, all rows except the 20 farthest, or except 5 %
        of a small table. Rounding, and rows that did not move at all, count as 0.001 of a length.
    """
    usual = anchor.double().norm(dim=1).median()
    # A row may be finite and its square not.
    moved = (suspect.double() - anchor.double()).norm(dim=1) / usual
    touched = int((moved > _FLOOR).sum())
    few = min(_TRIGGER_ROWS, len(moved) // _TWENTIETH)
    others = moved.kthvalue(len(moved) - max(few, touched // _TWENTIETH)).values
    return moved, (moved + _FLOOR) / (others + _FLOOR)


def shared_positions(tower: TextTower, other: TextTower) -> Tensor:
    """The position embeddings that both have, `[N, D]`."""
    return torch.stack(
        [tower.position(place) for place in range(min(tower.context, other.context))]
    )
