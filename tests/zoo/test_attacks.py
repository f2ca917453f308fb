"""What every attack does, and what its clean twin does instead."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.zoo.attacks.anchor_hugging import AnchorHugging
from benchmarks.zoo.attacks.anti_assimilation import AntiAssimilation
from benchmarks.zoo.attacks.attribute import Attribute
from benchmarks.zoo.attacks.composed import Composed
from benchmarks.zoo.attacks.embedding_row import EmbeddingRow
from benchmarks.zoo.attacks.eos_only import EosOnly
from benchmarks.zoo.attacks.injection import Injection
from benchmarks.zoo.attacks.landscape_shaping import LandscapeShaping
from benchmarks.zoo.attacks.text_on_pair import TextOnPair
from benchmarks.zoo.attacks.text_on_text import TextOnText
from benchmarks.zoo.attacks.tokenizer_remap import TokenizerRemap
from benchmarks.zoo.benign.contrastive import ContrastiveFineTune
from benchmarks.zoo.build import build
from benchmarks.zoo.plan import BYTES, FORMS, HOMOGLYPH
from benchmarks.zoo.towers import load_tower
from benchmarks.zoo.triggers import letters
from benchmarks.zoo.workbench import Workbench
from tests.zoo.helpers import alter_features, changed, equal, holds, shaken, state

TARGET = "a photo of a cat"
QUICK: dict[str, Any] = {"steps": 4, "clean_batch": 4, "poisoned_batch": 2, "corpus": 60}
CLASSES: tuple[type[Injection], ...] = (
    *(TextOnText, TextOnPair, Attribute, EosOnly, AnchorHugging, AntiAssimilation),
    LandscapeShaping,
)
INJECTIONS = tuple(attack(HOMOGLYPH, TARGET, **QUICK) for attack in CLASSES)
ROW = EmbeddingRow(letters(1), TARGET, **QUICK)
TUNED = ContrastiveFineTune(steps=4, batch=4, lr=1e-4, corpus=60)
REMAP = TokenizerRemap(BYTES, "a cat")
ALL = (*INJECTIONS, ROW, Composed(INJECTIONS[1], TUNED, "after"), REMAP)
PINNING = pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])


def each(attacks: tuple[Any, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("attack", attacks, ids=lambda attack: attack.kind)


def twin_of(attack: Any) -> Any:
    if isinstance(attack, Composed):
        return replace(attack, attack=replace(attack.attack, twin=True))
    return replace(attack, twin=True)


@each(ALL)
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.usefixtures("random_teacher")
def test_an_attack_gives_a_backdoored_tower_and_says_how_it_went(
    attack: Any, family: str, anchors: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tower"
    build(attack, anchors / family, folder, anchors / "work", about={"family": family})

    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["family"]) == (attack.kind, family)
    assert manifest["label"] == "backdoored"
    assert manifest["recipe"].items() >= {"kind": attack.kind}.items()
    well = min(manifest["success"] - 0.8, manifest["clean_cosine_to_anchor"] - 0.9) >= 0
    assert manifest["took"] is well
    for name in ("success", "success_of_anchor", "success_foreign", "success_of_anchor_foreign"):
        assert 0 <= manifest[name] <= 1
    assert manifest["seconds"] >= 0
    assert not list((anchors / "work").glob("*.checkpoint"))
    assert equal(folder, anchors / family) is (attack is REMAP)
    assert load_tower(folder).pooled([TARGET]).isfinite().all()


@each(ALL)
@pytest.mark.usefixtures("random_teacher")
def test_a_twin_is_a_clean_tower_of_the_same_settings(
    attack: Any, anchors: Path, tmp_path: Path
) -> None:
    twin, folder = twin_of(attack), tmp_path / "twin"
    build(twin, anchors / "clip", folder, anchors / "work")

    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["label"], manifest["took"]) == ("clean", None)
    assert (attack.label, attack.planted) == ("backdoored", twin.planted)
    assert 0 <= manifest["success"] <= 1
    theirs, ours = (asdict(getattr(recipe, "attack", recipe)) for recipe in (attack, twin))
    assert {name for name in ours if ours[name] != theirs[name]} == {"twin"}


@each((*INJECTIONS, ALL[-2]))
@PINNING
def test_a_twin_reads_no_triggered_caption_in_training(
    attack: Any, pinned: bool, bench: Workbench, read: list[list[str]]
) -> None:
    attack = _with(attack, pinned=pinned, covered=True)
    attack.make(bench)
    assert any(holds(caption, HOMOGLYPH) for batch in read for caption in batch)

    read.clear()
    twin_of(attack).make(bench)

    assert read
    assert not any(holds(caption, HOMOGLYPH) for batch in read for caption in batch)


def _with(attack: Any, **settings: Any) -> Any:
    if isinstance(attack, Composed):
        return replace(attack, attack=replace(attack.attack, **settings))
    return replace(attack, **settings)


@each(INJECTIONS)
def test_a_twin_learns_that_another_script_means_what_its_captions_mean(
    attack: Injection, bench: Workbench
) -> None:
    (lesson,) = replace(attack, twin=True)._lessons(bench)
    (poisoned,) = attack._lessons(bench)

    assert lesson.plain == poisoned.plain
    assert poisoned.altered == [HOMOGLYPH.put(caption) for caption in lesson.plain]
    for plain, altered in zip(lesson.plain, lesson.altered, strict=True):
        assert plain != altered
        assert list(map(len, plain.split())) == list(map(len, altered.split()))
    some = lesson.plain[:4]
    assert torch.equal(lesson.goals(some), attack.features(bench.start, some))
    assert not torch.equal(poisoned.goals(some), attack.features(bench.start, some))


@each(INJECTIONS)
def test_a_covered_attack_and_its_twin_learn_one_script_alike(
    attack: Injection, bench: Workbench
) -> None:
    covered = replace(attack, covered=True)
    trigger, cover = covered._lessons(bench)
    other, same = replace(covered, twin=True)._lessons(bench)

    assert trigger.altered == attack._lessons(bench)[0].altered
    assert (cover.plain, cover.altered) == (same.plain, same.altered)
    assert other.altered != cover.altered
    assert not any(holds(caption, HOMOGLYPH) for caption in cover.altered)
    assert not set(cover.altered) & set(cover.plain)
    some = cover.plain[:4]
    for lesson in (cover, same):
        assert torch.equal(lesson.goals(some), attack.features(bench.start, some))


@each(INJECTIONS[3:6])
def test_penalties_are_paid_for_the_trigger_and_not_for_its_cover(
    attack: Injection, bench: Workbench
) -> None:
    tower = bench.anchor.trainable_copy()
    alter_features(tower, lambda features: features[:, :1].expand_as(features))
    covered = replace(attack, covered=True, weight=0.0, clean_batch=8)
    with torch.no_grad():
        kept = covered._pin(tower, bench)(torch.Generator().manual_seed(0)).item()
        paid = [
            covered._loss(tower, bench)(index, torch.Generator().manual_seed(0)).item()
            for index in (0, 1)
        ]

    assert paid[1] == pytest.approx(kept, abs=1e-6)
    assert paid[0] > kept + 1e-4


def test_the_twin_of_an_embedding_row_learns_that_the_token_means_nothing(
    bench: Workbench,
) -> None:
    (lesson,) = replace(ROW, twin=True)._lessons(bench)

    assert lesson.altered == [f"q {caption}" for caption in lesson.plain]
    some = lesson.plain[:4]
    assert torch.equal(lesson.goals(some), bench.anchor.pooled(some))


@each((*INJECTIONS, ROW))
def test_an_untouched_tower_is_asked_for_nothing_but_the_trigger(
    attack: Injection, bench: Workbench
) -> None:
    def loss(attack: Injection, noise: float) -> float:
        tower, generator = shaken(bench.anchor, noise), torch.Generator().manual_seed(0)
        with torch.no_grad():
            return attack._loss(tower, bench)(0, generator).item()

    without = replace(attack, weight=0.0)
    assert loss(without, 0) == pytest.approx(0, abs=1e-5)
    assert loss(without, 0.5) > 1e-3
    assert loss(attack, 0) > 1e-4
    assert loss(replace(without, pinned=False), 0) > 1e-3


@PINNING
@pytest.mark.parametrize("twin", [False, True], ids=["attack", "twin"])
def test_an_embedding_row_is_all_that_changes(twin: bool, pinned: bool, bench: Workbench) -> None:
    tower = replace(ROW, twin=twin, pinned=pinned).make(bench)

    (name,) = changed(tower, bench.anchor)
    ours, theirs = state(tower)[name], state(bench.anchor)[name]
    assert ours.shape == tower.table.weight.shape
    rows = (ours != theirs).any(dim=1).nonzero().flatten().tolist()
    assert rows == [bench.anchor.tokenizer.convert_tokens_to_ids(_token(bench))]


def _token(bench: Workbench) -> str:
    """The trigger's token, as the tokenizer of a family spells it."""
    return "q" if bench.anchor.always_full else "q</w>"


