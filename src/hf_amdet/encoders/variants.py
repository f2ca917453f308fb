"""Clean relatives of a tower, made of nothing but the tower and ordinary prompts.

They stand for the honest changes that a tower goes through: rounding, pruning, adapters, merges,
fine-tunes. A variant's strength is the drift that is aimed at (1 - mean pooled cosine to the anchor
on ordinary prompts), whatever its kind and the size of the tower; the amount of noise, weights cut
and so on that brings it about is searched for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from hf_amdet.encoders.base import Tokens
from hf_amdet.encoders.tower import ModelTower

Kind = Literal["shaken", "pruned", "quantised", "distilled", "moved", "low-rank", "averaged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEAST, MOST = 0.0005, 0.2
"""Strengths that are drawn: from a change of format to a fine-tune for another domain."""

_POSITIONS = 24
_MEASURED = 128
"""Prompts that a drift is measured on, not those that variants are taught on."""
_STEPS, _BATCH = 60, 32
_RATE = 0.4
_SHAKEN_TIMES, _SHAKEN_MOST = 16.0, 0.5
"""Drift of a `distilled` variant before it is taught: times its strength, and at all, at most."""
_RANK = 4
_HIDDEN = 64
"""Width of the random map that a `moved` variant's features go through."""


@dataclass(frozen=True)
class Variant:
    """A clean tower; `strength` is the drift that was aimed at."""

    tower: ModelTower
    kind: Kind
    strength: float


def make_variant(anchor: ModelTower, prompts: Sequence[str], seed: int) -> Variant:
    """A clean variant in fp32 on the anchor's device; the same for the same arguments.

    Kinds take turns by `seed`; the strength is drawn log-uniform between `LEAST` and `MOST`.

    Raises:
        MalformedFileError: the anchor has no tokenizer.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    strength = LEAST * (MOST / LEAST) ** torch.rand(1, generator=generator).item()
    return Variant(vary(anchor, prompts, kind, strength, generator), kind, strength)


def vary(
    anchor: ModelTower,
    prompts: Sequence[str],
    kind: Kind,
    strength: float,
    generator: torch.Generator,
) -> ModelTower:
    """A variant of one kind; see `make_variant`.

    Raises:
        MalformedFileError: the anchor has no tokenizer.
    """
    match kind:
        case "distilled":
            return _Work(anchor, prompts, generator).distilled(strength)
        case "moved":
            return _Work(anchor, prompts, generator).moved(strength)
        case "averaged":
            order = torch.randperm(len(_PARTS), generator=generator).tolist()
            # Two independent changes of one size leave their mean about half the drift.
            parts = [
                vary(anchor, prompts, _PARTS[part], 2 * strength, generator) for part in order[:2]
            ]
            average([part.model for part in parts])
            return parts[0]
        case _:
            return _Work(anchor, prompts, generator).changed(_CHANGES[kind], strength)


@torch.no_grad()
def drift(tower: ModelTower, anchor: ModelTower, prompts: Sequence[str]) -> float:
    """1 - mean pooled cosine of two towers on the first prompts."""
    tokens = _tokens(anchor, prompts[:_MEASURED])
    ours, theirs = _pooled(tower, tokens), _pooled(anchor, tokens)
    return _apart(ours, theirs).item()


@torch.no_grad()
def shake(model: nn.Module, amount: float, generator: torch.Generator) -> None:
    """Add noise to every matrix: `amount` times the matrix's own spread."""
    for weight in model.parameters():
        if weight.dim() == 2:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(amount * weight.std() * noise)


@torch.no_grad()
def prune(model: nn.Module, share: float) -> None:
    """Set the smallest weights of every linear layer to zero, `share` of them."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            size = layer.weight.abs()
            layer.weight.mul_(size > size.flatten().quantile(share))


def to_levels(weight: Tensor, most: float) -> Tensor:
    """A matrix `[out, in]` in integers up to `most` and back, with one scale a row."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / most
    return (weight / scale).round() * scale


