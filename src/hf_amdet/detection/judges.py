"""How recovered triggers behave on prompts that inversion has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from hf_amdet.detection.config import PaperGates
from hf_amdet.detection.objective import assimilation, encode_triggered, one_later, similarity
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


@dataclass(frozen=True)
class Own:
    """What the anchor reads where each tower reads text for itself.

    Attributes:
        tokens: the same prompts in the anchor's tokenizer.
        triggers: `[R, k, D]`, what the anchor makes of the same tokens.
    """

    tokens: Tokens
    triggers: Tensor


@torch.no_grad()
def respond(
    suspect: TextTower,
    anchor: TextTower,
    tokens: Tokens,
    triggers: Tensor,
    runtime: Runtime,
    own: Own | None = None,
) -> tuple[Responses, ...]:
    """Encode all `tokens` with and without each of `triggers` `[R, k, D]` in both towers.

    Args:
        own: None gives the anchor the suspect's states and the same triggers, so that what
            differs is the encoder alone. Else triggers are tokens (k = 1), and features those of
            the texts with the token in them.
    """
    first: Tensor | None = None

    def work(part: slice) -> tuple[Tensor, ...]:
        nonlocal first
        rows = tokens.rows(part)
        with runtime.precision():
            states = suspect.embed(rows.ids)
            clean = suspect.encode(states, rows.ends)
            if own is None:
                ordinary = anchor.encode(states, rows.ends)
                ours = encode_triggered(suspect, states, rows.ends, triggers)
                theirs = encode_triggered(anchor, states, rows.ends, triggers)
            else:
                others = own.tokens.rows(part)
                as_read = anchor.embed(others.ids)
                ordinary = anchor.encode(as_read, others.ends)
                moved = one_later(suspect, states), one_later(anchor, as_read)
                ours = encode_triggered(suspect, moved[0], rows.ends, triggers)
                theirs = encode_triggered(anchor, moved[1], others.ends, own.triggers)
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
        "consistency": (suspect, "cosine"),
        "anchor_consistency": (anchor, "cosine"),
        "consistency_gap": (suspect - anchor, "cosine"),
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


@torch.no_grad()
def may_pass(
    suspect: TextTower,
    anchor: TextTower,
    tokens: Tokens,
    trigger: Tensor,
    gates: PaperGates,
    runtime: Runtime,
) -> bool:
    """Whether `trigger` `[k, D]` passes the three gates of `paper_shares` on all `tokens`.

    Stops at the prompts that settle it: most triggers fail within the first few.
    """
    missed = [0, 0, 0]
    # Of so many misses a share can no longer exceed its gate.
    counts = (len(tokens), len(tokens) - 1, len(tokens))
    asked = (gates.assimilated_share, gates.same_target_share, gates.opposed_share)
    first: Tensor | None = None

    def work(part: slice) -> tuple[Tensor, Tensor]:
        rows = tokens.rows(part)
        with runtime.precision():
            states = suspect.embed(rows.ids)
            ours = encode_triggered(suspect, states, rows.ends, trigger.unsqueeze(0))
            theirs = encode_triggered(anchor, states, rows.ends, trigger.unsqueeze(0))
        return ours.hidden[0], theirs.hidden[0]

    for _, (ours, theirs) in runtime.in_batches(work, len(tokens), unit=2):
        others = ours if first is not None else ours[1:]
        first = ours[:1] if first is None else first
        hits = (
            assimilation(ours) > gates.assimilated,
            similarity(first, others) > gates.same_target,
            similarity(theirs, ours) < 0.0,
        )
        # What is no number is no hit.
        for gate, hit in enumerate(hits):
            missed[gate] += int((~hit).sum())
            if not (counts[gate] - missed[gate]) / counts[gate] > asked[gate]:
                return False
    return True


def _share(answers: Tensor, hits: Tensor) -> float:
    """NaN where an answer is: what is no number is neither a hit nor a miss."""
    return hits.double().mean().item() if bool(answers.isfinite().all()) else math.nan


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
