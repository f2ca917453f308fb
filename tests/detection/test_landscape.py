"""The loss surface: known curvature is recovered, and it is drawn where it is said to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_amdet.detection.config import LandscapeSettings
from hf_amdet.detection.landscape import Landscape, hessian_eigenvalues, survey
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower
from tests.detection.doubles import (
    Crowded,
    Recording,
    fp32,
    generator,
    observed_dtypes,
    published_loss,
    tokens,
)
from tests.towers import WIDTH, make_tower

curvature = st.floats(-3, 3)


def _quadratic(first: float, second: float, mixed: float = 0.0, size: int = 6) -> Tensor:
    """a x^2 + b y^2 + c x y + a plane, on integer steps."""
    x, y = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    return first * x * x + second * y * y + mixed * x * y + 3 * x - 2 * y + 1


class TestHessian:
    @settings(deadline=None, max_examples=50, derandomize=True)
    @given(curvature, curvature, curvature)
    def test_eigenvalues_of_a_quadratic_are_exact_everywhere(
        self, first: float, second: float, mixed: float
    ) -> None:
        found = hessian_eigenvalues(_quadratic(first, second, mixed)).reshape(-1, 2)
        hessian = torch.tensor([[2 * first, mixed], [mixed, 2 * second]], dtype=torch.float64)
        expected = torch.linalg.eigvalsh(hessian)
        assert len(found) == 16
        torch.testing.assert_close(found, expected.expand(16, 2), rtol=0, atol=1e-9)

    def test_a_bowl_has_twice_its_coefficients(self) -> None:
        found = hessian_eigenvalues(_quadratic(0.25, 2.0))
        assert sorted(set(found.tolist())) == pytest.approx([0.5, 4.0])

    def test_a_saddle_is_half_positive_and_a_dome_not_at_all(self) -> None:
        assert (hessian_eigenvalues(_quadratic(1, -1)) > 1e-6).double().mean() == 0.5
        assert not (hessian_eigenvalues(_quadratic(-1, -2)) > 1e-6).any()

    def test_a_plane_has_no_curvature(self) -> None:
        assert not (hessian_eigenvalues(_quadratic(0, 0)).abs() > 1e-6).any()

    def test_a_valley_counts_half(self) -> None:
        assert (hessian_eigenvalues(_quadratic(1, 0)) > 1e-6).double().mean() == 0.5

    def test_curvature_is_per_grid_step_and_not_divided_by_it(self) -> None:
        """As published: the same bowl looks flatter on a finer grid."""
        for points in (5, 9):
            axis = torch.linspace(-10, 10, points, dtype=torch.float64)
            step = 20 / (points - 1)
            found = hessian_eigenvalues(axis[:, None] ** 2 + axis[None, :] ** 2)
            assert found.tolist() == pytest.approx([2 * step**2] * len(found))


@dataclass(frozen=True)
class Drawn:
    landscape: Landscape
    points: Tensor
    """`[S, G, G, D]`, the triggers at which the suspect was asked."""


@pytest.fixture(scope="module")
def trigger() -> Tensor:
    return torch.randn(1, WIDTH, generator=generator(4))


@pytest.fixture(scope="module")
def drawn(trigger: Tensor) -> Drawn:
    """Two prompts, three directions, seven points an axis."""
    suspect = Recording(make_tower(1))
    options = LandscapeSettings(grid=7, prompts=2, directions=3, radius=6.0)
    probes = tokens(suspect.tower, 4)
    landscape = survey(suspect, make_tower(2), probes, trigger, options, fp32(), generator())
    # Behind BOS lies the trigger; single sequences are the clean one and that of the gradient.
    asked = torch.cat([states[:, 1] for states in suspect.states if len(states) > 1])
    return Drawn(landscape, asked.reshape(6, 7, 7, WIDTH))


class TestSurvey:
    def test_there_is_a_surface_for_every_prompt_and_direction(self, drawn: Drawn) -> None:
        found = drawn.landscape
        assert found.surfaces.shape == (6, 7, 7)
        assert found.eigenvalues.shape == (6, 2 * 5 * 5)
        assert found.axis.tolist() == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
        assert len({tuple(surface.flatten().tolist()) for surface in found.surfaces}) == 6

    def test_directions_are_unit_and_orthogonal(self, drawn: Drawn) -> None:
        for points in drawn.points.double():
            first = (points[1:] - points[:-1]) / 2
            second = (points[:, 1:] - points[:, :-1]) / 2
            torch.testing.assert_close(first, first[:1, :1].expand_as(first), rtol=0, atol=1e-5)
            torch.testing.assert_close(second, second[:1, :1].expand_as(second), rtol=0, atol=1e-5)
            along, across = first[0, 0], second[0, 0]
            assert along.norm().item() == pytest.approx(1, abs=1e-5)
            assert across.norm().item() == pytest.approx(1, abs=1e-5)
            assert (along @ across).item() == pytest.approx(0, abs=1e-5)

    def test_the_trigger_is_in_the_middle(self, drawn: Drawn, trigger: Tensor) -> None:
        torch.testing.assert_close(drawn.points[:, 3, 3], trigger.expand(6, WIDTH))

    def test_the_first_direction_is_downhill_and_the_second_random(
        self, drawn: Drawn, trigger: Tensor
    ) -> None:
        suspect, anchor = make_tower(1), make_tower(2)
        probes = tokens(suspect, 4)
        across = []
        for surface, points in enumerate(drawn.points):
            point = trigger.clone().requires_grad_()
            loss = published_loss(suspect, anchor, probes.rows(_prompt_of(surface)), point)
            (gradient,) = torch.autograd.grad(loss, point)
            downhill = -gradient[0] / gradient.norm()
            torch.testing.assert_close(
                (points[4, 3] - points[3, 3]) / 2, downhill, rtol=0, atol=1e-4
            )
            across.append((points[3, 4] - points[3, 3]) / 2)
        likeness = (torch.stack(across) @ torch.stack(across).T).fill_diagonal_(0)
        assert likeness.abs().max() < 0.9

    @torch.no_grad()
    def test_surfaces_hold_the_published_loss(self, drawn: Drawn) -> None:
        suspect, anchor = make_tower(1), make_tower(2)
        probes = tokens(suspect, 4)
        for surface, row, column in ((0, 0, 0), (1, 3, 3), (2, 6, 1), (3, 2, 5), (5, 6, 6)):
            rows = probes.rows(_prompt_of(surface))
            point = drawn.points[surface, row, column].unsqueeze(0)
            expected = published_loss(suspect, anchor, rows, point).item()
            value = drawn.landscape.surfaces[surface, row, column].item()
            assert value == pytest.approx(expected, abs=1e-5)

    def test_the_share_counts_eigenvalues_above_the_threshold(self, drawn: Drawn) -> None:
        found = drawn.landscape
        expected = (found.eigenvalues > 1e-6).double().mean(dim=1)
        assert found.shares == pytest.approx(expected.tolist())
        assert found.positive_share == pytest.approx(expected.mean().item())
        assert torch.equal(found.eigenvalues[2], hessian_eigenvalues(found.surfaces[2]))


def _prompt_of(surface: int) -> slice:
    """Three directions are drawn for each prompt."""
    return slice(surface // 3, surface // 3 + 1)


OPTIONS = LandscapeSettings(grid=5, prompts=1, directions=1)


def _survey(trigger: Tensor, *, suspect: TextTower | None = None, seed: int = 0) -> Landscape:
    tower = make_tower(1)
    return survey(
        suspect or tower,
        make_tower(2),
        tokens(tower, 2),
        trigger,
        OPTIONS,
        fp32(),
        generator(seed),
    )


def test_it_is_drawn_in_fp32_whatever_the_runtime(trigger: Tensor) -> None:
    suspect, anchor = make_tower(1), make_tower(2)
    probes = tokens(suspect, 2)
    runtime = Runtime("cpu", "bf16")
    with observed_dtypes(suspect) as ours, observed_dtypes(anchor) as theirs:
        found = survey(suspect, anchor, probes, trigger, OPTIONS, runtime, generator())
    assert ours == theirs == {torch.float32}
    assert torch.equal(found.surfaces, _survey(trigger).surfaces)


def test_it_is_the_same_for_the_same_seed_and_moves_nothing(trigger: Tensor) -> None:
    before = trigger.clone()
    first, again, other = (_survey(trigger, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.surfaces, again.surfaces)
    assert not torch.equal(first.surfaces, other.surfaces)
    assert torch.equal(trigger, before) and not trigger.requires_grad
    assert not first.surfaces.requires_grad


@pytest.mark.usefixtures("no_collection")
def test_out_of_memory_draws_the_same_surface(trigger: Tensor) -> None:
    crowded = Crowded(make_tower(1), 3)
    found = _survey(trigger, suspect=crowded)
    assert crowded.failures > 0
    expected = _survey(trigger)
    torch.testing.assert_close(found.surfaces, expected.surfaces, rtol=0, atol=1e-5)


def test_triggers_of_several_vectors_have_one_direction_each() -> None:
    triggers = torch.randn(3, WIDTH, generator=generator())
    assert torch.isfinite(_survey(triggers).surfaces).all()


def test_a_surface_that_is_not_a_number_has_no_share() -> None:
    """A share of 0 would read as a flat, natural landscape."""
    found = _survey(torch.full((1, WIDTH), torch.nan))
    assert math.isnan(found.positive_share)