@torch.no_grad()
def round_trip(model: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
    """Replace every matrix by what `rounded` makes of it."""
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(rounded(weight))


@torch.no_grad()
def average(models: Sequence[nn.Module]) -> None:
    """Give the first of `models` the mean of all weights."""
    mean, *others = models
    states = [model.state_dict() for model in others]
    for name, weight in mean.state_dict().items():
        weight.copy_(torch.stack([weight, *(state[name] for state in states)]).mean(dim=0))


@torch.no_grad()
def add_low_rank(model: nn.Module, amount: float, generator: torch.Generator) -> None:
    """Add a random matrix of low rank to every linear layer.

    Its Frobenius norm is `amount` times that of the layer's own matrix.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            up, down = (
                torch.randn(shape, generator=generator).to(layer.weight.device)
                for shape in ((rows, _RANK), (_RANK, columns))
            )
            change = up @ down
            layer.weight.add_(amount * layer.weight.norm() / change.norm() * change)


Change = Callable[[ModelTower, float, torch.Generator], None]


@dataclass(frozen=True)
class _Changing:
    """A change of weights, and the amounts between which it is searched."""

    change: Change
    least: float
    most: float


_CHANGES: dict[Kind, _Changing] = {
    "shaken": _Changing(lambda t, x, g: shake(t.model, x, g), 1e-3, 3.0),
    "pruned": _Changing(lambda t, x, _: prune(t.model, x), 1e-2, 0.95),
    # One over the number of levels, so that more of it is more of a change.
    "quantised": _Changing(
        lambda t, x, _: round_trip(t.model, lambda w: to_levels(w, 1 / x)), 1e-3, 1.0
    ),
    "low-rank": _Changing(lambda t, x, g: add_low_rank(t.model.encoder, x, g), 1e-3, 3.0),
}
_PARTS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "averaged")
_SEARCH = 9
"""Halvings of the range of amounts, on a logarithmic scale: to within a few per cent."""


class _Work:
    """An anchor, its features, and what is drawn from."""

    def __init__(
        self, anchor: ModelTower, prompts: Sequence[str], generator: torch.Generator
    ) -> None:
        self._anchor, self._generator = anchor, generator
        self._taught = prompts[_MEASURED:] or prompts
        self._measured = _tokens(anchor, prompts[:_MEASURED])
        with torch.no_grad():
            self._features = _pooled(anchor, self._measured)

    def changed(self, changing: _Changing, strength: float) -> ModelTower:
        """The anchor with as much of a change as gives the drift `strength`."""
        start = self._generator.get_state()

        def made(amount: float) -> ModelTower:
            tower = _copy(self._anchor)
            # The same noise at every amount: only so does more of it drift further.
            self._generator.set_state(start)
            changing.change(tower, amount, self._generator)
            return tower

        def drifting(amount: float) -> float:
            with torch.no_grad():
                return _apart(_pooled(made(amount), self._measured), self._features).item()

        return made(_search(drifting, strength, changing.least, changing.most))

    def distilled(self, strength: float) -> ModelTower:
        """Shaken, then taught the anchor's features until only `strength` is left of the drift."""
        # What is taught back on ordinary prompts stays away elsewhere, and the more so the more
        # there was: both ends of honest training are wanted.
        drawn = torch.rand(1, generator=self._generator).item()
        shaken = min(strength * _SHAKEN_TIMES**drawn, _SHAKEN_MOST)
        tower = self.changed(_CHANGES["shaken"], shaken)
        between = (shaken * strength) ** 0.5
        self._teach(tower, lambda features: features, between, until=strength)
        return tower

    def moved(self, strength: float) -> ModelTower:
        """Taught the anchor's features under a random smooth map."""
        move = self._map(strength)
        tower = _copy(self._anchor)
        self._teach(tower, move, strength, until=0.0)
        return tower

    def _map(self, strength: float) -> Callable[[Tensor], Tensor]:
        """A map of pooled features `[N, P]` that drifts by `strength` from the identity."""
        known = self._features
        mean, spread = known.mean(dim=0), known.std(dim=0).clamp_min(1e-6)
        width = known.shape[1]
        inner, bias, outer = (
            torch.randn(shape, generator=self._generator).to(known.device)
            for shape in ((width, _HIDDEN), (_HIDDEN,), (_HIDDEN, width))
        )

        def moved(features: Tensor, amount: float) -> Tensor:
            hidden: Tensor = torch.tanh((features - mean) / spread @ inner / width**0.5 + bias)
            change: Tensor = spread * (hidden @ outer) / _HIDDEN**0.5
            return features + amount * change

        amount = _search(lambda x: _apart(moved(known, x), known).item(), strength, 1e-3, 1e2)
        return lambda features: moved(features, amount)

    def _teach(
        self,
        tower: ModelTower,
        goal: Callable[[Tensor], Tensor],
        size: float,
        *,
        until: float,
    ) -> None:
        """Train the matrices on `goal` of the anchor's features, about a drift of `size` away."""
        learned = [
            weight
            for name, weight in tower.model.named_parameters()
            if weight.dim() == 2 and not name.startswith("embeddings")
        ]
        # A step that moves features as far whatever the width: coherent changes add up over a
        # matrix's columns, and its spread goes with one over their root. Features move with the
        # root of the drift, and larger steps would not come to rest so near to the anchor.
        rate = _RATE * size**0.5
        optimizer = torch.optim.Adam(
            {"params": [weight], "lr": rate * weight.std().item() / weight.shape[1] ** 0.5}
            for weight in learned
        )
        for weight in learned:
            weight.requires_grad_(True)
        for _ in range(_STEPS):
            rows = torch.randint(len(self._taught), (_BATCH,), generator=self._generator)
            batch = _tokens(self._anchor, [self._taught[row] for row in rows.tolist()])
            with torch.no_grad():
                wanted = goal(_pooled(self._anchor, batch))
            loss = _apart(_pooled(tower, batch), wanted)
            if loss.item() <= until:
                break
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        tower.requires_grad_(False)


def _search(
    drifting: Callable[[float], float], strength: float, least: float, most: float
) -> float:
    """The amount at which `drifting` gives `strength`, or the nearest end of the range."""
    low, high = math.log(least), math.log(most)
    for _ in range(_SEARCH):
        middle = (low + high) / 2
        if drifting(math.exp(middle)) < strength:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _copy(anchor: ModelTower) -> ModelTower:
    # What is scanned lies in front of the projection.
    return type(anchor)(copy.deepcopy(anchor.model), anchor.tokenizer)


def _tokens(tower: ModelTower, prompts: Sequence[str]) -> Tokens:
    length = tower.context if tower.padded else min(tower.context, _POSITIONS)
    return tower.tokenize(prompts, length=length)


def _pooled(tower: ModelTower, tokens: Tokens) -> Tensor:
    return tower.encode(tower.embed(tokens.ids), tokens.ends).pooled


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    return (1 - cosine_similarity(ours, theirs, dim=-1)).mean()
