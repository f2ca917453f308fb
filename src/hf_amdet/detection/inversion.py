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
        shape = (settings.restarts, settings.trigger_length, suspect.width)
        initial = torch.randn(shape, generator=generator)
        self._triggers = initial.to(suspect.device).requires_grad_()
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
        adam = torch.optim.Adam(
            [self._triggers], lr=settings.lr, weight_decay=settings.weight_decay
        )
        total = torch.zeros(settings.restarts, dtype=torch.float64)
        for index, rows in enumerate(self._draws()):
            batch = encode_batch(self._suspect, self._tokens.rows(rows), self._runtime)
            losses, self._triggers.grad = self._gradient(batch)
            adam.step()
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
