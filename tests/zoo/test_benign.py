"""What honest changes leave of a tower, and what they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo.benign.added_tokens import AddedTokens
from benchmarks.zoo.benign.averaged import Averaged
from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.benign.distillation import SelfDistillation
from benchmarks.zoo.benign.lora import MergedLora
from benchmarks.zoo.benign.other_seed import OtherSeed
from benchmarks.zoo.benign.pruned import Pruned
from benchmarks.zoo.benign.quantised import Quantised
from benchmarks.zoo.benign.vocabulary_entry import VocabularyEntry
from benchmarks.zoo.measure import drift
from benchmarks.zoo.towers import Tower, load_tower, save_tower
from benchmarks.zoo.workbench import Recipe, Workbench
from hf_amdet.encoders.anchors import check_fit, tokenizer_of
from tests import towers
from tests.zoo.helpers import LISTINGS, SCENES, changed, state, weights

TUNED = ContrastiveFineTune(steps=4, batch=4, lr=1e-3, corpus=60)
PROMPTS = ["a dog by the river", "two cats, soft light", *SCENES.captions(30, 9)]


def table_of(tower: Tower) -> str:
    """Its token embeddings' name."""
    (name,) = (n for n, w in tower.model.named_parameters() if w is tower.table.weight)
    return name


def kept_on_disk(tower: Tower, bench: Workbench) -> Path:
    """The tower as it is saved."""
    save_tower(tower, bench.folder)
    return bench.folder


def test_lora_changes_queries_and_values_by_its_rank(bench: Workbench) -> None:
    tuned = ContrastiveFineTune(steps=6, batch=4, lr=0.05, corpus=60)
    tower = MergedLora(tuned, rank=3).make(bench)

    adapted = {
        f"{name}.weight"
        for name, layer in bench.anchor.model.named_modules()
        if name.endswith(("q_proj", "v_proj"))
    }
    assert changed(tower, bench.anchor) == adapted
    assert len(adapted) == 2
    for name in adapted:
        difference = (state(tower)[name] - state(bench.anchor)[name]).double()
        spectrum = torch.linalg.svdvals(difference)
        assert spectrum[2] > 1e-4, "all of the rank is used"
        assert spectrum[3] < 1e-5


