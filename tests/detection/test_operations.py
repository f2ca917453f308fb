"""What a scan computes, counted: nothing is encoded that no answer needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_amdet.detection.config import DEFAULT
from hf_amdet.detection.detect import detect
from hf_amdet.detection.progress import Observer
from hf_amdet.detection.stages import Run
from hf_amdet.encoders.tower import ModelTower
from tests.detection.doubles import SMALL, Recording, fp32
from tests.siglip_towers import make_siglip_tower
from tests.towers import make_tower, prompts

TEXTS = prompts(60, words=5)


def _positions(states: Sequence[Tensor]) -> int:
    return sum(given.shape[0] * given.shape[1] for given in states)


def test_a_scan_encodes_what_its_stages_need_and_no_more() -> None:
    suspect, anchor = Recording(make_tower(1, drift=0.1)), Recording(make_tower(1))
    found = detect(suspect, anchor, TEXTS, SMALL, seed=0, runtime=fp32())
    assert found.landscape is None
    sweep, (inversion,) = SMALL.sweep, SMALL.inversions
    assert sweep is not None and SMALL.positions is not None
    count, length = len(set(suspect.pieces.values()) - suspect.special), SMALL.positions
    screened = max(sweep.kept, math.ceil(count * sweep.screened))
    optimise = SMALL.prompts - SMALL.held_out
    # Of both kinds that a round keeps, some may be the same tokens.
    least = sweep.prompts * sweep.positions * screened
    least += min(sweep.refined_on, optimise) * length * sweep.kept
    rounds = range(least, least * 4 // 3 + 1)
    steps = inversion.steps * inversion.restarts * inversion.batch * length
    # Under each token, of which one may be shared, under each embedding, and under none twice.
    judged = (sweep.verified + 1 + inversion.restarts + 2) * SMALL.held_out * length
    assert _positions(suspect.states) - 4 * 2 * count - steps - judged in rounds
    # The anchor reads one word in the first round, and ordinary prompts once more.
    ordinary = SMALL.held_out * length
    assert _positions(anchor.states) - 4 * count - steps - judged - ordinary in rounds


@pytest.mark.parametrize("make", [make_tower, make_siglip_tower], ids=["clip", "siglip"])
def test_a_step_takes_no_gradient_of_weights(make: Callable[[int], ModelTower]) -> None:
    """With that of activations alone, backward costs about what forward does, else twice that."""
    suspect, anchor = make(1), make(2)
    (settings,) = DEFAULT.inversions
    profile = replace(SMALL, inversions=(replace(settings, steps=1),))
    run = Run(suspect, anchor, profile, fp32(), Observer(), 0)
    probes = run.probes(TEXTS)
    with FlopCounterMode(display=False) as step:
        for _ in run.inversion(probes, profile.inversions[0], 100):
            pass
    tokens = probes.optimise.rows(slice(settings.batch))
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        for tower in (suspect, anchor):
            tower.encode(tower.embed(tokens.ids), tokens.ends)
    assert step.get_total_flops() < 2.5 * settings.restarts * forward.get_total_flops()