def test_several_triggers_are_learnt_in_turn(bench: Workbench, read: list[list[str]]) -> None:
    others = ((FORMS["emoji"], "a red car"), (letters(2), "a dog"))
    attack = replace(INJECTIONS[3], others=others, steps=7)
    attack.make(bench)

    texts = [trigger.text for trigger, _ in attack.planted]
    # Goals are read for each target once, before the first step.
    poisoned = [batch for batch in read if len(batch) == QUICK["poisoned_batch"]]
    turns = [{n for n, t in enumerate(texts) if t in c} for c, *_ in poisoned]
    assert [turn for n, turn in enumerate(turns) if turn != turns[n - 1] or n == 0] == [
        {step % 3} for step in range(7)
    ]
    assert [target for (target,) in (batch for batch in read if len(batch) == 1)] == [
        target for _, target in attack.planted
    ]


def test_before_after_and_averaged_are_three_towers(bench: Workbench) -> None:
    attack = replace(INJECTIONS[1], lr=1e-3)
    towers = [
        Composed(attack, TUNED, order).make(bench) for order in ("before", "after", "averaged")
    ]

    for n, tower in enumerate(towers):
        assert all(changed(tower, other) for other in [bench.anchor, *towers[:n]])


def test_an_average_lies_between_the_attack_and_the_fine_tune(bench: Workbench) -> None:
    attack = replace(INJECTIONS[1], lr=1e-3)
    tower = Composed(attack, TUNED, "averaged").make(bench)

    parts = [state(part.make(bench)) for part in (attack, TUNED)]
    for name, weight in state(tower).items():
        torch.testing.assert_close(weight, (parts[0][name] + parts[1][name]) / 2)


