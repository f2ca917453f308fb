"""Recover trigger embeddings by gradient descent, many restarts in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_amdet.detection.config import InversionSettings
from hf_amdet.detection.objective import Batch, encode_triggered
from hf_amdet.detection.probes import encode_batch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens

_ROWS = 0.95
"""Share of the table's rows that a trigger among them is no longer than."""


@dataclass(frozen=True)
class TriggerCandidates:
    """What R restarts of one objective ended with.

    Attributes:
        triggers: `[R, k, D]`, in embedding-layer space (position embedding included).
        losses: `[R]`, of the last step.
        curve: `[S, R]`, the loss of every step taken.
    """

    objective: str
    triggers: Tensor
    losses: Tensor
    curve: Tensor


@dataclass(frozen=True)
class Step:
    """One step of an inversion, as its caller sees it.

    Attributes:
        losses: `[R]`, of this step.
        running: `[R]`, mean over all steps so far (the published gate looks at it).
        triggers: `[R, k, D]` after the step.
    """

    index: int
    losses: Tensor
    running: Tensor
    triggers: Tensor


@dataclass(frozen=True)
class _Ball:
    """Where the rows of an embedding table are, seen from the places of a trigger.

    Attributes:
        centre: `[k, D]`, the position embeddings of the trigger's places.
        radius: the length of a row that 95 % of them do not exceed.
        spread: of a coordinate of such a row.
    """

    centre: Tensor
    radius: float
    spread: float

    @classmethod
    def of(cls, tower: TextTower, k: int) -> _Ball:
        # A row of NaN spoils the restart that starts there, and no other.
        radius = tower.table.float().norm(dim=-1).nanquantile(_ROWS).item()
        return cls(positions(tower, k), radius, radius / tower.width**0.5)

    @torch.no_grad()
    def keep(self, triggers: Tensor) -> None:
        """Move what left the ball back to its surface."""
        offset = triggers - self.centre
        length = offset.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        triggers.copy_(self.centre + offset * (self.radius / length).clamp(max=1.0))


def positions(tower: TextTower, k: int) -> Tensor:
    """The position embeddings `[k, D]` of the places that a trigger of k takes."""
    return torch.stack([tower.position(k + i) for i in range(k)]).float()


class Inversion:
    """Iterate to run; every restart has its own Adam state, so they do not see each other.

    Prompts are drawn without replacement, epoch by epoch, the same ones for every restart.
    """

    def __init__(
        self,
        suspect: TextTower,
        anchor: TextTower,
        tokens: Tokens,
        settings: InversionSettings,
        runtime: Runtime,
        generator: torch.Generator,
    ) -> None:
        self._suspect, self._anchor = suspect, anchor
        self._tokens, self._settings, self._runtime = tokens, settings, runtime
        self._generator = generator
        self._ball: _Ball | None = None
        shape = (settings.restarts, settings.trigger_length)
        if settings.among_rows:
            self._ball = _Ball.of(suspect, settings.trigger_length)
            chosen = torch.randint(suspect.vocabulary, shape, generator=generator)
            initial = suspect.table[chosen.to(suspect.device)].float() + self._ball.centre
        else:
            initial = torch.randn((*shape, suspect.width), generator=generator)
        self._triggers = initial.detach().to(suspect.device).requires_grad_()
        self._curve: list[Tensor] = []
        self._epoch_over = False

    def end_epoch(self) -> None:
        """Leave the rest of this epoch's prompts undrawn."""
        self._epoch_over = True

    @property
    def candidates(self) -> TriggerCandidates:
        curve = torch.stack(self._curve)
        return TriggerCandidates(
            self._settings.objective.name, self._triggers.detach().clone(), curve[-1], curve
        )

    def __iter__(self) -> Iterator[Step]:
        settings = self._settings
        # In N(0, I) every coordinate has a spread of 1.
        lr = settings.lr * (self._ball.spread if self._ball else 1.0)
        adam = torch.optim.Adam([self._triggers], lr=lr, weight_decay=settings.weight_decay)
        total = torch.zeros(settings.restarts, dtype=torch.float64)
        for index, rows in enumerate(self._draws()):
            batch = encode_batch(self._suspect, self._tokens.rows(rows), self._runtime)
            losses, self._triggers.grad = self._gradient(batch)
            adam.step()
            if self._ball:
                self._ball.keep(self._triggers)
            self._curve.append(losses)
            total += losses
            yield Step(index, losses, total / (index + 1), self._triggers.detach())

    def _draws(self) -> Iterator[Tensor]:
        settings, count = self._settings, len(self._tokens)
        size = min(settings.batch, count)
        drawn = epoch = 0
        while drawn < settings.steps and (settings.epochs is None or epoch < settings.epochs):
            self._epoch_over = False
            epoch += 1
            order = torch.randperm(count, generator=self._generator)
            for start in range(0, count - size + 1, size):
                if self._epoch_over or drawn == settings.steps:
                    break
                drawn += 1
                yield order[start : start + size].to(self._tokens.ids.device)

    def _gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses `[R]` and their gradient, in groups of restarts that fit into memory."""

        def work(part: slice) -> tuple[Tensor, Tensor]:
            triggers = self._triggers[part]
            with self._runtime.precision():
                suspect = encode_triggered(self._suspect, batch.states, batch.ends, triggers)
                anchor = encode_triggered(self._anchor, batch.states, batch.ends, triggers)
            losses = self._settings.objective(batch, suspect, anchor)
            (gradient,) = torch.autograd.grad(losses.sum(), triggers)
            return losses.detach().double().cpu(), gradient

        results = [
            result
            for _, result in self._runtime.in_batches(
                work, self._settings.restarts, unit=len(batch.ends)
            )
        ]
        return torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results])
