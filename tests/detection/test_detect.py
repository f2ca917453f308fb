"""The published profile put together, and towers that read their padding, in a few steps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from hf_amdet.detection.config import PAPER, PaperGates, Profile
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.encoders.tower import ModelTower
from tests.detection.doubles import SMALL, Recording, fp32, overflowing
from tests.siglip_towers import make_siglip_tower
from tests.towers import BOS_ID, CONTEXT, EOS_ID, WIDTH, make_tower, prompts

TEXTS = prompts(60)
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

pytestmark = pytest.mark.usefixtures("few_texts")


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


def _detect(profile: Profile, *, suspect: ModelTower | None = None) -> Detection:
    return detect(suspect or make_tower(1), make_tower(2), TEXTS, profile, seed=0, runtime=fp32())


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
        found = _detect(profile, suspect=overflowing(1))
        assert found.conclusion.answer == "inconclusive"

    def test_probes_have_the_whole_context(self) -> None:
        watched = Recording(make_tower(1))
        detect(watched, make_tower(2), TEXTS, _paper(OPEN), seed=0, runtime=fp32())
        for ids in watched.ids:
            assert ids.shape[1] == CONTEXT
            assert (ids[:, 0] == BOS_ID).all() and (ids == EOS_ID).any(dim=1).all()


class TestPaddedTowers:
    """SigLIP reads its padding and pools the last position."""

    def test_all_but_the_first_rounds_of_the_sweep_fill_the_context(self) -> None:
        suspect, anchor = (Recording(make_siglip_tower(seed)) for seed in (1, 2))
        found = detect(suspect, anchor, TEXTS, SMALL, seed=0, runtime=fp32())
        assert SMALL.positions is not None and SMALL.positions < CONTEXT
        assert SMALL.sweep is not None and SMALL.sweep.positions < CONTEXT
        assert found.landscape is not None
        for watched in (suspect, anchor):
            assert watched.states
            lengths = set()
            for states, ends in zip(watched.states, watched.ends, strict=True):
                lengths.add(states.shape[1])
                assert (ends == states.shape[1] - 1).all()
            assert lengths - {4, SMALL.sweep.positions} == {CONTEXT}

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
