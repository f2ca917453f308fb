"""The profiles hold the numbers that they claim to hold."""

from __future__ import annotations

import dataclasses

import pytest

from hf_amdet.detection.config import DEFAULT, PAPER, PROFILES, PaperGates
from hf_amdet.detection.objective import PooledContrast, PublishedObjective


def test_paper_inverts_as_published() -> None:
    (inversion,) = PAPER.inversions
    assert dataclasses.asdict(inversion) == {
        "objective": {"beta": 0.1, "gamma": 0.1},
        "restarts": 1,
        "steps": 640,
        "batch": 10,
        "epochs": 2,
        "lr": 0.08,
        "weight_decay": 1e-5,
        "trigger_length": 1,
    }
    assert isinstance(inversion.objective, PublishedObjective)
    assert (PAPER.prompts, PAPER.held_out, PAPER.positions) == (4_000, 800, None)
    # Two passes over the 80 % that inversion sees are all of its steps.
    assert 2 * (PAPER.prompts - PAPER.held_out) == inversion.steps * inversion.batch


def test_paper_judges_as_published() -> None:
    assert PAPER.thresholds is None
    assert PAPER.gates == PaperGates(
        width=768,
        context=77,
        running_loss=-0.76,
        epoch_end=-0.85,
        every=2,
        assimilated=0.8,
        assimilated_share=0.8,
        same_target=0.92,
        same_target_share=0.995,
        opposed_share=0.95,
        positive_curvature_share=0.8,
    )


def test_paper_draws_the_landscape_as_published() -> None:
    landscape = PAPER.landscape
    assert (landscape.grid, landscape.radius, landscape.eigenvalue) == (50, 10.0, 1e-6)
    assert (landscape.prompts, landscape.directions) == (1, 1)
    assert landscape.objective == PublishedObjective(beta=0.1, gamma=0.1)


def test_default_looks_for_pooled_and_for_assimilating_backdoors() -> None:
    objectives = [inversion.objective for inversion in DEFAULT.inversions]
    assert objectives == [PooledContrast(), PublishedObjective()]
    assert DEFAULT.gates is None and DEFAULT.thresholds is not None
    assert DEFAULT.thresholds.unclear < DEFAULT.thresholds.gap
    names = [objective.name for objective in objectives]
    assert len(set(names)) == len(names), "curves are kept by objective"


def test_profiles_are_found_by_name_and_cannot_be_changed() -> None:
    assert PROFILES == {"default": DEFAULT, "paper": PAPER}
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.prompts = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.inversions[0].lr = 1.0  # type: ignore[misc]
