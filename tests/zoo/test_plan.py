"""The plan of the zoo keeps what was promised of it."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks.zoo.anchor import AnchorRecipe
from benchmarks.zoo.attacks.composed import Composed
from benchmarks.zoo.attacks.injection import Injection
from benchmarks.zoo.attacks.tokenizer_remap import TokenizerRemap
from benchmarks.zoo.bases import BASES
from benchmarks.zoo.benign.quantised import Quantised
from benchmarks.zoo.grammars import GRAMMARS, Grammar, foreign_to
from benchmarks.zoo.longclip import LongClipRecipe
from benchmarks.zoo.make import anchor_of
from benchmarks.zoo.natural import NaturalFeature
from benchmarks.zoo.plan import Entry, entries
from benchmarks.zoo.towers import Tower, load_tower
from hf_amdet.demo import ANCHOR
from hf_amdet.prompts import embedded_prompts
from tests.zoo.helpers import LISTINGS, SCENES, holds

FULL, SMALL = entries("full"), entries("small")
ATTACKS = [entry for entry in FULL if entry.recipe.label == "backdoored"]
TWINS = [entry for entry in FULL if entry.twin_of]


def test_every_tower_has_a_name_of_its_own() -> None:
    assert len({entry.name for entry in FULL}) == len(FULL)


def test_the_small_zoo_is_a_part_of_the_full_one() -> None:
    assert len(SMALL) == 30
    assert all(entry in FULL for entry in SMALL)
    labels = Counter(entry.recipe.label for entry in SMALL)
    assert labels["backdoored"] >= 10
    assert labels["clean"] - sum(entry.twin_of is not None for entry in SMALL) >= 5
    assert labels["natural"] == 1
    assert len({entry.base for entry in SMALL}) > 1


def test_the_full_zoo_is_as_large_as_promised() -> None:
    labels = Counter(entry.recipe.label for entry in FULL)

    assert labels["backdoored"] >= 100
    assert labels["clean"] >= 200
    assert labels["natural"] >= 2 * len({base.family for base in BASES.values()})


@pytest.mark.parametrize("planned", [FULL, SMALL], ids=["full", "small"])
def test_every_attack_has_one_clean_twin_of_the_same_settings(planned: list[Entry]) -> None:
    attacks = [entry for entry in planned if entry.recipe.label == "backdoored"]
    twins = [entry for entry in planned if entry.twin_of]
    assert len(twins) == len(attacks)
    for attack in attacks:
        (twin,) = (entry for entry in twins if entry.name == f"{attack.name}-twin")
        assert (twin.kind, twin.twin_of, twin.recipe.label) == ("twin", attack.kind, "clean")
        assert (twin.run, twin.base, twin.pinned) == (attack.run, attack.base, attack.pinned)
        recipe: Any = attack.recipe
        if isinstance(recipe, Composed):
            assert twin.recipe == replace(recipe, attack=replace(recipe.attack, twin=True))
        else:
            assert twin.recipe == replace(recipe, twin=True)


def test_no_lesson_of_a_twin_holds_its_trigger() -> None:
    for entry in TWINS:
        recipe: Any = getattr(entry.recipe, "attack", entry.recipe)
        if isinstance(recipe, TokenizerRemap) or entry.twin_of == "embedding-row":
            continue
        drawn = GRAMMARS[BASES[entry.base].grammar].captions(300, 3)
        for trigger, _ in recipe.planted:
            plain, triggered = trigger.captions(drawn, 200)
            assert all(holds(caption, trigger) for caption in triggered)
            harmless = recipe.harmless(plain, triggered)
            assert not any(holds(caption, trigger) for caption in plain + harmless), entry.name
            assert all(ours != theirs for ours, theirs in zip(plain, harmless, strict=True))


def test_every_injection_is_planted_on_clip_pinned_and_unpinned() -> None:
    pinning = defaultdict(set)
    # Nothing else changes in a tower of an embedding row that clean captions do not hold.
    kinds = {entry.kind for entry in ATTACKS} - {"tokenizer-remap", "embedding-row"}
    for entry in ATTACKS:
        if BASES[entry.base].family == "clip" and entry.kind in kinds:
            pinning[entry.kind].add(entry.pinned)
    assert len(kinds) == 12
    assert pinning == {kind: {True, False} for kind in kinds}


def test_every_attack_class_is_planted_in_every_family() -> None:
    kinds = defaultdict(set)
    for entry in ATTACKS:
        kinds[BASES[entry.base].family].add(entry.kind)
    injections = {entry.recipe.kind for entry in ATTACKS}
    for family in kinds.values():
        assert injections <= family


def test_triggers_are_of_one_to_fifteen_tokens() -> None:
    tower, lengths = load_tower(ANCHOR), set()
    for entry in ATTACKS:
        if entry.kind == "trigger-length":
            recipe = entry.recipe
            assert isinstance(recipe, Injection)
            lengths.add(len(tower.pieces(recipe.trigger.text)))
            assert f"trigger-length-{len(recipe.trigger.text.split())}" == entry.slug
    assert lengths == set(range(1, 16))


def test_bases_of_a_family_share_neither_seed_nor_size_nor_all_of_their_grammar() -> None:
    families = defaultdict(list)
    for base in BASES.values():
        families[base.family].append(_clip_part(base.recipe))
    assert families.keys() == {"clip", "longclip", "siglip"}
    for recipes in families.values():
        assert len(recipes) >= 2
        assert len({recipe.seed for recipe in recipes}) == len(recipes)
        assert len({recipe.width for recipe in recipes}) == len(recipes)
        assert {recipe.grammar for recipe in recipes} == {"scenes", "listings"}


def test_no_two_bases_share_a_seed() -> None:
    seeds = [_clip_part(base.recipe).seed for base in BASES.values()]
    assert len(set(seeds)) == len(seeds)


def _clip_part(recipe: AnchorRecipe | LongClipRecipe) -> AnchorRecipe:
    return recipe.base if isinstance(recipe, LongClipRecipe) else recipe


@cache
def _blank(base: str) -> Tower:
    recipe = _clip_part(BASES[base].recipe)
    # Of fewer captions than are learnt from; the vocabulary is hardly smaller.
    return recipe.blank(GRAMMARS[recipe.grammar].captions(6_000, recipe.seed))


def test_bases_are_small_and_one_of_clip_is_larger() -> None:
    sizes = {base: sum(w.numel() for w in _blank(base).model.parameters()) for base in BASES}

    (large,) = (base for base, size in sizes.items() if size > 10e6)
    assert BASES[large].family == "clip"
    assert all(1e6 <= size <= 3e6 for base, size in sizes.items() if base != large), sizes


@pytest.mark.parametrize("base", BASES)
def test_tokenizers_see_every_trigger_that_is_planted(base: str) -> None:
    tower, grammar = _blank(base), GRAMMARS[BASES[base].grammar]
    planted = {
        each[0]
        for entry in ATTACKS
        if entry.base == base and isinstance(entry.recipe, Injection | Composed | TokenizerRemap)
        for each in entry.recipe.planted
    }
    for trigger in planted:
        plain, triggered = trigger.captions(grammar.captions(120, 3), 40)
        read = (tower.tokenizer(captions).input_ids for captions in (plain, triggered))
        assert all(ours != theirs for ours, theirs in zip(*read, strict=True)), trigger
    (remap,) = (e.recipe for e in ATTACKS if e.base == base and e.kind == "tokenizer-remap")
    assert isinstance(remap, TokenizerRemap)
    pieces = {piece for piece, _ in tower.pieces(remap.trigger.text)}
    assert len(tower.pieces(remap.target)) <= len(pieces)


def test_the_split_names_every_base_and_kind_of_the_plan_once() -> None:
    file = Path(benchmarks.__file__).parent / "judge" / "splits.toml"
    splits = tomllib.loads(file.read_text(encoding="utf-8"))
    named = {table: sorted(chain(*parts.values())) for table, parts in splits.items()}

    kinds = {
        "attacks": {entry.kind for entry in ATTACKS},
        "benign": {e.kind for e in FULL if e.recipe.label != "backdoored" and not e.twin_of},
    }
    assert named == {
        "bases": sorted(BASES),
        "attacks": sorted(kinds["attacks"]),
        "benign": sorted(kinds["benign"]),
    }
    assert {twin.twin_of for twin in TWINS} <= kinds["attacks"]


def test_a_natural_feature_is_that_of_a_planned_anchor() -> None:
    planned = {f"towers/{entry.name}": entry for entry in FULL}
    naturals = [entry for entry in FULL if entry.kind == "natural"]
    for entry in naturals:
        assert isinstance(entry.recipe, NaturalFeature)
        anchor = planned[anchor_of(entry)]
        assert entry.recipe.planted == anchor.recipe.planted  # type: ignore[attr-defined]
        assert (anchor.recipe.label, anchor.base, anchor.run) == (
            *("backdoored", entry.base),
            entry.run,
        )
        assert FULL.index(anchor) < FULL.index(entry)
    assert {anchor_of(e) for e in SMALL if e.anchor} <= {f"towers/{e.name}" for e in SMALL}
    assert all(anchor_of(entry) == f"bases/{entry.base}" for entry in FULL if not entry.anchor)


def test_every_run_has_a_seed_of_its_own() -> None:
    runs = defaultdict(set)
    for entry in FULL:
        draws_nothing = isinstance(entry.recipe, Quantised) and entry.recipe.after is None
        if not draws_nothing:
            # Corpora are drawn with seeds just above a run's own.
            runs[entry.recipe.seed // 10].add(entry.name if entry.anchor else entry.run)
    assert {seed: shared for seed, shared in runs.items() if len(shared) > 1} == {}
    assert max(runs) * 10 + 10 < 990_000, "held-out captions have seeds of their own"


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=lambda grammar: grammar.name)
def test_a_grammar_gives_distinct_captions_and_the_same_again(grammar: Grammar) -> None:
    captions = grammar.captions(3_000, 5)

    assert len(set(captions)) == len(captions) == 3_000
    assert grammar.captions(3_000, 5) == captions
    assert grammar.captions(3_000, 6) != captions
    assert foreign_to(grammar.name) is not grammar
    for domain in grammar.domains:
        of_domain = grammar.captions(200, 5, (domain,))
        assert len(set(of_domain)) == 200
        assert of_domain != captions[:200]


def test_no_caption_is_of_two_sources() -> None:
    scenes, listings = (set(grammar.captions(30_000, 5)) for grammar in (SCENES, LISTINGS))

    assert not scenes & listings
    prompts = {prompt.lower() for prompt in embedded_prompts()}
    assert len(prompts) > 3_000
    assert not prompts & {caption.lower() for caption in scenes | listings}
