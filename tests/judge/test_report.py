from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.judge import tables, twins
from benchmarks.judge.board import Board
from benchmarks.judge.detectors import IN_FP32
from benchmarks.judge.markdown import BEGIN, END, MarkerError, splice
from benchmarks.judge.metrics import Outcome
from benchmarks.judge.parsing import RowError
from benchmarks.judge.plots import roc
from benchmarks.judge.report import write
from benchmarks.judge.rows import ScoreRow, Stores, TowerRow
from benchmarks.judge.splits import Splits
from tests.judge.rows import attack, outcome, score, tower

HASHES = {"default": "now", IN_FP32: "now", "tables": "now", "drift-window": "now"}


def zoo() -> list[TowerRow]:
    """Attacks with twins on a development and on a held-out base, and benign ones."""
    towers = []
    for base in ("clip-a", "clip-b"):
        for kind in ("text-on-text", "eos-only"):
            run = f"{base}/{kind}"
            towers.append(attack(run, kind))
            towers.append(tower(f"{run}-twin", kind="twin", twin_of=kind, run=run))
        towers += [tower(f"{base}/{kind}", kind=kind) for kind in ("contrastive", "lora")]
        towers.append(attack(f"{base}/weak", "weak-dose", took=False, success=0.1))
    return towers


def answers(of: TowerRow, **changes: Any) -> list[ScoreRow]:
    """A perfect `default`, `tables` that cannot tell, a window that sees attacks and no twins."""
    known = {"prompts": "embedded"} | changes
    verdict = "flagged" if of.positive else "no_evidence"
    drift = 0.99 if of.positive else 0.95 if of.twin_of else 0.98
    inside = "flagged" if drift > 0.975 else "no_evidence"
    window = {"verdict": inside, "statistics": {"drift": drift}}
    return [
        score(of, float(of.positive), detector="default", verdict=verdict, **known),
        score(of, 1.0, **known),
        score(of, drift, detector="drift-window", **window | known),
    ]


def stored(folder: Path, *rows: ScoreRow) -> Stores:
    stores = Stores(folder)
    stores.towers.append(zoo())
    stores.scores.append(row for of in zoo() for row in answers(of))
    stores.scores.append(rows)
    return stores


def read(stores: Stores) -> Board:
    """As if the plan had all that is stored."""
    return Board.read(stores, HASHES, Splits(), {of.name for of in stores.towers.rows()})


