from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge.rows import RowError, ScoreRow, Store, TowerRow, digest
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


@pytest.mark.parametrize("line", ["{", "[]", '{"weights": "a"}'])
def test_a_whole_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    store(tmp_path).append([score(tower())])
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RowError, match=r"scores\.jsonl, line 2,"):
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
    facts = {k: v for k, v in vars(tower(anchor=".")).items() if k not in ("drift", "weights")}
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(RowError, match=r"manifest\.json says nothing of drift"):
        TowerRow.read(tmp_path, tmp_path)


def test_a_manifests_figures_are_read_and_an_honest_change_has_no_success(tmp_path: Path) -> None:
    _folder(tmp_path)
    facts = {k: v for k, v in vars(tower(anchor=".")).items() if not k.startswith(("succ", "dri"))}
    cosines = {"clean_cosine_to_anchor": 0.75, "clean_cosine_to_anchor_foreign": 0.5}
    (tmp_path / "manifest.json").write_text(json.dumps(facts | cosines))
    read = TowerRow.read(tmp_path, tmp_path)
    assert (read.drift, read.drift_foreign) == (0.75, 0.5)
    assert (read.success, read.success_foreign) == (None, None)


def test_a_backdoor_that_did_not_take_does_not_count() -> None:
    facts = {"label": "backdoored", "kind": "text-on-text"}
    counts = [tower(**facts, took=took).counts for took in (True, False)]
    assert counts == [True, False]
    assert tower().counts


def _folder(folder: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text(name)
