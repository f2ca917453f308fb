from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.judge.decisions import ENTRIES, Entry
from benchmarks.judge.parsing import RowError
from benchmarks.judge.rows import TowerRow
from benchmarks.judge.splits import Split, Splits
from tests.judge.rows import attack, board, tower

TABLES = next(entry for entry in ENTRIES if entry.name == "tables")


def one_of_each() -> list[TowerRow]:
    """Development and held out, by base and by kind, in two families; attacks, twins and benign."""
    towers = []
    for base in ("clip-a", "clip-b", "siglip-a", "siglip-b"):
        for kind in ("text-on-text", "eos-only"):
            run = f"{base}/{kind}"
            towers.append(attack(run, kind))
            towers.append(tower(f"{run}-twin", kind="twin", twin_of=kind, run=run))
        towers += [tower(f"{base}/{kind}", kind=kind) for kind in ("contrastive", "lora")]
    return towers


def splits() -> dict[str, Split]:
    return {split.name: split for split in Splits().all(one_of_each())}


def test_no_tower_is_in_two_splits_and_each_is_in_one() -> None:
    of_both = [split for split in splits().values() if split.left_out is None]
    judged = [tower.name for split in of_both for tower in split.judged]
    assert sorted(judged) == sorted(tower.name for tower in one_of_each())


@pytest.mark.parametrize(
    ("name", "bases", "kinds"),
    [
        ("development", {"clip-a", "siglip-a"}, {"text-on-text", "contrastive"}),
        ("held-out attacks", {"clip-a", "siglip-a"}, {"eos-only", "lora"}),
        ("held-out bases", {"clip-b", "siglip-b"}, {"text-on-text", "contrastive"}),
        ("both held out", {"clip-b", "siglip-b"}, {"eos-only", "lora"}),
    ],
)
def test_a_split_is_of_its_bases_and_kinds_and_twins_are_with_their_attacks(
    name: str, bases: set[str], kinds: set[str]
) -> None:
    judged = splits()[name].judged
    assert {tower.base for tower in judged} == bases
    assert {tower.sort for tower in judged} == kinds
    assert sum(tower.twin_of is not None for tower in judged) == 2


def test_nothing_is_fitted_on_anything_held_out() -> None:
    for split in splits().values():
        assert {tower.base for tower in split.fitted} <= {"clip-a", "siglip-a"}
        assert {tower.sort for tower in split.fitted} <= {"text-on-text", "contrastive"}


def test_a_family_that_is_left_out_is_judged_whole_and_fitted_on_the_others() -> None:
    split = splits()["clip left out"]
    assert {tower.base for tower in split.judged} == {"clip-a", "clip-b"}
    assert len(split.judged) == 12
    assert {tower.base for tower in split.fitted} == {"siglip-a"}


@pytest.mark.parametrize(
    ("unknown", "what"),
    [(tower("clip-z/one"), "base 'clip-z'"), (tower("clip-a/one", kind="new"), "kind 'new'")],
)
def test_a_base_or_kind_that_is_in_no_split_is_named(unknown: TowerRow, what: str) -> None:
    with pytest.raises(RowError, match=rf"splits\.toml does not name the {what}"):
        Splits().of(unknown)


def test_a_name_that_is_missing_from_a_file_is_blamed_on_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    empty = "development = []\nheld-out = []\n"
    file.write_text(f"[bases]\n{empty}[attacks]\n{empty}[benign]\n{empty}")
    with pytest.raises(RowError, match=r"mine\.toml does not name the base"):
        Splits(file).of(tower())


@pytest.mark.parametrize("entry", [TABLES])
def test_held_out_towers_do_not_move_a_threshold(entry: Entry) -> None:
    towers = [
        attack("clip-a/attack"),
        tower("clip-a/clean"),
        attack("clip-b/attack", "eos-only"),
        tower("clip-b/clean", kind="lora"),
    ]
    # Fitted on all of them, the threshold would be 2 and the last attack would be flagged.
    scores: dict[str, float | None] = {
        "clip-a/attack": 5.0,
        "clip-a/clean": 1.0,
        "clip-b/attack": 2.0,
        "clip-b/clean": 0.0,
    }
    results = board(scores, *towers)
    for split in results.splits.all(towers):
        if split.left_out is None and split.judged:
            flagged = [o.tower for o in results.outcomes(entry, split) if o.flagged]
            assert flagged == (["clip-a/attack"] if split.name == "development" else [])
