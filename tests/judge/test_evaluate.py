"""The whole command on a zoo of tiny towers that were made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evaluate
from benchmarks.judge.detectors import Job, detectors
from benchmarks.judge.rows import ScoreRow, Stores, TowerRow
from benchmarks.judge.towers import prompts_file, towers_in
from benchmarks.zoo.bases import BASES
from benchmarks.zoo.grammars import GRAMMARS
from hf_amdet.prompts import load_prompts
from tests.judge.rows import attack, tower
from tests.judge.test_baselines import TOKENS, change
from tests.towers import make_model, prompts, save

BASELINES = ("weight-difference", "drift-window", "tables")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean tower and one with a changed embedding row."""
    folder = tmp_path_factory.mktemp("zoo")
    save(make_model(), folder / "bases" / "clip-a")
    row = attack("clip-a/row")
    for made in (tower("clip-a/clean"), row):
        place(folder, made, drift=0.0 if made is row else 0.01)
    change(folder / "towers" / row.name, TOKENS, 300, 1.0)
    return folder


def place(zoo: Path, of: TowerRow, drift: float) -> Path:
    folder = save(make_model(drift=drift), zoo / "towers" / of.name)
    facts = asdict(of)
    del facts["weights"], facts["anchor_weights"]
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def command(zoo: Path, out: Path, *more: str) -> int:
    named = ["--zoo", str(zoo), "--results", str(out), "--docs", str(out / "page.md")]
    baselines = [part for name in BASELINES for part in ("--detector", name)]
    return evaluate.main([*named, *baselines, "--no-make", "--workers", "1", *more])


