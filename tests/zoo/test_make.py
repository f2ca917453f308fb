"""The zoo is made by several processes, once, and goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.zoo import make as maker
from benchmarks.zoo.benign.pruned import Pruned
from benchmarks.zoo.build import build
from benchmarks.zoo.make import make
from benchmarks.zoo.plan import Entry, entries
from benchmarks.zoo.towers import load_tower
from benchmarks.zoo.workbench import Recipe
from hf_amdet.demo import ANCHOR
from tests.zoo.helpers import equal, weights

PRUNED, QUANTISED, REMAP = (
    next(entry for entry in entries("full") if entry.name == f"clip-a/{slug}")
    for slug in ("pruned", "quantised-int8", "tokenizer-remap")
)
ON_PRUNED = replace(QUANTISED, slug="quantised-pruned", anchor="pruned")
QUICK = [ON_PRUNED, PRUNED, QUANTISED, REMAP]
"""Nothing is trained for these, and the base is the demo's anchor."""


def plan(monkeypatch: pytest.MonkeyPatch, planned: list[Entry]) -> None:
    """What the zoo of any size holds; workers are handed entries and see no patch."""
    monkeypatch.setattr("benchmarks.zoo.make.entries", lambda _size: planned)


def times(zoo: Path) -> dict[str, int]:
    """When the weights of each tower were written."""
    found = (zoo / "towers").rglob("model.safetensors")
    return {str(f.parent.relative_to(zoo / "towers")): f.stat().st_mtime_ns for f in found}


def made(zoo: Path) -> dict[str, int]:
    """Make what is missing; when the weights of each tower were written as it was handed out."""
    return {
        entry.name: (folder / "model.safetensors").stat().st_mtime_ns
        for entry, folder in make("small", zoo, workers=1)
    }


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Spawned workers read it; beside other tests their threads would only wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@dataclass(frozen=True)
class Shared:
    """A zoo that two commands made at once.

    Attributes:
        meanwhile: what was handed out while the other command was at `PRUNED`.
        apart: whether `PRUNED` was left to the other command so long.
        finished: when the other command wrote its weights.
        later: what was handed out then, as `made` gives it.
    """

    zoo: Path
    meanwhile: set[str]
    apart: bool
    finished: int
    later: dict[str, int]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    zoo = tmp_path_factory.mktemp("zoo")
    folder = zoo / "towers" / PRUNED.name
    with pytest.MonkeyPatch.context() as patch:
        plan(patch, QUICK)
        making = make("small", zoo, workers=2)
        with maker._sole(zoo, folder):
            # The first worker takes it up before the other one makes these two.
            meanwhile = {entry.name for entry, _ in islice(making, 2)}
            apart = not folder.exists()
            build(PRUNED.recipe, ANCHOR, folder, zoo / "work", about=maker._facts(PRUNED))
            finished = times(zoo)[PRUNED.name]
        later = {entry.name: times(zoo)[entry.name] for entry, _ in making}
    return Shared(zoo, meanwhile, apart, finished, later)


def test_every_tower_is_made_with_what_the_plan_says_of_it(shared: Shared) -> None:
    zoo = shared.zoo

    assert equal(zoo / "bases" / "clip-a", ANCHOR)
    assert times(zoo).keys() == {entry.name for entry in QUICK}
    for entry in QUICK:
        folder = zoo / "towers" / entry.name
        manifest = json.loads((folder / "manifest.json").read_text())
        facts = ("name", "kind", "base", "run", "twin_of", "pinned")
        assert {fact: manifest[fact] for fact in facts} == {f: getattr(entry, f) for f in facts}
        assert (manifest["family"], manifest["label"]) == ("clip", entry.recipe.label)
        assert load_tower(folder).pooled(["a dog"]).isfinite().all()


def test_a_tower_is_derived_from_the_anchor_that_the_plan_names(shared: Shared) -> None:
    zoo = shared.zoo

    pruned, rounded = (zoo / "towers" / entry.name for entry in (PRUNED, ON_PRUNED))
    assert json.loads((rounded / "manifest.json").read_text())["anchor"] == "towers/clip-a/pruned"
    for name, weight in weights(pruned).items():
        # Integers keep zeros as they are; only the pruned tower has so many.
        assert (weights(rounded)[name][weight == 0] == 0).all()
    assert not equal(pruned, rounded)
    assert not equal(zoo / "towers" / QUANTISED.name, rounded)


def test_what_another_command_is_making_is_waited_for_and_left_as_it_is(shared: Shared) -> None:
    assert shared.meanwhile == {QUANTISED.name, REMAP.name}
    assert shared.apart
    assert shared.later.keys() == {PRUNED.name, ON_PRUNED.name}
    assert shared.later[PRUNED.name] == times(shared.zoo)[PRUNED.name] == shared.finished


def test_what_is_unfinished_or_has_a_new_recipe_or_anchor_is_made_and_nothing_else(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = shared.zoo
    before = times(zoo)
    (zoo / "towers" / QUANTISED.name / "manifest.json").unlink()
    stronger: Recipe = Pruned(0.5)
    plan(monkeypatch, [replace(PRUNED, recipe=stronger), QUANTISED, REMAP, ON_PRUNED])

    handed = made(zoo)

    assert handed.keys() == {entry.name for entry in QUICK}
    assert handed == times(zoo)
    new = {name for name, time in handed.items() if time != before[name]}
    assert new == {PRUNED.name, QUANTISED.name, ON_PRUNED.name}
    manifest = json.loads((zoo / "towers" / PRUNED.name / "manifest.json").read_text())
    assert manifest["recipe"]["share"] == 0.5
    assert (zoo / "towers" / QUANTISED.name / "manifest.json").exists()


def test_a_recipe_that_fails_is_named_when_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible: Recipe = Pruned(2.0)
    plan(monkeypatch, [replace(PRUNED, recipe=impossible), QUANTISED, ON_PRUNED])

    with pytest.raises(RuntimeError, match="towers/clip-a/pruned ") as failure:
        made(tmp_path)

    assert "1 towers wait" in str(failure.value)
    assert times(tmp_path).keys() == {QUANTISED.name}
    assert not list((tmp_path / "towers").rglob("pruned/manifest.json"))
