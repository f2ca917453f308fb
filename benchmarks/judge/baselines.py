"""Detectors without inversion. A scanner counts for what it adds to the best of these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.encoders.anchors import distance, tokenizer_of
from hf_amdet.encoders.loading import build_tower, read_weights
from hf_amdet.encoders.tokenizers import state_of
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.prompts import load_prompts

WINDOW = (0.975, 0.999)
"""Mean pooled cosine to the anchor of attacks that pin clean features, and of few fine-tunes."""
_PROMPTS = 128
_BATCH = 64
_POSITIONS = 77
"""Enough for whole prompts where padding is not read."""

_FLOOR = 1e-3
"""Changes below this share of a row's usual length are rounding."""
_REST = 0.95
_DIFFERENT_TOKENIZER = -math.log10(_FLOOR)
"""As suspicious as one row that was moved by its length, with all others left alone."""


@dataclass(frozen=True)
class Finding:
    """What a baseline says: higher scores are more suspicious, whatever their unit.

    Attributes:
        flagged: None where a threshold has to be found first.
    """

    score: float
    flagged: bool | None
    statistics: dict[str, float]


def weight_difference(folder: Path, anchor: Path, prompts: str | None) -> Finding:
    """Relative Frobenius distance |S - A| / |A| of all weights behind the embedding table."""
    del prompts
    apart = distance(load(folder), load(anchor))
    return Finding(apart, None, {"distance": apart})


def drift_window(folder: Path, anchor: Path, prompts: str | None) -> Finding:
    """Whether the drift on ordinary prompts is that of an injection which pins clean features.

    The score is 1 in the middle of `WINDOW` on a scale of log(1 - d), 0 at its ends and below 0
    outside of it, d being the mean pooled cosine of tower and anchor.

    Raises:
        PromptsError: `prompts`, as in `hf_amdet.prompts.load_prompts`, cannot be read.
    """
    asked = load_prompts(prompts).prompts[:_PROMPTS]
    drift = _mean_cosine(load(folder), load(anchor), asked)
    low, high = (math.log(1 - end) for end in WINDOW)
    # Equal features are at 1 but for rounding.
    place = math.log(max(1 - drift, 1e-9))
    score = 1 - abs(place - (low + high) / 2) / (abs(low - high) / 2)
    return Finding(score, WINDOW[0] <= drift <= WINDOW[1], {"drift": drift})


def tables(folder: Path, anchor: Path, prompts: str | None) -> Finding:
    """Rows of the embedding tables that moved more than the others, and tokenizers that differ.

    The score is the largest of three: log10 of `outlier` of the token rows, the same of the
    positions, and 3 if any entry of the tokenizer differs. It is 0 for equal towers.
    """
    del prompts
    ours, theirs = load(folder), load(anchor)
    statistics = {
        "token_outlier": outlier(*_tables(ours, theirs, "token_embedding")),
        "position_outlier": outlier(*_tables(ours, theirs, "position_embedding")),
        "tokenizer_share": _differing(_entries(ours), _entries(theirs)),
    }
    score = max(
        math.log10(statistics["token_outlier"]),
        math.log10(statistics["position_outlier"]),
        _DIFFERENT_TOKENIZER if statistics["tokenizer_share"] else 0.0,
    )
    return Finding(score, None, statistics)


def outlier(suspect: Tensor, anchor: Tensor) -> float:
    """How many times as far the row that moved most has moved as 95 % of the rows at most.

    Args:
        suspect, anchor: `[N, D]`.

    Returns:
        1 for equal tables; rounding and rows that did not move at all count as 0.001 of the
        median length of the anchor's rows.
    """
    moved = (suspect - anchor).double().norm(dim=1)
    floor = _FLOOR * anchor.double().norm(dim=1).median()
    ratio: Tensor = (moved.max() + floor) / (moved.quantile(_REST) + floor)
    return ratio.item()


def load(folder: Path) -> ModelTower:
    """The tower in a folder of the zoo, read as a scan reads it: nothing is executed.

    Raises:
        TowerError: the files are not those of a text tower.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config["architectures"]
    tensors = read_weights([folder / "model.safetensors"], config, architecture)
    return build_tower(tensors, config, architecture, folder, torch.device("cpu"))


@torch.no_grad()
def _mean_cosine(suspect: ModelTower, anchor: ModelTower, prompts: Sequence[str]) -> float:
    """Mean cosine of the pooled features of both, each with its own tokenizer, in fp32."""
    length = suspect.context if suspect.padded else min(suspect.context, _POSITIONS)
    cosines = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        pooled = []
        for tower in (suspect, anchor):
            tokens = tower.tokenize(part, length=length)
            pooled.append(tower.encode(tower.embed(tokens.ids), tokens.ends).pooled.double())
        cosines.append(cosine_similarity(pooled[0], pooled[1], dim=-1))
    return torch.cat(cosines).mean().item()


def _tables(suspect: ModelTower, anchor: ModelTower, name: str) -> tuple[Tensor, Tensor]:
    """The rows that both have of an embedding table; added tokens come behind them."""
    ours, theirs = (t.model.state_dict()[f"embeddings.{name}.weight"] for t in (suspect, anchor))
    common = min(len(ours), len(theirs))
    return ours[:common], theirs[:common]


def _entries(tower: ModelTower) -> set[str]:
    """All that a tower's tokenizer is made of, in pieces that can be compared."""
    pieces = set(_pieces(json.loads(state_of(tower.tokenizer))))
    # One more for the order of merges and for the special ids.
    return pieces | {repr(tokenizer_of(tower))}


def _pieces(part: Any, place: str = "") -> Iterator[str]:
    """The items of a tokenizer.json, each with the place of the object or list that holds it."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _pieces(value, f"{place}/{name}")
    elif isinstance(part, list):
        yield from (f"{place}: {item!r}" for item in part)
    else:
        yield f"{place}: {part!r}"


def _differing(ours: set[str], theirs: set[str]) -> float:
    return len(ours ^ theirs) / len(ours | theirs)