@pytest.fixture(scope="module")
def judged(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the results of the zoo are."""
    out = tmp_path_factory.mktemp("results")
    assert command(zoo, out) == 0
    return out


def scores(out: Path) -> list[ScoreRow]:
    return Stores(out).scores.rows()


def test_each_tower_is_judged_by_each_detector_and_the_changed_row_is_found(judged: Path) -> None:
    names = {row.weights: row.name for row in Stores(judged).towers.rows()}
    found = {(names[row.weights], row.detector): row.score for row in scores(judged)}
    assert found.keys() == {
        (name, detector) for name in ("clip-a/clean", "clip-a/row") for detector in BASELINES
    }
    changed, clean = found["clip-a/row", "tables"], found["clip-a/clean", "tables"]
    assert changed is not None
    assert clean is not None
    assert changed > clean + 1


def test_the_page_is_written_from_the_lines(judged: Path) -> None:
    page = (judged / "page.md").read_text()
    assert "| clip | clip-a | 1 | 0 | 0 | 1 | 0 | 2 |" in page
    assert (judged / "images" / "zoo-roc-splits.svg").exists()


def test_what_has_a_line_is_not_judged_again(
    zoo: Path, judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (judged / "scores.jsonl").read_bytes(), (judged / "towers.jsonl").read_bytes()
    assert command(zoo, judged, "--seeds", "3") == 0
    assert "0 judgements to make" in capsys.readouterr().out
    after = (judged / "scores.jsonl").read_bytes(), (judged / "towers.jsonl").read_bytes()
    assert after == before


def test_a_report_needs_no_towers(judged: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, tmp_path / "copy")
    page = tmp_path / "copy" / "page.md"
    page.unlink()
    assert command(tmp_path / "no zoo", tmp_path / "copy", "--report-only") == 0
    assert page.read_text() == (judged / "page.md").read_text()


def test_a_tower_that_cannot_be_judged_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, out = tmp_path / "zoo", tmp_path / "results"
    save(make_model(), zoo / "bases" / "clip-a")
    place(zoo, tower("clip-a/good"), 0.01)
    broken = place(zoo, tower("clip-a/broken"), 0.02)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert command(zoo, out) == 1
    said = capsys.readouterr()
    assert said.err.count("failed: clip-a/broken") == 3
    assert "clip-a/good tables" in said.out
    failed = [row for row in scores(out) if row.verdict == "error"]
    assert len(failed) == 3
    assert all(row.score is None for row in failed)
    assert command(zoo, out) == 1
    assert "3 judgements to make" in capsys.readouterr().out
    (broken / "model.safetensors").write_bytes(whole)
    assert command(zoo, out) == 0


def test_a_kind_that_no_split_names_is_refused_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = tmp_path / "zoo"
    save(make_model(), zoo / "bases" / "clip-a")
    place(zoo, tower("clip-a/new", kind="new"), 0.01)
    assert command(zoo, tmp_path) == 2
    assert "'new' of tower clip-a/new" in capsys.readouterr().err
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_backdoor_that_did_not_take_is_listed_and_not_judged(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    save(make_model(), zoo / "bases" / "clip-a")
    place(zoo, attack("clip-a/weak", "weak-dose", took=False), 0.01)
    assert command(zoo, tmp_path) == 0
    assert scores(tmp_path) == []
    assert [row.name for row in Stores(tmp_path).towers.rows()] == ["clip-a/weak"]


def test_towers_are_told_from_bases_and_planted_anchors(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    for folder in ("bases/clip-a", "towers/clip-a/clean/anchor"):
        (copy / folder).mkdir(exist_ok=True)
        (copy / folder / "manifest.json").write_text('{"recipe": {}}')
    names = [folder.name for folder in towers_in(copy)]
    assert names == ["clean", "row"]


@pytest.mark.parametrize("base", ["clip-a", "clip-b"])
def test_foreign_prompts_are_of_the_other_grammar_and_always_the_same(
    tmp_path: Path, base: str
) -> None:
    own = GRAMMARS[BASES[base].grammar]
    first, second = (prompts_file(tmp_path / n, base).read_bytes() for n in ("a", "b"))
    assert first == second
    read = load_prompts(str(prompts_file(tmp_path / "a", base))).prompts
    assert len(read) == 1_000
    assert not set(read) & set(own.captions(2_000, 0))


def job(zoo: Path, name: str, detector: str, file: Path | None = None) -> Job:
    folder = zoo / "towers" / "clip-a" / name
    row = TowerRow.read(folder, zoo)
    return Job(row, folder, zoo / row.anchor, detector, 0, "embedded", file)


def test_a_judgement_depends_on_seed_and_prompts_only_where_the_detector_looks_at_them(
    zoo: Path,
) -> None:
    def keys(detector: str, **changes: Any) -> int:
        one = job(zoo, "clean", detector)
        return len({one.key, replace(one, **changes).key})

    assert [keys(name, seed=1) for name in ("default", "paper", *BASELINES)] == [2, 2, 1, 1, 1]
    foreign = [keys(name, prompts="foreign") for name in ("default", "paper", *BASELINES)]
    assert foreign == [2, 2, 1, 2, 1]


def test_a_scan_is_judged_by_the_pipelines_verdict_and_figures(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts(30)))
    row = job(zoo, "clean", "default", file).judge()
    assert row.verdict in ("no_evidence", "natural", "inconclusive")
    assert row.score == row.statistics["consistency_gap"]
    assert row.peak_mib is not None
    assert 50 < row.peak_mib < 20_000
    assert row.seconds > 0


def test_a_tower_that_is_its_anchor_has_no_score_and_the_pipelines_verdict(
    tmp_path: Path,
) -> None:
    save(make_model(), tmp_path / "bases" / "clip-a")
    folder = place(tmp_path, tower("clip-a/same"), 0.0)
    # A tower may hold its own anchor, which is not the one to be judged.
    save(make_model(1), folder / "anchor")
    row = job(tmp_path, "same", "default").judge()
    assert (row.score, row.verdict, row.statistics) == (None, "inconclusive", {})


def test_detectors_that_decide_by_other_code_have_other_hashes() -> None:
    hashes = [detector.hash for detector in detectors().values()]
    assert len(set(hashes)) == len(hashes)
    assert detectors()["default"].dtype == detectors()["paper"].dtype