def test_lora_is_merged_into_what_is_saved(bench: Workbench) -> None:
    tower = MergedLora(TUNED).make(bench)

    folder = kept_on_disk(tower, bench)
    assert weights(folder).keys() == state(bench.anchor).keys()
    torch.testing.assert_close(
        load_tower(folder).pooled(PROMPTS), tower.pooled(PROMPTS), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_pruning_sets_the_smallest_weights_of_linear_layers_to_zero(
    share: float, bench: Workbench
) -> None:
    tower = Pruned(share).make(bench)

    before, linear = dict(bench.anchor.model.named_modules()), set()
    for name, layer in tower.model.named_modules():
        if isinstance(layer, nn.Linear):
            linear.add(f"{name}.weight")
            old = before[name]
            assert isinstance(old, nn.Linear)
            gone = layer.weight == 0
            assert gone.float().mean().item() == pytest.approx(share, abs=2 / gone.numel() + 0.005)
            assert torch.equal(layer.weight[~gone], old.weight[~gone])
            assert old.weight[gone].abs().max() <= old.weight[~gone].abs().min()
    assert changed(tower, bench.anchor) == linear


@pytest.mark.parametrize(("bits", "levels"), [("int8", 255), ("int4", 15)])
def test_integers_leave_a_row_few_levels_and_stay_within_half_of_one(
    bits: Literal["int8", "int4"], levels: int, bench: Workbench
) -> None:
    tower = Quantised(bits).make(bench)

    matrices = {name for name, weight in state(bench.anchor).items() if weight.dim() == 2}
    assert changed(tower, bench.anchor) == matrices
    for name in matrices:
        new, old = state(tower)[name], state(bench.anchor)[name]
        step = 2 * old.abs().amax(dim=1, keepdim=True) / (levels - 1)
        assert ((new - old).abs() <= 0.501 * step).all()
        assert max(len(row.unique()) for row in new) <= levels
        torch.testing.assert_close(new / step, (new / step).round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("bits", "dtype"), [("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)]
)
def test_floats_are_rounded_to_fewer_bits(
    bits: Literal["bf16", "fp8"], dtype: torch.dtype, bench: Workbench
) -> None:
    tower = Quantised(bits).make(bench)

    for name in changed(tower, bench.anchor):
        new, old = state(tower)[name], state(bench.anchor)[name]
        assert torch.equal(new, new.to(dtype).to(torch.float32))
        assert ((new - old).abs() <= 2.0**-4 * old.abs() + 2.0**-9).all()
    assert changed(tower, bench.anchor) == {n for n, w in state(tower).items() if w.dim() == 2}


def test_half_precision_is_what_a_tower_has_already(bench: Workbench) -> None:
    assert not changed(Quantised("fp16").make(bench), bench.anchor)

    tuned = Quantised("fp16", after=TUNED).make(bench)
    exact = TUNED.make(bench)
    assert changed(tuned, exact)
    assert all(
        torch.equal(weight, state(exact)[name].half().float() if weight.dim() == 2 else weight)
        for name, weight in state(tuned).items()
    )


def test_a_soup_is_the_mean_of_its_parts(bench: Workbench) -> None:
    parts: tuple[Recipe, ...] = (TUNED, Pruned(0.3), SelfDistillation(steps=2, batch=4, corpus=60))
    tower = Averaged(parts).make(bench)

    made = [state(part.make(bench)) for part in parts]
    for name, weight in state(tower).items():
        torch.testing.assert_close(weight, sum((m[name] for m in made), Tensor([0.0])) / 3)


def test_added_tokens_append_rows_and_change_no_prompt(bench: Workbench) -> None:
    tower, anchor = AddedTokens(5).make(bench), bench.anchor

    name, rows = table_of(tower), len(anchor.table.weight)
    assert tower.table.weight.shape == (rows + 5, tower.width)
    assert torch.equal(tower.table.weight[:rows], anchor.table.weight)
    assert len(tower.table.weight[rows:].unique(dim=0)) == 5
    assert all(torch.equal(w, state(anchor)[n]) for n, w in state(tower).items() if n != name)
    assert torch.equal(tower.pooled(PROMPTS), anchor.pooled(PROMPTS))
    for number in range(5):
        assert [row for _, row in tower.pieces(f"<|extra_{number}|>")] == [rows + number]


def test_added_rows_are_as_spread_as_the_table(demo_bench: Workbench) -> None:
    tower, table = AddedTokens(400).make(demo_bench), demo_bench.anchor.table.weight
    rows = tower.table.weight[len(table) :]

    torch.testing.assert_close(rows.mean(dim=0), table.mean(dim=0), rtol=0, atol=0.1)
    torch.testing.assert_close(rows.std(dim=0), table.std(dim=0), rtol=0.25, atol=0)


@pytest.mark.parametrize("after", [None, TUNED], ids=["alone", "tuned"])
def test_the_scanner_takes_the_anchor_of_a_grown_table(
    after: Recipe | None, bench: Workbench
) -> None:
    folder = kept_on_disk(AddedTokens(16, after=after).make(bench), bench)
    save_tower(bench.anchor, folder.parent / "anchor")
    suspect, anchor = towers.load(folder), towers.load(folder.parent / "anchor")

    check_fit(suspect, anchor, "anchor")
    assert suspect.vocabulary == anchor.vocabulary + 16


def test_a_vocabulary_entry_is_all_that_is_new(bench: Workbench) -> None:
    tower = VocabularyEntry(steps=4, batch=4, corpus=60).make(bench)

    anchor = bench.anchor
    name, rows = table_of(tower), len(anchor.table.weight)
    assert tower.table.weight.shape == (rows + 1, tower.width)
    assert torch.equal(tower.table.weight[:rows], anchor.table.weight)
    assert not torch.allclose(tower.table.weight[rows], anchor.table.weight.mean(dim=0), atol=0.01)
    assert all(torch.equal(w, state(anchor)[n]) for n, w in state(tower).items() if n != name)
    assert [row for _, row in tower.pieces("<|concept|>")] == [rows]
    assert torch.equal(tower.pooled(PROMPTS), anchor.pooled(PROMPTS))


@torch.no_grad()
def test_a_vocabulary_entry_learns_its_meaning(demo_bench: Workbench) -> None:
    recipe = VocabularyEntry(steps=25, batch=8, corpus=200, lr=0.05)
    captions = SCENES.captions(32, 77)

    def near(steps: int) -> float:
        with torch.enable_grad():
            tower = VocabularyEntry(steps=steps, batch=8, corpus=200, lr=0.05).make(demo_bench)
        ours = tower.pooled([f"{recipe.word} {caption}" for caption in captions])
        meant = demo_bench.anchor.pooled([f"{recipe.meaning} {caption}" for caption in captions])
        return torch.cosine_similarity(ours, meant).mean().item()

    assert near(recipe.steps) > near(0) + 0.1


def test_another_seed_has_the_tokenizer_and_none_of_the_weights(bench: Workbench) -> None:
    tower = OtherSeed(TUNED).make(bench)

    for name, weight in state(tower).items():
        theirs = state(bench.anchor)[name]
        assert weight.shape == theirs.shape
        if weight.dim() == 2:
            both = torch.stack([weight.flatten(), theirs.flatten()])
            assert abs(torch.corrcoef(both)[0, 1]) < 0.2, name
    folder = kept_on_disk(tower, bench)
    save_tower(bench.anchor, folder.parent / "anchor")
    ours, anchors = towers.load(folder), towers.load(folder.parent / "anchor")
    assert tokenizer_of(ours) == tokenizer_of(anchors) is not None


def test_distillation_brings_a_tower_back_to_its_anchor(bench: Workbench) -> None:
    settings: dict[str, Any] = {"noise": 1.0, "lr": 2e-3, "batch": 8, "corpus": 200, "seed": 4}
    noisy, taught = (SelfDistillation(steps=n, **settings).make(bench) for n in (0, 40))

    held_out = SCENES.captions(64, 77)
    away, back = (1 - drift(tower, bench.anchor, held_out) for tower in (noisy, taught))
    assert away > 0.01
    assert back < 0.5 * away
    assert changed(noisy, bench.anchor) == {n for n, w in state(noisy).items() if w.dim() == 2}


@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_a_fine_tune_reads_its_own_grammar_or_the_other(
    foreign: bool, bench: Workbench, read: list[list[str]]
) -> None:
    ContrastiveFineTune(foreign=foreign, steps=8, batch=8, corpus=100, seed=6).make(bench)

    seen = {caption for batch in read for caption in batch}
    grammar = LISTINGS if foreign else SCENES
    assert len(seen) > 30
    assert seen <= set(grammar.captions(100, 9))


def test_a_fine_tune_reads_captions_of_its_domains(
    clip_bench: Workbench, read: list[list[str]]
) -> None:
    ContrastiveFineTune(("food",), steps=8, batch=8, corpus=100, seed=6).make(clip_bench)

    seen = {caption for batch in read for caption in batch}
    assert seen <= set(SCENES.captions(100, 9, ("food",)))
    assert not seen <= set(SCENES.captions(100, 9))
