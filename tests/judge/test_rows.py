from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge.parsing import RowError
from benchmarks.judge.rows import ScoreRow, Store, TowerRow
from benchmarks.zoo.towers import digest
from tests.judge.rows import score, tower


def store(folder: Path) -> Store[ScoreRow]:
    return Store(folder / "scores.jsonl", ScoreRow)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        score(tower("clip-a/one"), 0.25, statistics={"drift": 0.5}),
        score(tower("clip-a/two"), None, verdict="inconclusive", peak_mib=None),
    ]
    store(tmp_path).append(rows)
    assert store(tmp_path).rows() == rows


def test_a_line_that_was_cut_off_is_not_read_and_the_next_row_is_whole(tmp_path: Path) -> None:
    first, second, third = (score(tower(f"clip-a/{name}")) for name in ("one", "two", "three"))
    store(tmp_path).append([first, second])
    file = tmp_path / "scores.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert store(tmp_path).rows() == [first]
    store(tmp_path).append([third])
    assert store(tmp_path).rows() == [first, third]


def test_a_file_of_nothing_but_a_cut_off_line_is_begun_anew(tmp_path: Path) -> None:
    row = score(tower())
    (tmp_path / "scores.jsonl").write_text('{"weights": "ab')
    store(tmp_path).append([row])
    assert store(tmp_path).rows() == [row]


def test_of_rows_with_one_key_the_last_counts(tmp_path: Path) -> None:
    failed, done = (score(tower(), verdict=verdict) for verdict in ("error", "flagged"))
    store(tmp_path).append([failed, score(tower("clip-a/two")), done])
    assert [row.verdict for row in store(tmp_path).rows()] == ["flagged", None]


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "other"},
        {"anchor_weights": "other"},
        {"detector": "default"},
        {"detector_hash": "later"},
        {"seed": 1},
        {"prompts": "foreign"},
        {"prompts_sha256": "other"},
        {"dtype": "bf16"},
    ],
)
def test_each_thing_that_a_judgement_depends_on_keeps_rows_apart(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = [score(tower()), score(tower(), **change)]
    store(tmp_path).append(rows)
    assert store(tmp_path).rows() == rows


def test_two_processes_lose_none_of_each_others_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    halves = [[score(tower(f"clip-a/{half}-{n}")) for n in range(200)] for half in (1, 2)]
    processes = [context.Process(target=store(tmp_path).append, args=(half,)) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = sorted(row.weights for row in store(tmp_path).rows())
    assert found == sorted(row.weights for half in halves for row in half)


@pytest.mark.parametrize("line", ["{", "[]", '{"weights": "a"}', "[" * 100_000, '{"a":' * 100_000])
def test_a_whole_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    store(tmp_path).append([score(tower())])
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RowError, match=r"scores\.jsonl, line 2,"):
        store(tmp_path).rows()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", "0.5"),
        ("score", True),
        ("score", math.nan),
        ("score", 10**400),
        ("statistics", None),
        ("statistics", {"drift": "high"}),
        ("statistics", {"drift": -math.inf}),
        ("seconds", None),
        ("seed", 0.0),
        ("weights", ["unhashable"]),
        ("prompts", "of another kind"),
        ("verdict", 1),
    ],
)
def test_a_fact_of_the_wrong_type_is_a_damaged_line(
    tmp_path: Path, name: str, value: object
) -> None:
    facts = vars(score(tower()))
    (tmp_path / "scores.jsonl").write_text(f"{json.dumps(facts)}\n")
    assert len(store(tmp_path).rows()) == 1
    (tmp_path / "scores.jsonl").write_text(f"{json.dumps(facts | {name: value})}\n")
    with pytest.raises(RowError, match=r"scores\.jsonl, line 1,"):
        store(tmp_path).rows()


def test_a_damaged_fact_is_named(tmp_path: Path) -> None:
    facts = vars(score(tower())) | {"seconds": None}
    (tmp_path / "scores.jsonl").write_text(f"{json.dumps(facts)}\n")
    with pytest.raises(RowError, match="damaged in seconds"):
        store(tmp_path).rows()


def test_equal_rows_are_equal_bytes(tmp_path: Path) -> None:
    store(tmp_path).append([score(tower(), statistics={"b": 1.0, "a": 2.0})])
    line = (tmp_path / "scores.jsonl").read_text()
    parsed = json.loads(line)
    assert line == json.dumps(parsed, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_digest_of_a_tower_is_that_of_each_file_that_makes_it(
    tmp_path: Path, name: str
) -> None:
    _folder(tmp_path)
    before = digest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert digest(tmp_path) == before
    (tmp_path / name).write_text("changed")
    assert digest(tmp_path) != before


def test_a_manifest_without_a_fact_is_refused_by_its_name(tmp_path: Path) -> None:
    _folder(tmp_path)
    facts = _facts(tmp_path)
    del facts["drift"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(RowError, match=r"manifest\.json says nothing of drift"):
        TowerRow.read(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["anchor", "anchor_sha256"])
def test_a_manifest_that_does_not_say_what_its_anchor_was_is_refused(
    tmp_path: Path, name: str
) -> None:
    _folder(tmp_path)
    facts = _facts(tmp_path)
    del facts[name]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(RowError, match=f"says nothing of {name}"):
        TowerRow.read(tmp_path, tmp_path)


def test_a_manifest_that_is_no_json_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RowError, match=r"manifest\.json is not JSON"):
        TowerRow.read(tmp_path, tmp_path)


def test_a_tower_whose_anchor_has_changed_since_is_refused(tmp_path: Path) -> None:
    anchor, folder = tmp_path / "anchor", tmp_path / "tower"
    for made in (anchor, folder):
        made.mkdir()
        _folder(made)
    facts = _facts(anchor) | {"anchor": "anchor"}
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert TowerRow.read(folder, tmp_path).anchor_weights == digest(anchor)
    (anchor / "model.safetensors").write_text("trained anew")
    with pytest.raises(RowError, match=r"anchor has changed since.*python -m benchmarks\.zoo"):
        TowerRow.read(folder, tmp_path)


def test_a_manifests_figures_are_read_and_an_honest_change_has_no_success(tmp_path: Path) -> None:
    _folder(tmp_path)
    facts = {k: v for k, v in _facts(tmp_path).items() if not k.startswith(("succ", "dri"))}
    cosines = {"clean_cosine_to_anchor": 0.75, "clean_cosine_to_anchor_foreign": 0.5}
    (tmp_path / "manifest.json").write_text(json.dumps(facts | cosines))
    read = TowerRow.read(tmp_path, tmp_path)
    assert (read.drift, read.drift_foreign) == (0.75, 0.5)
    assert (read.success, read.success_foreign) == (None, None)


@pytest.mark.parametrize("label", ["backdoored", "natural"])
def test_what_was_planted_and_did_not_take_does_not_count(label: str) -> None:
    counts = [tower(label=label, took=took).counts for took in (True, False)]
    assert counts == [True, False]
    assert tower().counts


def _facts(anchor: Path) -> dict[str, Any]:
    """The manifest of a tower that is its own anchor."""
    facts = vars(tower(anchor=".")) | {"anchor_sha256": digest(anchor)}
    return {name: fact for name, fact in facts.items() if not name.endswith("weights")}


def _folder(folder: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text(name)