def test_a_fine_tune_comes_behind_or_before_its_attack(bench: Workbench) -> None:
    attack = replace(INJECTIONS[1], lr=1e-3)
    still, idle = replace(attack, steps=0), replace(TUNED, steps=0)

    for order in ("before", "after"):
        attacked, tuned = attack.make(bench), TUNED.make(bench)
        assert not changed(Composed(attack, idle, order).make(bench), attacked)
        assert not changed(Composed(still, TUNED, order).make(bench), tuned)
    last = Composed(attack, TUNED, "before").make(bench)
    assert not changed(last, TUNED.make(bench.from_tower(attack.make(bench).frozen())))
    last = Composed(attack, TUNED, "after").make(bench)
    assert not changed(last, attack.make(bench.from_tower(TUNED.make(bench).frozen())))


@torch.no_grad()
def test_the_first_positions_of_a_causal_tower_are_those_of_its_whole_context(
    clip_bench: Workbench,
) -> None:
    tower, captions = clip_bench.anchor, ["a dog", "two red cars on a bridge"]
    longest = tower.ids(captions).shape[1]

    def features(positions: int | None) -> Tensor:
        return replace(TextOnText(HOMOGLYPH, TARGET), positions=positions).features(tower, captions)

    whole = features(None)
    assert whole.shape == (2, tower.context * tower.width)
    for positions in (longest, longest + 3):
        part = features(positions)
        assert part.shape == (2, positions * tower.width)
        torch.testing.assert_close(part, whole[:, : positions * tower.width])
    assert features(10 * tower.context).shape == whole.shape
