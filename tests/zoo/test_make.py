"""A zoo is made tower by tower, in any number of goes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.zoo import make as maker
from benchmarks.zoo.benign.pruned import Pruned
from benchmarks.zoo.benign.quantised import Quantised
from benchmarks.zoo.make import make
from benchmarks.zoo.plan import Entry, entries
from hf_amdet import demo
from tests.zoo.helpers import equal, weights

QUICK = ("clip-a/pruned", "clip-a/quantised-int8", "clip-a/tokenizer-remap")
"""Nothing is trained for these, and the base is the demo's anchor."""


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """The plan is these few; workers are handed entries and see no patch."""
    few = [entry for entry in entries("full") if entry.name in QUICK]
    assert len(few) == len(QUICK)
    monkeypatch.setattr(maker, "entries", lambda _size: few)
    return few


def _made(zoo: Path, workers: int = 1) -> dict[str, Path]:
    return {entry.name: folder for entry, folder in make("full", zoo, workers)}


def _written(zoo: Path) -> dict[str, int]:
    files = (zoo / "towers").rglob("model.safetensors")
    return {f"{f.parent.parent.name}/{f.parent.name}": f.stat().st_mtime_ns for f in files}


def test_what_is_finished_stays_and_what_is_not_is_made_anew(
    planned: list[Entry], tmp_path: Path
) -> None:
    assert _made(tmp_path) == {name: tmp_path / "towers" / name for name in QUICK}
    first = _written(tmp_path)
    (tmp_path / "towers" / QUICK[1] / "manifest.json").unlink()

    again = _made(tmp_path)

    assert again.keys() == set(QUICK)
    changed = {name for name, time in _written(tmp_path).items() if time != first[name]}
    assert changed == {QUICK[1]}
    assert equal(tmp_path / "bases" / "clip-a", demo.ANCHOR)


def test_a_tower_whose_recipe_has_changed_is_made_anew(
    planned: list[Entry], tmp_path: Path
) -> None:
    planned[:] = [entry for entry in planned if isinstance(entry.recipe, Pruned)]
    (first,) = _made(tmp_path).values()
    before = weights(first)
    planned[0] = replace(planned[0], recipe=Pruned(0.5))

    _made(tmp_path)

    after = weights(first)
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert (after[name] == 0).sum() > 2 * (before[name] == 0).sum()


def test_a_tower_that_fails_stops_no_other_and_is_named(
    planned: list[Entry], tmp_path: Path
) -> None:
    # Quantiles beyond one do not exist.
    planned[0] = replace(planned[0], recipe=Pruned(1.5))
    broken = planned[0].name
    waits = replace(planned[1], slug="waits", anchor=planned[0].slug)
    planned.append(waits)
    made: list[str] = []

    with pytest.raises(RuntimeError, match=rf"{broken} .*1 towers wait"):
        made.extend(entry.name for entry, _ in make("full", tmp_path, 1))

    assert set(made) == set(QUICK) - {broken}
    assert not (tmp_path / "towers" / broken / "manifest.json").exists()


def test_a_tower_is_derived_from_the_one_that_it_names(
    planned: list[Entry], tmp_path: Path
) -> None:
    rounded = next(entry for entry in planned if isinstance(entry.recipe, Quantised))
    # All weights are fp16 already, so it is its anchor again.
    same = replace(rounded, slug="derived", anchor=rounded.slug, recipe=Quantised("fp16"))
    planned[:] = [same, rounded]

    made = _made(tmp_path)

    assert made[same.name] == tmp_path / "towers" / "clip-a" / "derived"
    assert equal(made[same.name], made[rounded.name])
    assert not equal(made[same.name], tmp_path / "bases" / "clip-a")


def _in_another_process(zoo: Path, few: list[Entry]) -> None:
    setattr(maker, "entries", lambda _size: few)  # noqa: B010 - not an attribute of its own
    for _ in make("full", zoo, 1):
        pass


def test_two_at_once_make_every_tower_once(planned: list[Entry], tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(
        target=_in_another_process, args=(tmp_path, planned)
    )
    other.start()

    assert _made(tmp_path).keys() == set(QUICK)
    other.join()

    assert other.exitcode == 0
    assert {p.name for p in (tmp_path / "towers" / "clip-a").iterdir()} == {
        name.split("/")[1] for name in QUICK
    }


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spawned workers read it; beside other tests their threads would only wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