def cells(text: str, start: str) -> list[list[str]]:
    """The rows of a table that begin with `start`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if line[0].strip() == start]


def test_the_report_of_the_same_rows_is_the_same_bytes_and_leaves_the_page_alone(
    tmp_path: Path,
) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    before, after = "# Ours\r\n\n", "\nbehind, without an end"
    page.write_bytes(f"{before}{BEGIN}\nwhat stood here\n{END}{after}".encode())
    board = read(stored(tmp_path))
    found = []
    for _ in range(2):
        write(board, page, page.parent / "images")
        images = sorted((page.parent / "images").iterdir())
        found.append([page.read_bytes(), *(image.read_bytes() for image in images)])
    assert found[0] == found[1]
    assert len(found[0]) == 3
    assert found[0][0].startswith(before.encode() + BEGIN.encode())
    assert found[0][0].endswith(END.encode() + after.encode())
    assert b"what stood here" not in found[0][0]


def test_every_image_of_the_page_is_there(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    write(read(stored(tmp_path)), page, tmp_path / "images")
    for image in (tmp_path / "images").iterdir():
        assert f"(images/{image.name})" in page.read_text()


def test_a_section_without_markers_comes_to_the_end_and_stays_there() -> None:
    once = splice("text", "section\n")
    assert once == f"text\n\n{BEGIN}\nsection\n{END}\n"
    assert splice(once, "section\n") == once


@pytest.mark.parametrize(
    "page", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", f"{BEGIN}{BEGIN}{END}"]
)
def test_markers_that_enclose_no_one_section_are_refused(page: str) -> None:
    with pytest.raises(MarkerError, match="zoo:begin"):
        splice(page, "section\n")


def test_the_main_table_says_what_each_detector_got_right(tmp_path: Path) -> None:
    text = tables.by_split(read(stored(tmp_path)))
    (both,) = cells(text, "both held out")
    detector, positives, negatives, unscored, unanswered = both[1:6]
    precision, recall, f1, area, alarms = both[6:11]
    assert (detector, positives, negatives, unscored) == ("default", "1", "2", "0")
    assert unanswered == "0/3"
    assert (precision, recall.split()[0], alarms.split()[0]) == ("1.00", "1/1", "0/2")
    assert (f1.split()[0], area) == ("1.00", "1.00 [1.00, 1.00]")
    # A threshold on a score that is the same for all flags all.
    blind = [row for row in cells(text, "") if row[1] == "tables"]
    assert all(row[7].split()[0] == f"{row[2]}/{row[2]}" for row in blind)
    assert all(row[10].split()[0] == f"{row[3]}/{row[3]}" for row in blind)
    assert all(row[5] == "-" for row in blind)


def test_a_scanner_that_gives_no_answer_is_seen_to(tmp_path: Path) -> None:
    silent = [
        score(of, None, detector="default", verdict="inconclusive") for of in zoo() if of.positive
    ]
    text = tables.by_split(read(stored(tmp_path, *silent)))
    (both,) = cells(text, "both held out")
    assert both[4:6] == ["1", "1/3"]
    # Behind the two clean ones.
    assert both[9].split()[0] == "0.00"


def test_lines_with_failed_judgements_are_starred_and_counted_below(tmp_path: Path) -> None:
    assert "\\*" not in tables.by_split(read(stored(tmp_path)))
    (of,) = (of for of in zoo() if of.name == "clip-b/lora")
    failed = score(of, None, detector="default", verdict="error")
    board = read(stored(tmp_path / "more", failed))
    text = tables.by_split(board)
    (both,) = cells(text, "both held out")
    assert both[1] == "default\\*"
    (development,) = cells(text, "development")
    assert development[1] == "default"
    note = "both held out / default: 1; both held out / default, calibrated threshold: 1;"
    assert note in " ".join(text.split())
    by_kind = tables.by_kind(board)
    (kind,) = cells(by_kind, "lora (held out)")
    assert kind[2].endswith("\\*")
    assert not kind[-1].endswith("\\*")
    assert "lora (held out) / default: 1" in by_kind


def test_a_backdoor_that_did_not_take_is_only_in_the_table_of_recipes(tmp_path: Path) -> None:
    board = read(stored(tmp_path))
    write(board, tmp_path / "page.md", tmp_path)
    (weak,) = cells((tmp_path / "page.md").read_text(), "weak-dose")
    assert weak[3] == "0/2"
    assert "weak-dose" not in tables.by_kind(board)


def test_rows_of_other_detectors_than_the_present_are_counted_and_not_used(
    tmp_path: Path,
) -> None:
    old = [score(of, 0.0, detector="default", detector_hash="old") for of in zoo()]
    board = read(stored(tmp_path, *old))
    assert board.outdated == len(old)
    (development, *_) = cells(tables.by_split(board), "development")
    assert development[7].startswith("1/1")


def test_a_detector_that_judged_fewer_towers_is_compared_on_those(tmp_path: Path) -> None:
    assert tables.head_to_head(read(stored(tmp_path))) is None
    few = [of for of in zoo() if of.base == "clip-a"]
    rows = [score(of, 1.0, detector="weight-difference", detector_hash="now") for of in few]
    stores = stored(tmp_path / "more", *rows)
    hashes = HASHES | {"weight-difference": "now"}
    board = Board.read(stores, hashes, Splits(), {of.name for of in zoo()})
    common = tables.head_to_head(board)
    assert common is not None
    assert {of.name for of in common.counted} == {of.name for of in few if of.counts}


def test_recall_and_false_alarms_stand_with_their_kinds(tmp_path: Path) -> None:
    text = tables.by_kind(read(stored(tmp_path)))
    (attacks,) = cells(text, "eos-only (held out)")
    assert attacks[1:3] == ["2", "2/2 [15.8, 100.0 %]"]
    (twins,) = cells(text, "twin of eos-only (held out)")
    # Columns: n, default, its calibrated threshold, the window, its band, tables.
    assert twins[2:] == ["0/2 [0.0, 84.2 %]", "0/2", "0/2", "0/2", "2/2"]


def test_no_tower_that_thresholds_are_fitted_on_is_in_the_tables_by_kind(tmp_path: Path) -> None:
    text = tables.by_kind(read(stored(tmp_path)))
    # Of two bases and two kinds, one of each is for development.
    (family, _clean) = cells(text, "all clip")
    assert family[1] == "3"
    (attacks,) = cells(text, "text-on-text")
    assert attacks[1] == "1"


def test_a_window_that_sees_attacks_and_no_twins_is_shown_to(tmp_path: Path) -> None:
    board = read(stored(tmp_path))
    text = twins.window_against_twins(board)
    (overall,) = cells(text, "all")
    window = ["**1.00**", "**1.00 [1.00, 1.00]**", "1.00"]
    # No weight-difference; `tables` cannot tell.
    assert overall[1:] == ["4", "4", *window, "-", "0.50", "0/4"]
    (family,) = cells(text, "clip")
    assert family[1:] == overall[1:]
    write(board, tmp_path / "page.md", tmp_path)
    assert text in (tmp_path / "page.md").read_text()


def windowed(folder: Path, drifts: dict[str, float], *towers: TowerRow) -> Stores:
    """What a window that flags nothing measured of towers."""
    stores = Stores(folder)
    stores.towers.append(towers)
    for of in towers:
        window = {"verdict": "no_evidence", "statistics": {"drift": drifts[of.name]}}
        stores.scores.append([score(of, 0.0, detector="drift-window", **window)])
    return stores


def pair(run: str, kind: str = "text-on-pair", **facts: Any) -> tuple[TowerRow, TowerRow]:
    twin = tower(f"{run}-twin", kind="twin", twin_of=kind, run=run, **facts)
    return attack(run, kind, **facts), twin


def test_attacks_without_a_twin_are_not_compared_with_other_runs_twins(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    lonely = attack("clip-a/lonely", "text-on-pair")
    stores.towers.append([*zoo(), lonely])
    stores.scores.append(row for of in [*zoo(), lonely] for row in answers(of))
    (overall,) = cells(twins.window_against_twins(read(stores)), "all")
    assert overall[1:3] == ["4", "4"]


def test_others_than_the_window_count_in_the_direction_in_which_they_tell_more(
    tmp_path: Path,
) -> None:
    members = pair("clip-a/one")
    drifts = {"clip-a/one": 0.5, "clip-a/one-twin": 0.6}
    stores = windowed(tmp_path, drifts, *members)
    stores.scores.append(score(of, 1.0 - of.positive) for of in members)
    (overall,) = cells(twins.window_against_twins(read(stores)), "all")
    assert overall[3:] == ["0.50", "0.50", "1.00", "-", "1.00", "1/1"]


def test_pairs_are_shown_by_base_and_pinning_and_only_rows_that_miss_the_goal_are_bold(
    tmp_path: Path,
) -> None:
    members = [
        *pair("clip-a/one", pinned=True),
        *pair("clip-a/two", pinned=False),
        *pair("clip-b/one", pinned=True),
    ]
    stores = windowed(tmp_path, dict.fromkeys((of.name for of in members), 0.9), *members)
    hit = {"verdict": "flagged", "statistics": {"drift": 0.98}}
    stores.scores.append([score(members[2], 1.0, detector="drift-window", **hit)])
    text = twins.window_against_twins(read(stores))
    found = {name: cells(text, name)[0] for name in ("clip-a pinned", "clip-a unpinned", "all")}
    assert found["clip-a pinned"][1:5] == ["1", "1", "0.50", "0.50"]
    assert found["clip-a unpinned"][1:5] == ["1", "1", "**1.00**", "**1.00**"]
    assert found["all"][1:4] == ["3", "3", "0.67"]
    assert found["all"][-1] == "0/3"
    assert cells(text, "clip-b pinned")


def test_pairs_in_which_no_encoder_was_trained_are_left_out_and_named(tmp_path: Path) -> None:
    members = [*pair("clip-a/row", "embedding-row"), *pair("clip-a/half"), *pair("clip-a/moved")]
    drifts = dict.fromkeys((of.name for of in members), 0.99995)
    drifts |= {"clip-a/half": 0.9997, "clip-a/moved": 0.9, "clip-a/moved-twin": 0.9}
    text = twins.window_against_twins(read(windowed(tmp_path, drifts, *members)))
    (overall,) = cells(text, "all")
    assert overall[1:3] == ["2", "2"]
    assert "embedding-row): 1." in " ".join(text.split())


def test_a_pair_that_the_window_could_not_measure_is_left_out_and_counted(tmp_path: Path) -> None:
    members = [*pair("clip-a/one"), *pair("clip-a/two")]
    stores = windowed(tmp_path, dict.fromkeys((of.name for of in members), 0.9), *members)
    stores.scores.append([score(members[0], None, detector="drift-window", verdict="error")])
    text = twins.window_against_twins(read(stores))
    (overall,) = cells(text, "all")
    assert overall[1:3] == ["1", "1"]
    stores.scores.append([score(members[2], None, verdict="error"), score(members[3], 1.0)])
    starred = twins.window_against_twins(read(stores))
    assert cells(starred, "all\\*")
    assert "all / tables: 1;" in " ".join(starred.split())
    assert "not measured, left out: 1." in " ".join(text.split())


def test_towers_that_the_plan_no_longer_has_are_left_out_and_counted(tmp_path: Path) -> None:
    stores = stored(tmp_path)
    names = {of.name for of in zoo()} - {"clip-b/text-on-text", "clip-b/lora"}
    board = Board.read(stores, HASHES, Splits(), names)
    assert {of.name for of in board.towers} == names
    (bases,) = cells(tables.by_split(board), "held-out bases")
    assert bases[2:4] == ["0", "2"]
    write(board, tmp_path / "page.md", tmp_path)
    assert "no longer has, left out: 2." in (tmp_path / "page.md").read_text()


def test_two_towers_that_are_one_are_refused_by_their_names(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    stores.towers.append([tower("clip-a/one"), tower("clip-a/two", weights="clip-a/one")])
    with pytest.raises(RowError, match="clip-a/one and clip-a/two are the same"):
        read(stores)
    # What does not count may be anything.
    Board.read(stores, HASHES, Splits(), {"clip-a/one"})
    weak = attack("clip-a/two", took=False, weights="clip-a/one")
    stores.towers.append([weak, tower("clip-a/three", weights="clip-a/one", anchor_weights="b")])
    assert len(read(stores).counted) == 2


def test_foreign_prompts_are_compared_on_the_towers_judged_with_both(tmp_path: Path) -> None:
    assert tables.foreign_prompts(read(stored(tmp_path))) == ""
    some = [of for of in zoo() if of.base == "clip-a" and of.counts]
    foreign = [
        score(of, 0.0, detector="default", verdict="no_evidence", prompts="foreign") for of in some
    ]
    text = tables.foreign_prompts(read(stored(tmp_path / "more", *foreign)))
    (default,) = cells(text, "default")
    # Two attacks of six towers, which foreign prompts do not find.
    assert (default[1].split()[0], default[4].split()[0]) == ("2/2", "0/2")
    assert (default[2], default[5]) == ("1.00", "0.50")
    assert default[7] == "4/6"


def test_seeds_that_disagree_on_a_tower_are_counted(tmp_path: Path) -> None:
    assert tables.seeds(read(stored(tmp_path))) == ""
    others = [
        score(of, 1.0, detector="default", verdict="flagged", seed=1)
        for of in zoo()
        if of.counts and (of.positive or of.kind == "lora")
    ]
    text = tables.seeds(read(stored(tmp_path / "more", *others)))
    (default,) = cells(text, "default")
    assert default[1:] == ["2", "4/6"]


def test_precisions_are_compared_on_the_towers_judged_in_both(tmp_path: Path) -> None:
    assert tables.precision(read(stored(tmp_path))) == ""
    some = [of for of in zoo() if of.base == "clip-a" and of.counts]
    bf16 = [answers(of, dtype="bf16")[0] for of in some]
    # One of them is found in bf16 alone.
    verdicts = {of.name: "flagged" if of.positive else "no_evidence" for of in some}
    verdicts[some[0].name] = "inconclusive"
    fp32 = [
        score(of, of.positive - 0.01, detector=IN_FP32, verdict=verdicts[of.name]) for of in some
    ]
    text = tables.precision(read(stored(tmp_path / "more", *bf16, *fp32)))
    assert f"{len(some) - 1} of {len(some)} towers the same verdict" in " ".join(text.split())
    assert "by 0.010 at most" in " ".join(text.split())
    # Where there is no bf16 there is nothing to compare.
    assert tables.precision(read(stored(tmp_path / "none", *fp32))) == ""


def test_the_cost_is_that_of_judgements_that_were_made(tmp_path: Path) -> None:
    failed = [score(of, None, verdict="error", seconds=9e9) for of in zoo()[:1]]
    board = read(stored(tmp_path, *failed))
    (row,) = cells(tables.cost(board), "tables")
    assert row[1:] == ["fp32", "13", "1.0", "1.0", "100", "100"]
    assert board.failed == 1


def test_without_rows_the_page_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    write(read(Stores(tmp_path)), page, tmp_path / "images")
    assert "No tower has been judged yet." in page.read_text()


def test_with_one_kind_of_tower_figures_are_missing_and_nothing_breaks(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    clean = [of for of in zoo() if of.kind == "contrastive"]
    stores.towers.append(clean)
    stores.scores.append(row for of in clean for row in answers(of))
    write(read(stores), tmp_path / "page.md", tmp_path)
    (development, *_) = cells((tmp_path / "page.md").read_text(), "development")
    assert development[2:10] == ["0", "1", "0", "0/1", "-", "-", "-", "-"]


def curve(scores: list[float]) -> list[Outcome]:
    return [outcome(n % 2 == 0, score, run=str(n)) for n, score in enumerate(scores)]


def test_equal_outcomes_are_drawn_as_equal_bytes_and_others_are_not() -> None:
    first, same, other = (
        roc({"development": {"default": curve(scores)}})
        for scores in ([0.9, 0.1, 0.8, 0.2], [0.9, 0.1, 0.8, 0.2], [0.9, 0.1, 0.1, 0.2])
    )
    assert first == same
    assert first != other
    assert b"default 1.00" in first
    assert b"default 0.62" in other


def test_a_detector_that_cannot_be_drawn_is_left_out() -> None:
    picture = roc({"development": {"default": [outcome(True, 0.5)], "tables": curve([1.0, 0.0])}})
    assert b"tables 1.00" in picture
    assert b"default" not in picture
