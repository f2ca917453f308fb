"""Gradient descent on the trigger: exact, reproducible, and independent per restart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_amdet.detection.config import PAPER, InversionSettings
from hf_amdet.detection.inversion import Inversion, Step
from hf_amdet.detection.objective import ConsistencyGap, Objective, PublishedObjective
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.base import TextTower, Tokens
from hf_amdet.encoders.clip import ClipTower
from tests.detection.doubles import (
    Crowded,
    Formula,
    Recording,
    Scaled,
    fp32,
    gap_loss,
    generator,
    published_loss,
    tokens,
)
from tests.towers import WIDTH, make_tower

SETTINGS = InversionSettings(ConsistencyGap(), restarts=3, steps=6, batch=2)
OBJECTIVES = [
    pytest.param(PublishedObjective(), published_loss, id="published"),
    pytest.param(ConsistencyGap(), gap_loss, id="gap"),
]


@pytest.fixture(scope="module")
def suspect() -> ClipTower:
    return make_tower(1)


@pytest.fixture(scope="module")
def anchor() -> ClipTower:
    return make_tower(2)


@pytest.fixture(scope="module")
def probes(suspect: ClipTower) -> Tokens:
    return tokens(suspect, 6)


def _invert(
    suspect: TextTower,
    anchor: TextTower,
    probes: Tokens,
    settings: InversionSettings = SETTINGS,
    *,
    seed: int = 0,
    runtime: Runtime | None = None,
    start: Tensor | None = None,
) -> Inversion:
    """An inversion that has run; `start` replaces the drawn triggers."""
    inversion = Inversion(suspect, anchor, probes, settings, runtime or fp32(), generator(seed))
    if start is not None:
        inversion._triggers = start.clone().requires_grad_()
    for _ in inversion:
        pass
    return inversion


def _initial(settings: InversionSettings, seed: int = 0) -> Tensor:
    tower = make_tower()
    still = replace(settings, lr=0.0, steps=1)
    return _invert(tower, tower, tokens(tower, 2), still, seed=seed).candidates.triggers


@pytest.mark.parametrize(("objective", "formula"), OBJECTIVES)
def test_each_step_is_adam_on_the_formula(
    suspect: ClipTower, anchor: ClipTower, objective: Objective, formula: Formula
) -> None:
    probes = tokens(suspect, 2)
    settings = InversionSettings(objective, restarts=2, steps=3, batch=2)
    triggers = _initial(settings)
    found = _invert(suspect, anchor, probes, settings).candidates
    for restart, start in enumerate(triggers):
        trigger = start.clone().requires_grad_()
        adam = torch.optim.Adam([trigger], lr=0.08, weight_decay=1e-5)
        for step in range(3):
            loss = formula(suspect, anchor, probes, trigger)
            assert found.curve[step, restart].item() == pytest.approx(loss.item(), abs=1e-4)
            if step == 0:
                assert found.curve[step, restart].item() == pytest.approx(loss.item(), abs=1e-5)
            (trigger.grad,) = torch.autograd.grad(loss, trigger)
            adam.step()
        torch.testing.assert_close(found.triggers[restart], trigger.detach(), rtol=0, atol=2e-3)


def test_triggers_start_standard_normal_and_differ() -> None:
    drawn = _initial(replace(SETTINGS, restarts=50, trigger_length=3))
    assert drawn.shape == (50, 3, WIDTH)
    assert drawn.mean().abs() < 0.05
    assert drawn.std() == pytest.approx(1, abs=0.05)
    assert len({tuple(trigger.flatten().tolist()) for trigger in drawn}) == 50


def test_published_triggers_start_in_no_unit_of_the_tower() -> None:
    """And the published learning rate is its own: neither knows the embedding table."""
    tower = make_tower(1)
    (published,) = PAPER.inversions
    still = replace(published, lr=0.0, steps=1)
    first = _invert(tower, tower, tokens(tower, 2), still).candidates.triggers
    with torch.no_grad():
        tower.table.mul_(10)
    again = _invert(tower, tower, tokens(tower, 2), still).candidates.triggers
    assert torch.equal(first, again)


@pytest.mark.parametrize("objective", [PublishedObjective(), ConsistencyGap()])
def test_a_restart_is_the_same_alone_and_among_others(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens, objective: Objective
) -> None:
    settings = replace(SETTINGS, objective=objective)
    start = _initial(settings)
    together = _invert(suspect, anchor, probes, settings, start=start).candidates
    for restart in range(3):
        # The others start elsewhere: the prompts drawn stay those of the seed.
        others = torch.randn(start.shape, generator=generator(99))
        others[restart] = start[restart]
        changed = _invert(suspect, anchor, probes, settings, start=others).candidates
        torch.testing.assert_close(changed.triggers[restart], together.triggers[restart])
        torch.testing.assert_close(changed.curve[:, restart], together.curve[:, restart])


def test_the_same_seed_gives_identical_triggers(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    first, again, other = (
        _invert(suspect, anchor, probes, seed=seed).candidates for seed in (3, 3, 4)
    )
    assert torch.equal(first.triggers, again.triggers)
    assert torch.equal(first.curve, again.curve)
    assert ((first.triggers - other.triggers).abs().amax(dim=(1, 2)) > 0.1).all()


def test_global_randomness_is_neither_used_nor_moved(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = _invert(suspect, anchor, probes).candidates.triggers
        state = torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(_invert(suspect, anchor, probes).candidates.triggers, first)
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("room", [2, 3, 4])
def test_out_of_memory_halves_the_batch_and_finds_the_same(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens, room: int
) -> None:
    expected = _invert(suspect, anchor, probes).candidates
    crowded, runtime = Crowded(suspect, room), fp32()
    found = _invert(crowded, anchor, probes, runtime=runtime).candidates
    torch.testing.assert_close(found.triggers, expected.triggers, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.curve, expected.curve, rtol=1e-4, atol=1e-4)
    assert 0 < crowded.failures < 10, "halved for good, not once a step"
    assert runtime.batch <= room


@pytest.mark.parametrize(
    "message", ["mat1 and mat2 shapes cannot be multiplied", "memory", "CUDA error: an illegal"]
)
def test_another_runtime_error_is_not_swallowed(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens, message: str
) -> None:
    crowded = Crowded(suspect, 3, message)
    with pytest.raises(RuntimeError, match=message):
        _invert(crowded, anchor, probes)
    assert crowded.failures == 1


@pytest.mark.usefixtures("no_collection")
def test_one_restart_that_does_not_fit_fails(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        _invert(suspect, Crowded(anchor, 1), probes)


def test_each_epoch_draws_every_prompt_once_in_a_new_order(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    watched = Recording(suspect)
    found = _invert(watched, anchor, probes, replace(SETTINGS, steps=99, epochs=2))
    assert len(found.candidates.curve) == 6
    first, second = (torch.cat(watched.ids[part]).tolist() for part in (slice(3), slice(3, 6)))
    assert sorted(first) == sorted(second) == sorted(probes.ids.tolist())
    assert first != second


@pytest.mark.parametrize(("steps", "batch", "epochs"), [(1, 4, None), (7, 4, None), (2, 99, 5)])
def test_it_takes_as_many_steps_as_asked_for(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens, steps: int, batch: int, epochs: int
) -> None:
    settings = replace(SETTINGS, steps=steps, batch=batch, epochs=epochs)
    assert len(_invert(suspect, anchor, probes, settings).candidates.curve) == steps


def test_an_ended_epoch_leaves_its_prompts_undrawn(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    settings = replace(SETTINGS, steps=99, epochs=3)
    inversion = Inversion(suspect, anchor, probes, settings, fp32(), generator())
    for step in inversion:
        if step.index == 1:
            inversion.end_epoch()
    assert len(inversion.candidates.curve) == 2 + 3 + 3


def test_steps_report_their_loss_and_the_mean_of_all(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    inversion = Inversion(suspect, anchor, probes, SETTINGS, fp32(), generator())
    steps: list[Step] = list(inversion)
    found = inversion.candidates
    assert [step.index for step in steps] == list(range(6))
    assert torch.equal(found.curve, torch.stack([step.losses for step in steps]))
    assert torch.equal(found.losses, steps[-1].losses)
    for count, step in enumerate(steps, start=1):
        torch.testing.assert_close(step.running, found.curve[:count].mean(dim=0))


def test_the_loss_falls(suspect: ClipTower, anchor: ClipTower, probes: Tokens) -> None:
    found = _invert(suspect, anchor, probes, replace(SETTINGS, steps=40)).candidates
    assert (found.curve[-5:].mean(0) < found.curve[:5].mean(0) - 0.1).all()


def test_the_anchors_own_embeddings_do_not_matter(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    """Both towers receive the suspect's states: what differs behind them is the encoder."""
    other = make_tower(2)
    with torch.no_grad():
        other.model.embeddings.token_embedding.weight.mul_(-3)
        other.model.embeddings.position_embedding.weight.mul_(-3)
    found = [_invert(suspect, tower, probes).candidates for tower in (anchor, other)]
    assert torch.equal(found[0].triggers, found[1].triggers)


