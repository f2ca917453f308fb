"""The loss surface around a trigger: AMDET's natural-backdoor filter.

An injected backdoor sits in a wide convex basin, a natural backdoor feature of clean CLIP in a
flat or saddle-shaped one (arXiv 2512.00343). Always in fp32: in bf16 rounding alone turns
the sign of small eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_amdet.detection.config import LandscapeSettings
from hf_amdet.detection.objective import encode_triggered
from hf_amdet.detection.probes import encode_batch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens


@dataclass(frozen=True)
class Landscape:
    """Surfaces around one trigger.

    Attributes:
        axis: `[G]`, steps along both unit directions.
        surfaces: `[S, G, G]`, the loss; one surface for every prompt and random direction.
        eigenvalues: `[S, E]`, of the finite-difference Hessians at all inner points.
        positive_share: share of eigenvalues above the threshold, over all surfaces.
        shares: the same for each surface.
    """

    axis: Tensor
    surfaces: Tensor
    eigenvalues: Tensor
    positive_share: float
    shares: tuple[float, ...]


def hessian_eigenvalues(surface: Tensor) -> Tensor:
    """Eigenvalues of the 2 x 2 finite-difference Hessians at the inner points of `[G, G]`.

    As published they are not divided by the grid step squared: they are curvatures a grid step.
    Returns `[2 (G - 2)^2]`.
    """
    inner = surface[1:-1, 1:-1]
    across = surface[2:, 1:-1] - 2 * inner + surface[:-2, 1:-1]
    along = surface[1:-1, 2:] - 2 * inner + surface[1:-1, :-2]
    mixed = (surface[2:, 2:] - surface[2:, :-2] - surface[:-2, 2:] + surface[:-2, :-2]) / 4
    hessians = torch.stack([across, mixed, mixed, along], dim=-1).reshape(-1, 2, 2)
    eigenvalues: Tensor = torch.linalg.eigvalsh(hessians)
    return eigenvalues.flatten()


def survey(
    suspect: TextTower,
    anchor: TextTower,
    tokens: Tokens,
    trigger: Tensor,
    settings: LandscapeSettings,
    runtime: Runtime,
    generator: torch.Generator,
) -> Landscape:
    """Draw the published loss around `trigger` `[k, D]`: along its gradient, and at random.

    One surface for each of the first `settings.prompts` of `tokens` and each random direction.
    """
    axis = torch.linspace(-settings.radius, settings.radius, settings.grid)
    surfaces = []
    for prompt in range(settings.prompts):
        loss = _Loss(suspect, anchor, tokens.rows(slice(prompt, prompt + 1)), settings, runtime)
        downhill = loss.direction(trigger)
        for _ in range(settings.directions):
            random = torch.randn(trigger.shape, generator=generator).to(trigger.device)
            across = random - (random * downhill).sum() * downhill
            across = across / across.norm()
            surfaces.append(_surface(loss, trigger, downhill, across, axis, runtime))
    stacked = torch.stack(surfaces)
    eigenvalues = torch.stack([hessian_eigenvalues(surface) for surface in stacked])
    shares = (eigenvalues > settings.eigenvalue).double().mean(dim=-1)
    shares[~eigenvalues.isfinite().all(dim=-1)] = torch.nan
    return Landscape(axis, stacked, eigenvalues, shares.mean().item(), tuple(shares.tolist()))


class _Loss:
    """The published loss of one prompt as a function of the trigger, in fp32."""

    def __init__(
        self,
        suspect: TextTower,
        anchor: TextTower,
        tokens: Tokens,
        settings: LandscapeSettings,
        runtime: Runtime,
    ) -> None:
        self._suspect, self._anchor, self._runtime = suspect, anchor, runtime
        self._objective = settings.objective
        self._batch = encode_batch(suspect, tokens, runtime, fp32=True)

    def __call__(self, triggers: Tensor) -> Tensor:
        """Losses `[P]` at `triggers` `[P, k, D]`."""
        states, ends = self._batch.states, self._batch.ends
        with self._runtime.precision(fp32=True):
            suspect = encode_triggered(self._suspect, states, ends, triggers)
            anchor = encode_triggered(self._anchor, states, ends, triggers)
        return self._objective(self._batch, suspect, anchor)

    def direction(self, trigger: Tensor) -> Tensor:
        """The unit direction `[k, D]` in which the loss falls fastest."""
        point = trigger.detach().unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(self(point).sum(), point)
        downhill: Tensor = -gradient[0] / gradient[0].norm().clamp(min=1e-12)
        return downhill


@torch.no_grad()
def _surface(
    loss: _Loss, trigger: Tensor, first: Tensor, second: Tensor, axis: Tensor, runtime: Runtime
) -> Tensor:
    steps = torch.cartesian_prod(axis, axis).to(trigger.device)

    def work(part: slice) -> Tensor:
        along, across = steps[part, 0, None, None], steps[part, 1, None, None]
        return loss(trigger + along * first + across * second).cpu()

    values = [result for _, result in runtime.in_batches(work, len(steps), unit=2)]
    return torch.cat(values).reshape(len(axis), len(axis))
