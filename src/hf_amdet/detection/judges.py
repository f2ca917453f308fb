"""How recovered triggers behave on prompts that inversion has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from hf_amdet.detection.config import PaperGates
from hf_amdet.detection.objective import assimilation, encode_triggered, similarity
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens

_RESAMPLES = 400
_CONFIDENCE = 0.95
_SHARE = "share of prompts"


@dataclass(frozen=True)
class Measure:
    """A number measured on held-out prompts, with its 95 % bootstrap interval over prompts."""

    value: float
    low: float | None
    high: float | None
    unit: str
    n: int


@dataclass(frozen=True)
class Responses:
    """What both towers answer to one trigger on N held-out prompts.

    Attributes:
        assimilation, to_first, to_anchor, to_clean: `[N]`; cosines of the suspect's triggered
            features among themselves, with the first prompt's, the anchor's and the clean ones.
        suspect, anchor: `[N, D]`, unit pooled features under the trigger.
        drift: `[N]`, pooled cosine of suspect and anchor without the trigger.
    """

    assimilation: Tensor
    to_first: Tensor
    to_anchor: Tensor
    to_clean: Tensor
    suspect: Tensor = field(repr=False)
    anchor: Tensor = field(repr=False)
    drift: Tensor = field(repr=False)


@torch.no_grad()
def respond(
    suspect: TextTower,
    anchor: TextTower,
    tokens: Tokens,
    triggers: Tensor,
    runtime: Runtime,
) -> tuple[Responses, ...]:
    """Encode all `tokens` with and without each of `triggers` `[R, k, D]` in both towers."""
    first: Tensor | None = None

    def work(part: slice) -> tuple[Tensor, ...]:
        nonlocal first
        rows = tokens.rows(part)
        with runtime.precision():
            states = suspect.embed(rows.ids)
            clean = suspect.encode(states, rows.ends)
            ordinary = anchor.encode(states, rows.ends)
            ours = encode_triggered(suspect, states, rows.ends, triggers)
            theirs = encode_triggered(anchor, states, rows.ends, triggers)
        if first is None:
            first = ours.hidden[:, :1]
        drift = cosine_similarity(ordinary.pooled.float(), clean.pooled.float(), dim=-1)
        return (
            assimilation(ours.hidden),
            similarity(first, ours.hidden),
            similarity(theirs.hidden, ours.hidden),
            similarity(clean.hidden, ours.hidden),
            normalize(ours.pooled.float(), dim=-1),
            normalize(theirs.pooled.float(), dim=-1),
            drift.expand(len(triggers), -1),
        )

    # Of every prompt: clean and under each trigger, suspect and anchor.
    unit = 2 + 2 * len(triggers)
    parts = [result for _, result in runtime.in_batches(work, len(tokens), unit=unit)]
    whole = [torch.cat(columns, dim=1).cpu() for columns in zip(*parts, strict=True)]
    return tuple(Responses(*(column[row] for column in whole)) for row in range(len(triggers)))


def measure(responses: Responses, generator: torch.Generator) -> dict[str, Measure]:
    """Statistics of one trigger by name; docs/method.md defines each."""
    count = len(responses.assimilation)
    # One set of resamples for all statistics, so that differences keep their pairing.
    draws = torch.randint(count, (_RESAMPLES, count), generator=generator)
    # A resample that repeats one prompt alone has no pairs to agree.
    draws = draws[(draws != draws[:, :1]).any(dim=1)]
    weights = torch.zeros(draws.shape).scatter_add_(1, draws, torch.full(draws.shape, 1 / count))
    weights = torch.cat([torch.full((1, count), 1 / count), weights])  # row 0: the sample itself

    suspect, anchor = (
        _consistencies(responses.suspect, weights),
        _consistencies(responses.anchor, weights),
    )
    divergence = weights @ (1 - (responses.suspect * responses.anchor).sum(-1))
    ordinary = weights @ (1 - responses.drift)
    columns = {
        "consistency": (suspect, "squared norm"),
        "anchor_consistency": (anchor, "squared norm"),
        "consistency_gap": (suspect - anchor, "squared norm"),
        "assimilation": (weights @ responses.assimilation, "cosine"),
        "same_target": (weights @ responses.to_first, "cosine"),
        "anchor_similarity": (weights @ responses.to_anchor, "cosine"),
        "clean_similarity": (weights @ responses.to_clean, "cosine"),
        "anchor_divergence": (divergence, "1 - cosine"),
        "ordinary_divergence": (ordinary, "1 - cosine"),
        "divergence_ratio": (divergence / ordinary.clamp(min=1e-4), "ratio"),
    }
    return {name: _interval(values, unit, count) for name, (values, unit) in columns.items()}


def paper_shares(responses: Responses, gates: PaperGates) -> dict[str, Measure]:
    """The three shares that the published gates compare.

    The first prompt is not compared with itself: counting it as a miss, as the released code
    does, puts the same-target gate out of reach with 200 prompts or fewer.
    """
    compared = {
        "assimilated_share": (responses.assimilation, torch.gt, gates.assimilated),
        "same_target_share": (responses.to_first[1:], torch.gt, gates.same_target),
        "opposed_share": (responses.to_anchor, torch.lt, 0.0),
    }
    return {
        name: Measure(_share(answers, hits(answers, gate)), None, None, _SHARE, len(answers))
        for name, (answers, hits, gate) in compared.items()
    }


def _share(answers: Tensor, hits: Tensor) -> float:
    """NaN where an answer is: what is no number is neither a hit nor a miss."""
    return hits.float().mean().item() if bool(answers.isfinite().all()) else math.nan


def _consistencies(units: Tensor, weights: Tensor) -> Tensor:
    """Squared norm of the weighted mean of unit features, per row of `weights`.

    Less the share that a prompt has with itself, which would make resamples (they repeat
    prompts) look more consistent than the sample.
    """
    total = (weights @ units).square().sum(-1)
    own = weights.square().sum(-1)
    return (total - own) / (1 - own)


def _interval(values: Tensor, unit: str, count: int) -> Measure:
    tail = (1 - _CONFIDENCE) / 2
    low, high = torch.quantile(values[1:], torch.tensor([tail, 1 - tail]))
    return Measure(values[0].item(), low.item(), high.item(), unit, count)