def test_towers_are_left_as_they_were(probes: Tokens) -> None:
    suspect, anchor = make_tower(1), make_tower(2)
    _invert(suspect, anchor, probes)
    for tower, seed in ((suspect, 1), (anchor, 2)):
        fresh = make_tower(seed)
        for weight, expected in zip(tower.parameters(), fresh.parameters(), strict=True):
            assert weight.grad is None
            assert torch.equal(weight, expected)


def test_mixed_precision_ends_near_full_precision(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    runtime = Runtime("cpu", "bf16")
    mixed = _invert(suspect, anchor, probes, runtime=runtime).candidates
    full = _invert(suspect, anchor, probes).candidates
    torch.testing.assert_close(mixed.curve[0], full.curve[0], rtol=0, atol=0.02)
    assert mixed.triggers.dtype == torch.float32


AMONG = replace(SETTINGS, among_rows=True, lr=0.16, weight_decay=0.0)


def _places(tower: ClipTower, k: int) -> Tensor:
    """The position embeddings behind the first k, where a trigger of k is."""
    return torch.stack([tower.position(index) for index in range(k, 2 * k)])


@pytest.mark.parametrize("k", [1, 2])
def test_among_rows_triggers_start_at_rows_of_the_table(suspect: ClipTower, k: int) -> None:
    settings = replace(AMONG, restarts=30, trigger_length=k)
    inversion = Inversion(suspect, suspect, tokens(suspect, 2), settings, fp32(), generator())
    rows = inversion._triggers.detach() - _places(suspect, k)
    apart = (rows.flatten(0, 1).unsqueeze(1) - suspect.table).norm(dim=-1)
    assert apart.amin(dim=1).max() < 1e-5
    assert len(apart.argmin(dim=1).unique()) > 20


@pytest.mark.parametrize("k", [1, 2])
def test_among_rows_triggers_stay_as_near_to_zero_as_real_rows_do(
    suspect: ClipTower, anchor: ClipTower, k: int
) -> None:
    """At a rate that throws them out in one step."""
    settings = replace(AMONG, lr=50.0, trigger_length=k, steps=4)
    inversion = Inversion(suspect, anchor, tokens(suspect, 6), settings, fp32(), generator())
    lengths = suspect.table.norm(dim=1)
    for step in inversion:
        offset = (step.triggers - _places(suspect, k)).norm(dim=-1)
        within = (lengths <= offset.max() + 1e-4).float().mean()
        assert within == pytest.approx(0.95, abs=0.01)
    free = _invert(suspect, anchor, tokens(suspect, 6), replace(settings, among_rows=False))
    assert free.candidates.triggers.norm(dim=-1).min() > 2 * lengths.max()


def test_among_rows_the_unit_of_the_table_changes_nothing_but_the_unit(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    """The learning rate is relative to the rows' spread."""
    ones = _invert(suspect, anchor, probes, AMONG).candidates
    tens = _invert(Scaled(suspect, 10.0), Scaled(anchor, 10.0), probes, AMONG).candidates
    torch.testing.assert_close(tens.triggers / 10, ones.triggers, rtol=0, atol=2e-3)
    torch.testing.assert_close(tens.curve, ones.curve, rtol=0, atol=2e-3)
    start = _invert(suspect, anchor, probes, replace(AMONG, lr=0.0)).candidates.triggers
    assert (ones.triggers - start).abs().amax(dim=(1, 2)).min() > 0.1


def test_among_rows_the_first_step_is_the_rate_times_the_spread_of_a_long_row(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    """Adam's first step has the size of its learning rate in every coordinate."""
    runs = [
        _invert(suspect, anchor, probes, replace(AMONG, steps=1, lr=lr, restarts=8)).candidates
        for lr in (0.0, 0.01)
    ]
    moved = (runs[1].triggers - runs[0].triggers).abs()
    long = suspect.table.norm(dim=1).sort().values[int(0.95 * suspect.vocabulary)].item()
    inside = runs[0].triggers.sub(_places(suspect, 1)).norm(dim=-1).flatten() < 0.95 * long
    assert inside.any()
    assert moved[inside].median().item() == pytest.approx(0.01 * long / WIDTH**0.5, rel=0.02)


def test_among_rows_the_loss_falls(suspect: ClipTower, anchor: ClipTower, probes: Tokens) -> None:
    found = _invert(suspect, anchor, probes, replace(AMONG, steps=40)).candidates
    assert (found.curve[-5:].mean(0) < found.curve[:5].mean(0) - 0.1).all()


def test_among_rows_a_trigger_within_reach_is_left_where_it_is(
    suspect: ClipTower, anchor: ClipTower, probes: Tokens
) -> None:
    still = replace(AMONG, lr=0.0, restarts=30)
    start = Inversion(suspect, anchor, probes, still, fp32(), generator())._triggers.detach()
    ended = _invert(suspect, anchor, probes, still).candidates.triggers
    lengths = (start - _places(suspect, 1)).norm(dim=-1)
    within = lengths <= suspect.table.norm(dim=1).quantile(0.95)
    assert within.sum() > 20
    torch.testing.assert_close(ended[within], start[within])


def test_among_rows_one_that_is_not_a_number_spoils_no_restart_but_its_own(
    anchor: ClipTower, probes: Tokens
) -> None:
    suspect, settings = make_tower(1), replace(AMONG, restarts=30, steps=2)
    held = set(probes.ids.flatten().tolist())
    with torch.no_grad():
        suspect.table[list({*range(0, suspect.vocabulary, 3)} - held)] = torch.nan
    start = Inversion(suspect, anchor, probes, settings, fp32(), generator())._triggers.detach()
    sound = start.isfinite().all(dim=(1, 2))
    assert 0 < sound.sum() < 30

    found = _invert(suspect, anchor, probes, settings).candidates

    assert torch.equal(found.losses.isfinite(), sound)
    assert found.triggers[sound].isfinite().all()
