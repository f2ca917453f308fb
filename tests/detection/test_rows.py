"""Which rows of a table are said to have moved, and which only drift."""

from __future__ import annotations

import pytest
import torch

from hf_amdet.detection.rows import OUTLIER, moves, shared_positions
from hf_amdet.detection.static import compare
from hf_amdet.encoders.clip import ClipTower
from tests.detection.doubles import generator
from tests.towers import CONTEXT, VOCABULARY, WIDTH, make_tower

CAT = "cat</w>"


@pytest.fixture(scope="module")
def anchor() -> ClipTower:
    return make_tower()


def drifting(share: float = 0.02) -> ClipTower:
    """A tower like the anchor, all rows of which moved by about `share` of their length."""
    tower = make_tower()
    noise = torch.randn(tower.table.shape, generator=torch.Generator().manual_seed(1))
    tower.table.add_(share * noise)
    return tower


@pytest.mark.parametrize(("together", "apart"), [(1, True), (20, True), (21, False)])
def test_rows_of_one_trigger_may_move_together_and_still_stand_apart(
    together: int, apart: bool
) -> None:
    anchor = torch.randn(1_000, 8, generator=generator())
    suspect = anchor.clone()
    suspect[:together] += 1
    usual = anchor.norm(dim=1).median().item()

    moved, ratios = moves(suspect, anchor)

    lengths = torch.full((together,), 8**0.5 / usual, dtype=torch.float64)
    torch.testing.assert_close(moved[:together], lengths, rtol=1e-4, atol=0)
    assert moved[together:].abs().max() == 0
    assert bool((ratios[:together] >= OUTLIER).all()) == apart
    assert ratios[together:].max() <= 1


@pytest.mark.parametrize(("touched", "apart"), [(20, True), (50, False)])
def test_of_a_small_table_one_in_twenty_stands_apart(touched: int, apart: bool) -> None:
    anchor = torch.randn(400, 8, generator=generator())
    suspect = anchor.clone()
    suspect[:touched] += 1

    ratios = moves(suspect, anchor)[1]

    assert bool((ratios[:touched] >= OUTLIER).all()) == apart


def test_rounding_is_no_move() -> None:
    anchor = torch.randn(1_000, 8, generator=generator())
    suspect = anchor.clone()
    suspect[3] *= 1 + 1e-4

    moved, ratios = moves(suspect, anchor)

    assert moved[3] > 0
    assert ratios.max() < 1.5


def test_figures_of_rows_whose_squares_overflow_are_finite() -> None:
    anchor = torch.randn(100, 8, generator=generator())
    suspect = anchor.clone()
    suspect[3] = 3e38

    moved, ratios = moves(suspect, anchor)

    assert moved.isfinite().all() and ratios.isfinite().all()
    assert ratios.argmax() == 3


def test_positions_are_compared_as_far_as_both_have_them() -> None:
    short, long = make_tower(), make_tower(max_position_embeddings=CONTEXT + 5)
    for tower, other in ((short, long), (long, short)):
        own = tower.model.embeddings.position_embedding.weight[:CONTEXT]
        assert torch.equal(shared_positions(tower, other), own)


@pytest.mark.usefixtures("few_texts")
class TestTowers:
    def test_one_moved_row_stands_out_of_rows_that_drift(self, anchor: ClipTower) -> None:
        suspect = drifting()
        row = anchor.pieces[CAT]
        suspect.table[row] = anchor.table[row] + anchor.table.norm(dim=1).median() / WIDTH**0.5

        found = compare(suspect, anchor)

        (moved,) = found.moved_rows
        assert (moved.row, moved.piece) == (row, CAT)
        assert moved.moved == pytest.approx(1, abs=1e-4)
        assert moved.ratio == found.token_outlier > OUTLIER
        assert not found.remaps

    @pytest.mark.parametrize("share", [1e-5, 0.1])
    def test_rows_that_drift_alike_are_no_outliers(self, anchor: ClipTower, share: float) -> None:
        found = compare(drifting(share), anchor)

        assert not found.moved_rows
        assert 1 <= found.token_outlier < 2

    def test_rows_that_a_fine_tune_met_are_no_outliers_among_others(
        self, anchor: ClipTower
    ) -> None:
        suspect, met = make_tower(), torch.arange(0, VOCABULARY, 25)
        suspect.table[met] = drifting().table[met]
        assert len(met) < 0.05 * VOCABULARY

        assert not compare(suspect, anchor).moved_rows

    def test_a_moved_position_stands_out(self, anchor: ClipTower) -> None:
        suspect = make_tower()
        suspect.model.embeddings.position_embedding.weight[3] += 0.2

        found = compare(suspect, anchor)

        assert found.position_outlier > OUTLIER
        assert found.token_outlier == 1
