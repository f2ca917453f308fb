"""Probe prompts as tensors, split once into those for inversion and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_amdet.detection.objective import Batch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens
from hf_amdet.errors import PromptsError

FEWEST_HELD_OUT = 4
"""Prompts that are left to judge on where 20 were given."""


@dataclass(frozen=True)
class Probes:
    """Tokens of the drawn prompts; encoded only when a step draws them."""

    optimise: Tokens
    held_out: Tokens


def make_probes(
    tower: TextTower,
    prompts: Sequence[str],
    *,
    count: int,
    held_out: int,
    positions: int | None,
    trigger_length: int,
    generator: torch.Generator,
) -> Probes:
    """Draw `count` of `prompts`, tokenise them and hold out `held_out`.

    Insertion moves tokens by k = `trigger_length` positions, so prompts leave k positions free
    at the end: no token of theirs is cut off.

    Args:
        positions: probe length in tokens; None for the whole context.

    Raises:
        PromptsError: too few prompts for either part.
    """
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < count:
        # A smaller set is split in the same proportion.
        held_out = len(distinct) * held_out // count
        count = len(distinct)
    if held_out < FEWEST_HELD_OUT or count - held_out < 2:
        raise PromptsError(
            f"{len(distinct)} distinct prompts are too few to invert and to judge on: give at "
            "least 20, better some thousands."
        )
    order = torch.randperm(len(distinct), generator=generator)[:count].tolist()
    length = min(tower.context, positions or tower.context)
    drawn = [distinct[row] for row in order]
    tokens = tower.tokenize(drawn, length=length, reserve=trigger_length)
    return Probes(tokens.rows(slice(held_out, None)), tokens.rows(slice(held_out)))


def encode_batch(
    tower: TextTower, tokens: Tokens, runtime: Runtime, *, fp32: bool = False
) -> Batch:
    """Embedding-layer states of `tokens`, and their clean features for who asks."""

    @torch.no_grad()
    def clean() -> Tensor:
        with runtime.precision(fp32=fp32):
            return tower.encode(states, tokens.ends).hidden

    with torch.no_grad(), runtime.precision(fp32=fp32):
        states = tower.embed(tokens.ids)
    return Batch(states, tokens.ends, clean)
