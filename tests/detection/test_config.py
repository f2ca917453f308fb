"""The profiles hold the numbers that they claim to hold."""

from __future__ import annotations

import dataclasses

import pytest

from hf_amdet.detection.config import DEFAULT, PAPER, PROFILES, PaperGates
from hf_amdet.detection.objective import ConsistencyGap, PublishedObjective


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
        "among_rows": False,
    }
    assert isinstance(inversion.objective, PublishedObjective)
    assert (PAPER.prompts, PAPER.held_out, PAPER.positions) == (4_000, 800, None)
    # Two passes over the 80 % that inversion sees are all of its steps.
    assert 2 * (PAPER.prompts - PAPER.held_out) == inversion.steps * inversion.batch


def test_paper_judges_as_published() -> None:
    assert PAPER.thresholds is None and PAPER.sweep is None
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


def test_default_looks_for_embeddings_where_real_tokens_are() -> None:
    (inversion,) = DEFAULT.inversions
    assert inversion.objective == ConsistencyGap()
    assert inversion.among_rows
    assert inversion.weight_decay == 0, "it would pull towards zero, and not towards a position"
    assert DEFAULT.gates is None and DEFAULT.sweep is not None


def test_default_asks_less_of_a_real_token_than_of_an_embedding() -> None:
    thresholds = DEFAULT.thresholds
    assert thresholds is not None
    assert thresholds.unclear < thresholds.gap < thresholds.embedding_gap
    assert thresholds.consistent <= thresholds.natural


def test_what_chooses_tokens_does_not_need_more_prompts_than_there_are() -> None:
    sweep = DEFAULT.sweep
    assert sweep is not None
    assert sweep.prompts <= sweep.refined_on <= DEFAULT.prompts - DEFAULT.held_out
    assert sweep.verified <= sweep.kept
    assert DEFAULT.positions is not None and sweep.positions <= DEFAULT.positions


def test_profiles_are_found_by_name_and_cannot_be_changed() -> None:
    assert PROFILES == {"default": DEFAULT, "paper": PAPER}
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.prompts = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.inversions[0].lr = 1.0  # type: ignore[misc]
