"""The profiles put together, on random towers and a few steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from hf_amdet.detection.config import DEFAULT, PAPER, PaperGates, Profile
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.progress import Observer
from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import PromptsError
from tests.detection.doubles import Crowded, Recording, fp32
from tests.siglip_towers import make_siglip_tower
from tests.towers import BOS_ID, CONTEXT, EOS_ID, WIDTH, make_tower, prompts

TEXTS = prompts(60)
SMALL = replace(
    DEFAULT,
    prompts=30,
    held_out=10,
    positions=12,
    inversions=tuple(replace(i, steps=4, restarts=2) for i in DEFAULT.inversions),
    landscape=replace(DEFAULT.landscape, grid=5, prompts=2, directions=2),
)
OPEN = PaperGates(
    width=WIDTH,
    context=CONTEXT,
    running_loss=9,
    epoch_end=-9,
    assimilated=-9,
    assimilated_share=-1,
    same_target=-9,
    same_target_share=-1,
    opposed_share=-1,
    positive_curvature_share=-1,
)
"""Gates that everything passes, made for towers of this shape."""


def _paper(gates: PaperGates, *, epochs: int = 2) -> Profile:
    inversion = replace(PAPER.inversions[0], batch=4, epochs=epochs)
    return replace(
        PAPER,
        prompts=30,
        held_out=10,
        inversions=(inversion,),
        landscape=replace(PAPER.landscape, grid=5),
        gates=gates,
    )


def _detect(
    profile: Profile,
    *,
    suspect: ModelTower | None = None,
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
    observer: Observer | None = None,
) -> Detection:
    return detect(
        suspect or make_tower(1),
        make_tower(2),
        texts,
        profile,
        seed=seed,
        runtime=fp32(),
        observer=observer,
    )


def _overflowing() -> ClipTower:
    """All weights finite, but no feature is."""
    tower = make_tower(1)
    with torch.no_grad():
        tower.model.encoder.layers[1].mlp.fc1.weight.mul_(1e25)
        tower.model.encoder.layers[1].mlp.fc2.weight.mul_(1e25)
    return tower


class TestDefault:
    def test_every_restart_of_every_objective_is_judged(self) -> None:
        found = _detect(SMALL)
        assert [(c.objective, c.restart) for c in found.candidates] == [
            ("pooled-contrast", 0),
            ("pooled-contrast", 1),
            ("published", 0),
            ("published", 1),
        ]
        assert {name: curve.shape for name, curve in found.curves.items()} == {
            "pooled-contrast": (4, 2),
            "published": (4, 2),
        }
        for candidate in found.candidates:
            assert candidate.trigger.shape == (1, WIDTH)
            assert candidate.steps == 4
            curve = found.curves[candidate.objective]
            assert candidate.loss == curve[-1, candidate.restart].item()
            assert candidate.statistics["consistency_gap"].n == 10

    def test_the_statistics_are_the_decisive_candidates(self) -> None:
        found = _detect(SMALL)
        assert found.decisive is found.candidates[found.conclusion.decisive]
        beside = {
            name: found.statistics[name]
            for name in ("ordinary_consistency", "positive_curvature_share")
        }
        curvature = beside["positive_curvature_share"]
        assert found.statistics == found.decisive.statistics | beside
        assert found.landscape is not None
        assert curvature.value == found.landscape.positive_share
        assert (curvature.low, curvature.high) == (
            min(found.landscape.shares),
            max(found.landscape.shares),
        )
        assert curvature.n == 4

    def test_the_same_seed_gives_the_same_detection(self) -> None:
        first, again, other = (_detect(SMALL, seed=seed) for seed in (1, 1, 2))
        assert first.conclusion == again.conclusion
        assert first.statistics == again.statistics
        for ours, same in zip(first.candidates, again.candidates, strict=True):
            assert torch.equal(ours.trigger, same.trigger)
        assert not torch.equal(first.candidates[0].trigger, other.candidates[0].trigger)

    def test_objectives_start_from_triggers_of_their_own(self) -> None:
        still = tuple(replace(inversion, lr=0.0) for inversion in SMALL.inversions)
        candidates = _detect(replace(SMALL, inversions=still)).candidates
        assert len({tuple(c.trigger.flatten().tolist()) for c in candidates}) == 4

    def test_held_out_prompts_are_not_optimised_on(self) -> None:
        watched = Recording(make_tower(1))
        detect(watched, make_tower(2), TEXTS, SMALL, seed=0, runtime=fp32())
        steps = 2 * 4
        optimised = {tuple(row) for ids in watched.ids[:steps] for row in ids.tolist()}
        judged = {tuple(row) for ids in watched.ids[steps:] for row in ids.tolist()}
        assert len(judged) == 10
        assert not optimised & judged

    @pytest.mark.usefixtures("no_collection")
    def test_little_memory_gives_the_same_answer(self) -> None:
        crowded = Crowded(make_tower(1), 5)
        found = detect(crowded, make_tower(2), TEXTS, SMALL, seed=0, runtime=fp32())
        expected = _detect(SMALL)
        assert crowded.failures > 0
        assert found.conclusion.answer == expected.conclusion.answer
        gap, wanted = (f.statistics["consistency_gap"].value for f in (found, expected))
        assert gap == pytest.approx(wanted, abs=1e-2)

    def test_a_tower_whose_features_overflow_is_neither_clean_nor_a_crash(self) -> None:
        assert _detect(SMALL, suspect=_overflowing()).conclusion.answer == "inconclusive"

    def test_the_twenty_prompts_that_are_asked_for_are_enough(self) -> None:
        profile = replace(SMALL, prompts=DEFAULT.prompts, held_out=DEFAULT.held_out)
        found = _detect(profile, texts=prompts(20))
        for name, statistic in found.decisive.statistics.items():
            assert statistic.low is not None and math.isfinite(statistic.low), name

    def test_prompts_that_are_all_alike_give_no_clean_answer(self) -> None:
        start = "the one old red blue small tall cat dog bird fish house boat river road hill"
        alike = [f"{start} {prompt}" for prompt in prompts(40)]
        conclusion = _detect(SMALL, texts=alike).conclusion
        assert conclusion.answer == "inconclusive"
        assert conclusion.findings[-1].code == "prompts_alike"

    def test_too_few_prompts_are_an_error(self) -> None:
        with pytest.raises(PromptsError):
            _detect(SMALL, texts=prompts(5))

    def test_progress_is_told_stage_by_stage(self) -> None:
        told: list[tuple[str, int]] = []

        class Telling(Observer):
            def stage(self, name: str, total: int) -> None:
                told.append((name, total))

            def update(self, done: int, total: int, loss: float | None = None) -> None:
                assert 0 < done <= total
                assert loss is None or math.isfinite(loss)

        found = _detect(SMALL, observer=Telling())
        assert ("inversion (published)", 4) in told
        assert told[-1][0] == "landscape"
        assert set(found.timings) == {"probes", "inversion", "judges", "landscape"}
        assert all(seconds > 0 for seconds in found.timings.values())


class TestPaper:
    def test_gates_that_everything_passes_flag_at_the_first_look(self) -> None:
        found = _detect(_paper(OPEN))
        assert found.conclusion.answer == "flagged"
        assert len(found.curves["published"]) == 1
        assert found.landscape is not None

    def test_a_loss_above_the_gate_ends_after_two_epochs_without_evidence(self) -> None:
        found = _detect(_paper(replace(OPEN, running_loss=-9)))
        assert found.conclusion.answer == "no_evidence"
        assert len(found.curves["published"]) == 2 * 5
        assert found.landscape is None
        assert found.statistics["running_loss"].value == pytest.approx(
            found.curves["published"].mean().item()
        )

    def test_gates_are_looked_at_every_second_step(self) -> None:
        """The mean loss passes the gate at the second step and is seen at the third."""
        running = _detect(_paper(replace(OPEN, running_loss=-9))).curves["published"].cumsum(0)
        means = running.flatten() / torch.arange(1, 11)
        gate = (means[0] + means[1]).item() / 2
        assert means[2] < gate, "the loss falls"
        found = _detect(_paper(replace(OPEN, running_loss=gate)))
        assert len(found.curves["published"]) == 3

    @pytest.mark.parametrize(
        ("gate", "gates"),
        [
            ("assimilated_share", replace(OPEN, assimilated_share=1.0)),
            ("same_target_share", replace(OPEN, same_target_share=1.0)),
            ("opposed_share", replace(OPEN, opposed_share=1.0)),
        ],
        ids=["assimilated", "same target", "opposed"],
    )
    def test_a_closed_gate_saves_the_landscape(self, gate: str, gates: PaperGates) -> None:
        found = _detect(_paper(gates, epochs=1))
        assert found.conclusion.answer == "no_evidence"
        assert found.landscape is None
        assert gate in found.conclusion.findings[0].message
        shares = {"assimilated_share", "same_target_share", "opposed_share"}
        assert shares <= found.statistics.keys()

    def test_a_closed_curvature_gate_is_natural(self) -> None:
        found = _detect(_paper(replace(OPEN, positive_curvature_share=1.0), epochs=1))
        assert found.conclusion.answer == "natural"
        assert found.statistics["positive_curvature_share"].value <= 1

    @pytest.mark.parametrize("shape", [{"width": 768}, {"context": 77}], ids=["width", "context"])
    def test_gates_of_another_shape_clear_no_tower(self, shape: dict[str, int]) -> None:
        closed = replace(OPEN, running_loss=-9)
        for gates, answer in ((closed, "inconclusive"), (OPEN, "flagged")):
            foreign = PaperGates(**dataclasses.asdict(gates) | shape)
            assert _detect(_paper(foreign, epochs=1)).conclusion.answer == answer
        codes = [f.code for f in _detect(_paper(replace(OPEN, width=1))).conclusion.findings]
        assert "foreign_thresholds" not in codes

    def test_a_low_loss_ends_the_epoch(self) -> None:
        found = _detect(_paper(replace(OPEN, running_loss=-9, epoch_end=9)))
        # Seen at step 0 of the first epoch; the second begins at step 1 and is seen at step 2.
        assert len(found.curves["published"]) == 1 + 2

    def test_a_tower_whose_features_overflow_is_neither_clean_nor_a_crash(self) -> None:
        profile = _paper(PaperGates(width=WIDTH, context=CONTEXT), epochs=1)
        found = _detect(profile, suspect=_overflowing())
        assert found.conclusion.answer == "inconclusive"

    def test_probes_have_the_whole_context(self) -> None:
        watched = Recording(make_tower(1))
        detect(watched, make_tower(2), TEXTS, _paper(OPEN), seed=0, runtime=fp32())
        for ids in watched.ids:
            assert ids.shape[1] == CONTEXT
            assert (ids[:, 0] == BOS_ID).all() and (ids == EOS_ID).any(dim=1).all()


class TestPaddedTowers:
    """SigLIP reads its padding and pools the last position: it gets nothing but whole contexts."""

    def test_every_sequence_fills_the_context_and_is_pooled_at_its_end(self) -> None:
        suspect, anchor = (Recording(make_siglip_tower(seed)) for seed in (1, 2))
        found = detect(suspect, anchor, TEXTS, SMALL, seed=0, runtime=fp32())
        assert SMALL.positions is not None and SMALL.positions < CONTEXT
        assert found.landscape is not None
        for watched in (suspect, anchor):
            assert watched.states
            for states, ends in zip(watched.states, watched.ends, strict=True):
                assert states.shape[1] == CONTEXT
                assert (ends == CONTEXT - 1).all()

    def test_a_head_that_is_not_as_wide_as_the_tower_is_judged(self) -> None:
        wide = WIDTH + 16
        suspect, anchor = (make_siglip_tower(seed, projection_size=wide) for seed in (1, 2))
        found = detect(suspect, anchor, TEXTS, SMALL, seed=0, runtime=fp32())
        for name, statistic in found.decisive.statistics.items():
            assert math.isfinite(statistic.value), name

    def test_gates_of_clip_clear_no_siglip(self) -> None:
        """SigLIP is as wide as CLIP ViT-L/14; its context tells them apart."""
        gates = replace(OPEN, running_loss=-9, context=77)
        suspect, anchor = (make_siglip_tower(seed) for seed in (1, 2))
        profile = _paper(gates, epochs=1)
        found = detect(suspect, anchor, TEXTS, profile, seed=0, runtime=fp32())
        assert found.conclusion.answer == "inconclusive"
