"""The whole command on a zoo of tiny towers that were made by hand."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hf_amdet
from benchmarks import evaluate
from benchmarks.judge.detectors import IN_FP32, Answer, Detector, Job, detectors
from benchmarks.judge.rows import ScoreRow, Stores, TowerRow
from benchmarks.judge.towers import prompts_file, towers_in
from benchmarks.zoo.bases import BASES
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.towers import digest
from hf_amdet.prompts import load_prompts
from tests.judge.rows import attack, tower
from tests.judge.test_baselines import TOKENS, change
from tests.towers import make_model, prompts, save

Answerer = Callable[[Path, Path, int, str | None], Answer]
BASELINES = ("weight-difference", "drift-window", "tables")
SCANNERS = {"default", "paper", IN_FP32}


@pytest.fixture(autouse=True, scope="module")
def plan() -> Iterator[None]:
    """The towers of these tests are those of the plan."""
    names = ("clean", "row", "good", "broken", "new", "weak")
    planned = [SimpleNamespace(name=f"clip-a/{name}") for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.zoo.plan.entries", lambda size: planned if size == "full" else [])
        yield


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
    facts["anchor_sha256"] = digest(zoo / of.anchor)
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


def test_only_finished_towers_of_the_given_names_are_found(zoo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    (copy / "towers" / "clip-a" / "begun").mkdir()
    shutil.copytree(copy / "towers" / "clip-a" / "row", copy / "towers" / "clip-a" / "old")
    found = towers_in(copy, {"clip-a/row", "clip-a/clean", "clip-a/begun", "clip-a/missing"})
    assert [folder.name for folder in found] == ["clean", "row"]


def test_a_tower_that_the_plan_no_longer_has_is_not_judged(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    (copy / "towers" / "clip-a" / "row").rename(copy / "towers" / "clip-a" / "old")
    assert command(copy, tmp_path) == 0
    assert "1 towers that count, 3 judgements" in capsys.readouterr().out


def test_a_tower_whose_anchor_was_made_anew_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = tmp_path / "zoo"
    save(make_model(), zoo / "bases" / "clip-a")
    place(zoo, tower("clip-a/clean"), 0.01)
    save(make_model(1), zoo / "bases" / "clip-a")
    assert command(zoo, tmp_path) == 2
    assert "anchor bases/clip-a has changed since" in capsys.readouterr().err


def test_what_could_be_made_is_judged_where_the_rest_could_not(
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make(size: str, into: Path, workers: int) -> Iterator[tuple[SimpleNamespace, Path]]:
        for name in ("clip-a/row", "clip-a/clean"):
            yield SimpleNamespace(name=name), into / "towers" / name
        raise RuntimeError("Not made: towers/clip-a/new")

    monkeypatch.setattr("benchmarks.zoo.make.make", make)
    named = ["--zoo", str(zoo), "--results", str(tmp_path), "--docs", str(tmp_path / "page.md")]
    assert evaluate.main([*named, "--detector", "weight-difference", "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert len(scores(tmp_path)) == 2
    assert said.err == "failed: Not made: towers/clip-a/new\n"
    assert "| clip | clip-a | 1 |" in (tmp_path / "page.md").read_text()


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


def planted(monkeypatch: pytest.MonkeyPatch, answer: Answerer) -> None:
    """A detector of the name "planted", which gives `answer`."""
    fake = Detector("planted", "hash", "fp32", True, True, answer)
    monkeypatch.setattr("benchmarks.judge.detectors.detectors", lambda: {"planted": fake})


def test_a_detector_sees_the_files_of_towers_and_no_labels_or_names(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def answer(folder: Path, anchor: Path, seed: int, prompts: str | None) -> Answer:
        own = zoo / "towers" / "clip-a" / "row", zoo / "bases" / "clip-a"
        for view, original in zip((folder, anchor), own, strict=True):
            assert sorted(file.name for file in view.iterdir()) == [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
            assert digest(view) == digest(original)
            assert not any(part in str(view.resolve()) for part in ("row", "zoo"))
            seen.append(view)
        return Answer(0.0, None, {})

    planted(monkeypatch, answer)
    job(zoo, "row", "planted").judge()
    assert len(seen) == 2
    assert not any(view.exists() for view in seen)


def test_figures_that_are_not_finite_are_dropped_and_the_row_can_be_written(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"good": 1.0, "nan": math.nan, "infinite": -math.inf}
    planted(monkeypatch, lambda *_: Answer(math.inf, "flagged", statistics))
    row = job(zoo, "row", "planted").judge()
    assert (row.score, row.verdict, row.statistics) == (None, "flagged", {"good": 1.0})
    Stores(tmp_path).scores.append([row])
    assert scores(tmp_path) == [row]


def test_a_judgement_is_of_the_prompts_that_were_read(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat")
    first = job(zoo, "clean", "drift-window", file)
    before = first.key
    file.write_text("a dog")
    assert first.key != before
    assert hashlib.sha256(b"a dog").hexdigest() in first.key
    assert load_prompts(None).sha256 in job(zoo, "clean", "drift-window").key
    assert load_prompts(None).sha256 not in job(zoo, "clean", "tables").key


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("pipeline/run.py", SCANNERS),
        ("report/build.py", SCANNERS),
        ("detection/verdict.py", SCANNERS),
        ("encoders/clip.py", {*SCANNERS, *BASELINES}),
        ("prompts.py", {*SCANNERS, *BASELINES}),
        ("report/plots.py", set()),
    ],
)
def test_hashes_are_of_the_code_that_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, changed: set[str]
) -> None:
    ignore = shutil.ignore_patterns("demo", "__pycache__")
    package = shutil.copytree(Path(hf_amdet.__file__).parent, tmp_path / "hf_amdet", ignore=ignore)
    before = {name: detector.hash for name, detector in detectors().items()}
    with (package / file).open("a") as source:
        source.write("CHANGED = 1\n")
    monkeypatch.setattr(hf_amdet, "__file__", str(package / "__init__.py"))
    after = {name: detector.hash for name, detector in detectors.__wrapped__().items()}
    assert {name for name in before if before[name] != after[name]} == changed


def test_comments_and_docstrings_outdate_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignore = shutil.ignore_patterns("demo", "__pycache__")
    package = shutil.copytree(Path(hf_amdet.__file__).parent, tmp_path / "hf_amdet", ignore=ignore)
    before = {name: detector.hash for name, detector in detectors().items()}
    for file in package.glob("detection/*.py"):
        source = re.sub(r'(\n +""")(?=\w)', r"\1Said otherwise. ", file.read_text(encoding="utf-8"))
        file.write_text(f"{source}\n# A remark.\n", encoding="utf-8")
    monkeypatch.setattr(hf_amdet, "__file__", str(package / "__init__.py"))
    after = {name: detector.hash for name, detector in detectors.__wrapped__().items()}
    assert before == after


def test_a_scan_is_judged_by_the_pipelines_verdict_and_figures(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(prompts(30)))
    row = job(zoo, "clean", "default", file).judge()
    assert row.verdict in ("no_evidence", "natural", "inconclusive")
    # The widest gap of all tokens; what is natural rests on another one.
    assert row.score is not None
    assert row.score >= row.statistics["consistency_gap"]
    assert row.peak_mib is not None
    assert 50 < row.peak_mib < 20_000
    assert row.seconds > 0


def test_a_tower_that_is_its_anchor_has_no_score_and_the_pipelines_verdict(
    tmp_path: Path,
) -> None:
    save(make_model(), tmp_path / "bases" / "clip-a")
    folder = place(tmp_path, tower("clip-a/same"), 0.0)
    # Other towers in its folder are none of the detector's business.
    save(make_model(1), folder / "anchor")
    row = job(tmp_path, "same", "default").judge()
    assert (row.score, row.verdict, row.statistics) == (None, "inconclusive", {})


def test_detectors_that_decide_by_other_code_have_other_hashes() -> None:
    hashes = [detector.hash for detector in detectors().values()]
    assert len(set(hashes)) == len(hashes)
    assert detectors()["default"].dtype == detectors()["paper"].dtype
