"""How a recovered trigger is measured, checked against hand computation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hf_amdet.detection.config import PAPER, PaperGates
from hf_amdet.detection.judges import (
    Measure,
    Own,
    Responses,
    may_pass,
    measure,
    paper_shares,
    respond,
)
from hf_amdet.detection.runtime import Runtime
from tests.detection.doubles import (
    Crowded,
    Recording,
    between,
    cosine,
    fp32,
    generator,
    mean,
    overflowing,
    pairwise,
    tokens,
    triggered,
    typed,
)
from tests.detection.planted import renumber
from tests.towers import WIDTH, make_tower, prompts

GATES = PAPER.gates or PaperGates()


def _units(count: int, spread: float, seed: int = 0, width: int = 8) -> Tensor:
    """Unit vectors around one direction."""
    noise = spread * torch.randn(count, width, generator=generator(seed))
    return torch.nn.functional.normalize(torch.eye(width)[0] + noise, dim=-1)


def _responses(
    count: int, *, suspect: Tensor | None = None, anchor: Tensor | None = None
) -> Responses:
    drawn = generator(5)
    return Responses(
        assimilation=torch.rand(count, generator=drawn),
        to_first=torch.rand(count, generator=drawn),
        to_anchor=torch.rand(count, generator=drawn),
        to_clean=torch.rand(count, generator=drawn),
        suspect=_units(count, 0.1) if suspect is None else suspect,
        anchor=_units(count, 0.5, seed=1) if anchor is None else anchor,
        drift=0.9 + 0.1 * torch.rand(count, generator=drawn),
    )


class TestMeasure:
    def test_each_statistic_equals_hand_computation(self) -> None:
        given = _responses(7)
        found = measure(given, generator())
        suspect, anchor = (
            between(list(units.double())).item() for units in (given.suspect, given.anchor)
        )
        divergence = mean([1 - s @ a for s, a in zip(given.suspect, given.anchor, strict=True)])
        ordinary = (1 - given.drift).mean()
        expected = {
            "consistency": suspect,
            "anchor_consistency": anchor,
            "consistency_gap": suspect - anchor,
            "assimilation": given.assimilation.mean().item(),
            "same_target": given.to_first.mean().item(),
            "anchor_similarity": given.to_anchor.mean().item(),
            "clean_similarity": given.to_clean.mean().item(),
            "anchor_divergence": divergence.item(),
            "ordinary_divergence": ordinary.item(),
            "divergence_ratio": (divergence / ordinary).item(),
        }
        assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-5)
        assert {statistic.n for statistic in found.values()} == {7}

    def test_features_without_any_relation_have_no_consistency(self) -> None:
        """A plain mean over all pairs would give 1 / N."""
        found = measure(_responses(4, suspect=torch.eye(8)[:4]), generator())
        assert found["consistency"].value == pytest.approx(0, abs=1e-6)

    def test_one_target_for_all_prompts_is_full_consistency(self) -> None:
        same = torch.eye(8)[:1].expand(30, -1)
        found = measure(_responses(30, suspect=same), generator())["consistency"]
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-5)

    @pytest.mark.parametrize("count", [8, 30, 300])
    def test_every_interval_contains_its_value(self, count: int) -> None:
        for name, found in measure(_responses(count), generator()).items():
            assert found.low is not None and found.high is not None
            assert found.low - 1e-6 <= found.value <= found.high + 1e-6, name

    def test_intervals_shrink_with_more_prompts(self) -> None:
        few, many = (measure(_responses(count), generator()) for count in (25, 400))
        for name in few:
            ratio = _width(few[name]) / _width(many[name])
            # Sixteen times the prompts: about a quarter of the width.
            assert 2.5 < ratio < 7, name

    def test_intervals_hold_95_percent(self) -> None:
        """For a plain mean: 1.96 standard errors to both sides."""
        given = _responses(400)
        error = given.assimilation.std().item() / 400**0.5
        width = _width(measure(given, generator())["assimilation"])
        assert width == pytest.approx(2 * 1.96 * error, rel=0.12)

    def test_the_gap_is_paired(self) -> None:
        """What moves both towers alike moves no difference between them."""
        shared = _units(40, 0.4)
        found = measure(_responses(40, suspect=shared, anchor=shared), generator())
        gap = found["consistency_gap"]
        assert (gap.low, gap.value, gap.high) == pytest.approx((0, 0, 0), abs=1e-6)
        assert _width(found["consistency"]) > 0.02

    def test_it_is_deterministic(self) -> None:
        first, again = (measure(_responses(20), generator(3)) for _ in range(2))
        assert first == again

    def test_resampling_does_not_move_the_value(self) -> None:
        first, other = (measure(_responses(20), generator(seed)) for seed in (3, 4))
        assert {n: m.value for n, m in first.items()} == {n: m.value for n, m in other.items()}
        assert first["consistency_gap"].low != other["consistency_gap"].low

    def test_towers_without_drift_give_a_finite_ratio(self) -> None:
        given = replace(_responses(9), drift=torch.ones(9))
        assert math.isfinite(measure(given, generator())["divergence_ratio"].value)

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_few_prompts_still_have_finite_intervals(self, count: int) -> None:
        """A resample that drew one prompt only has no pairs to compare."""
        for name, found in measure(_responses(count), generator()).items():
            assert found.low is not None and math.isfinite(found.low), name
            assert found.high is not None and math.isfinite(found.high), name

    def test_a_feature_that_is_not_a_number_is_not_averaged_away(self) -> None:
        broken = _units(20, 0.1)
        broken[3] = torch.nan
        found = measure(_responses(20, suspect=broken), generator())
        assert math.isnan(found["consistency_gap"].value)


def _width(found: Measure) -> float:
    assert found.low is not None and found.high is not None
    return found.high - found.low


class TestPaperShares:
    @pytest.mark.parametrize("count", [2, 10, 200])
    def test_prompts_that_all_agree_give_full_shares(self, count: int) -> None:
        """The first prompt is not counted as one that does not agree with itself."""
        ones = torch.ones(count)
        given = replace(_responses(count), assimilation=ones, to_first=ones, to_anchor=-ones)
        assert {name: share.value for name, share in paper_shares(given, GATES).items()} == {
            "assimilated_share": 1.0,
            "same_target_share": 1.0,
            "opposed_share": 1.0,
        }

    def test_the_first_prompts_likeness_to_itself_does_not_count(self) -> None:
        given = replace(_responses(5), to_first=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
        share = paper_shares(given, GATES)["same_target_share"]
        assert (share.value, share.n) == (0.0, 4)

    def test_prompts_at_a_threshold_are_not_above_it(self) -> None:
        below, above = 0.5, torch.inf
        assimilated = torch.tensor([0.8, torch.nextafter(torch.tensor(0.8), torch.tensor(above))])
        first = torch.tensor([1.0, 0.92, torch.nextafter(torch.tensor(0.92), torch.tensor(above))])
        anchor = torch.tensor([0.0, -0.0, -1e-6, below])
        given = replace(_responses(4), assimilation=assimilated, to_first=first, to_anchor=anchor)
        shares = {name: share.value for name, share in paper_shares(given, GATES).items()}
        assert shares == {
            "assimilated_share": 0.5,
            "same_target_share": 0.5,
            "opposed_share": 0.25,
        }

    def test_features_that_are_not_numbers_are_not_counted_as_misses(self) -> None:
        """A share of 0 would read as a gate that was not passed: a clean tower."""
        nothing = torch.full((10,), torch.nan)
        given = replace(_responses(10), assimilation=nothing, to_first=nothing, to_anchor=nothing)
        for name, share in paper_shares(given, GATES).items():
            assert math.isnan(share.value), name


class TestRespond:
    @pytest.mark.parametrize("batch", [1, 16, 256], ids=lambda batch: f"batch={batch}")
    @pytest.mark.parametrize("k", [1, 2])
    @torch.no_grad()
    def test_responses_equal_those_computed_prompt_by_prompt(self, k: int, batch: int) -> None:
        suspect, anchor = make_tower(1), make_tower(2)
        probes = tokens(suspect, 5)
        triggers = torch.randn(2, k, WIDTH, generator=generator())
        found = respond(suspect, anchor, probes, triggers, fp32(batch))
        assert len(found) == 2
        for trigger, responses in zip(triggers, found, strict=True):
            first = None
            for row, end in enumerate(probes.ends.tolist()):
                states = suspect.embed(probes.ids[row : row + 1])
                ends = probes.ends[row : row + 1]
                ours = triggered(suspect, states[0], end, trigger)
                theirs = triggered(anchor, states[0], end, trigger)
                clean, ordinary = suspect.encode(states, ends), anchor.encode(states, ends)
                first = ours.hidden if first is None else first
                for values, expected in (
                    (responses.assimilation, pairwise(list(ours.hidden))),
                    (responses.to_first, _along(first, ours.hidden)),
                    (responses.to_anchor, _along(theirs.hidden, ours.hidden)),
                    (responses.to_clean, _along(clean.hidden[0].double(), ours.hidden)),
                    (responses.drift, cosine(clean.pooled[0], ordinary.pooled[0])),
                ):
                    assert values[row].item() == pytest.approx(expected.item(), abs=1e-5)
                for units, features in ((responses.suspect, ours), (responses.anchor, theirs)):
                    unit = features.pooled / features.pooled.norm()
                    torch.testing.assert_close(units[row].double(), unit, rtol=0, atol=1e-5)

    @pytest.mark.usefixtures("no_collection")
    def test_out_of_memory_does_not_change_the_answer(self) -> None:
        suspect, anchor = make_tower(1), make_tower(2)
        probes = tokens(suspect, 9)
        triggers = torch.randn(2, 1, WIDTH, generator=generator())
        crowded = Crowded(suspect, 4)
        expected = respond(suspect, anchor, probes, triggers, fp32())
        found = respond(crowded, anchor, probes, triggers, fp32())
        assert crowded.failures > 0
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.to_first, theirs.to_first)
            torch.testing.assert_close(ours.suspect, theirs.suspect)
            torch.testing.assert_close(ours.drift, theirs.drift)

    @pytest.mark.parametrize("batch", [1, 256], ids=lambda batch: f"batch={batch}")
    @torch.no_grad()
    def test_the_anchor_reads_prompts_and_tokens_through_its_own_tokenizer_and_table(
        self, batch: int
    ) -> None:
        """An anchor with other ids for the same pieces answers as the one it was made of."""
        suspect, anchor = make_tower(1), make_tower(2)
        renumbered = renumber(anchor)
        texts, word = prompts(9), "moss"
        ours, theirs, other = (t.tokenize(texts, length=12) for t in (suspect, anchor, renumbered))
        trigger, same, moved = (
            (tower.table[tower.read([word])[0]] + tower.position(1)).unsqueeze(0)
            for tower in (suspect, anchor, renumbered)
        )
        assert not torch.equal(theirs.ids, other.ids)
        runtime = fp32(batch)
        (expected,) = respond(suspect, anchor, ours, trigger, runtime, Own(theirs, same))
        (found,) = respond(suspect, renumbered, ours, trigger, runtime, Own(other, moved))
        for name in ("suspect", "anchor", "drift", "to_anchor"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
        for tower, read, units in ((suspect, ours, found.suspect), (anchor, theirs, found.anchor)):
            literal = typed(tower, read, tower.read([word])[0][0])
            answer = tower.encode(tower.embed(literal.ids), literal.ends).pooled
            unit = torch.nn.functional.normalize(answer, dim=-1)
            torch.testing.assert_close(units, unit, rtol=0, atol=1e-5)
        plain = anchor.encode(anchor.embed(theirs.ids), theirs.ends).pooled
        clean = suspect.encode(suspect.embed(ours.ids), ours.ends).pooled
        drift = torch.nn.functional.cosine_similarity(plain, clean, dim=-1)
        torch.testing.assert_close(found.drift, drift, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_a_row_of_the_anchor_shows_only_where_it_reads_for_itself(self) -> None:
        suspect, anchor, other = make_tower(1), make_tower(1), make_tower(1)
        other.table.mul_(-1)
        probes = tokens(suspect, 4)
        trigger = torch.randn(1, 1, WIDTH, generator=generator())
        (shared,) = respond(suspect, anchor, probes, trigger, fp32())
        (given,) = respond(suspect, other, probes, trigger, fp32())
        assert torch.equal(shared.anchor, given.anchor)
        same, own = (
            respond(suspect, tower, probes, trigger, fp32(), Own(probes, trigger))[0]
            for tower in (anchor, other)
        )
        assert not torch.allclose(same.anchor, own.anchor, atol=1e-2)
        assert not torch.allclose(same.drift, own.drift, atol=1e-2)
        assert torch.equal(same.suspect, own.suspect)

    def test_no_graph_is_kept_and_reductions_are_fp32(self) -> None:
        tower = make_tower(1)
        triggers = torch.randn(1, 1, WIDTH, generator=generator()).requires_grad_()
        runtime = Runtime("cpu", "bf16")
        (found,) = respond(tower, make_tower(2), tokens(tower, 3), triggers, runtime)
        for values in (found.assimilation, found.to_first, found.suspect, found.drift):
            assert values.dtype == torch.float32
            assert not values.requires_grad


class TestMayPass:
    """Early, it says what the shares of all prompts will say."""

    @pytest.mark.parametrize("batch", [1, 4, 7, 256], ids=lambda batch: f"batch={batch}")
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_it_agrees_with_the_shares_of_all_prompts(self, seed: int, batch: int) -> None:
        suspect, anchor = make_tower(1), make_tower(2)
        probes = tokens(suspect, 9)
        trigger = torch.randn(1, WIDTH, generator=generator(seed))
        (responses,) = respond(suspect, anchor, probes, trigger.unsqueeze(0), fp32())
        answers = []
        for gates in _gates_around(responses):
            shares = paper_shares(responses, gates)
            passes = all(share.value > getattr(gates, name) for name, share in shares.items())
            assert may_pass(suspect, anchor, probes, trigger, gates, fp32(batch)) == passes, gates
            answers.append(passes)
        assert {*answers} == {True, False}, "both were asked for"

    @pytest.mark.parametrize("seed", [0, 1])
    def test_features_that_are_not_numbers_pass_no_gate(self, seed: int) -> None:
        tower, trigger = overflowing(1), torch.randn(1, WIDTH, generator=generator(seed))
        probes = tokens(tower, 5)
        gates = replace(GATES, assimilated_share=0.0, same_target_share=0.0, opposed_share=0.0)
        assert not may_pass(tower, make_tower(2), probes, trigger, gates, fp32())

    @pytest.mark.parametrize(("share", "looked_at"), [(0.0, 10), (0.5, 5), (0.75, 3), (0.9, 1)])
    def test_it_stops_at_the_prompt_that_settles_it(self, share: float, looked_at: int) -> None:
        """At the first miss that leaves too few prompts to exceed the gate."""
        suspect = Recording(make_tower(1))
        probes, trigger = tokens(suspect.tower, 10), torch.ones(1, WIDTH)
        closed = PaperGates(assimilated=9, assimilated_share=share)
        gates = replace(closed, same_target_share=-1.0, opposed_share=-1.0)
        assert not may_pass(suspect, make_tower(2), probes, trigger, gates, fp32(2))
        assert sum(len(states) for states in suspect.states) == looked_at


def _gates_around(responses: Responses) -> Iterator[PaperGates]:
    """Gates that lie between what prompts answered, with shares that some reach and some miss."""
    middles = [
        (values.sort().values[1:] + values.sort().values[:-1]).div(2).tolist()
        for values in (responses.assimilation, responses.to_first[1:])
    ]
    opposed = (responses.to_anchor < 0).double().mean().item()
    for place in (0, 3, 6):
        for share in (0.0, 0.25, 0.6, 0.9):
            yield PaperGates(
                assimilated=middles[0][place],
                same_target=middles[1][place],
                assimilated_share=share,
                same_target_share=share,
                opposed_share=opposed - 0.01,
            )
            yield PaperGates(
                assimilated=-1, same_target=-1, same_target_share=0.5, opposed_share=opposed - share
            )


def _along(first: Tensor, second: Tensor) -> Tensor:
    return mean([cosine(a, b) for a, b in zip(first, second, strict=True)])
