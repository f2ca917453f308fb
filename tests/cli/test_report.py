"""`hf-amdet report diff`: what it prints and how it exits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_amdet.cli import app
from hf_amdet.report.diff import compare, to_json
from hf_amdet.report.files import write_report
from hf_amdet.report.schema import Report
from tests.report import samples

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The exit code of a diff of two reports, and what is on stdout and stderr."""

    def command(old: Report, new: Report, *arguments: str) -> tuple[int, str, str]:
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, report in zip(paths, (old, new), strict=True):
            write_report(report, path)
        return run(capsys, *map(str, paths), *arguments)

    return command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        app.main(["report", "diff", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_a_pipe_gets_json_and_a_changed_verdict_exits_1(diff: Run) -> None:
    code, out, err = diff(samples.no_evidence(), samples.flagged())
    assert (code, err) == (1, "")
    assert out == to_json(compare(samples.no_evidence(), samples.flagged()))
    assert json.loads(out)["verdict_changed"] is True


def test_figures_and_files_alone_exit_0(diff: Run) -> None:
    tower = samples.no_evidence().towers[0].model_dump(mode="json")
    tower["score"] = 0.5
    tower["files"][0]["sha256"] = samples.digest("other")
    new = samples.no_evidence(towers=[tower], commit_sha="f" * 40)

    code, out, err = diff(samples.no_evidence(), new, "--format", "human")

    assert (code, err) == (0, "")
    assert "The verdict is still no evidence." in out
    assert "The model changed" in out
    assert "    score: 0.021 -> 0.5\n" in out
    assert f"sha256 {samples.digest('other')[:12]}" in out


def test_a_verdict_of_one_tower_exits_1_where_the_repo_has_the_same(diff: Run) -> None:
    one = samples.flagged().towers[0].model_dump()
    clean = {**samples.no_evidence().towers[0].model_dump(), "path": "text_encoder_2"}
    old = samples.flagged(towers=[one, clean])
    new = samples.flagged(towers=[one, {**clean, "verdict": "inconclusive"}])

    code, out, _ = diff(old, new, "--format", "human")

    assert code == 1
    assert "Text encoder text_encoder_2\n    verdict: no_evidence -> inconclusive" in out


def test_the_same_report_twice_says_that_nothing_changed(diff: Run) -> None:
    code, out, _ = diff(samples.flagged(), samples.flagged(), "--format", "human")
    assert code == 0
    assert out.endswith("\nNothing changed.\n")


def test_what_came_and_went_is_marked(diff: Run) -> None:
    _, out, _ = diff(samples.no_evidence(), samples.flagged(), "--format", "human")
    assert "  + reason: One trigger embedding" in out
    assert "  - reason: No recovered trigger embedding" in out
    assert "(>= 0.2 was missed, is met)" in out


def test_markdown_is_a_page(diff: Run) -> None:
    code, out, _ = diff(samples.no_evidence(), samples.flagged(), "--format", "markdown")
    assert code == 1
    assert out.startswith("# Changes between two backdoor scans\n")
    assert "| `verdict` | no\\_evidence | flagged |" in out


def test_what_a_repo_says_cannot_drive_the_terminal(diff: Run) -> None:
    hidden = "org/\x1b[2J\nmodel"
    tower = samples.flagged().towers[0].model_dump() | {"path": hidden, "architecture": hidden}
    new = samples.flagged(target=hidden, not_covered=(hidden,), towers=[tower])

    _, out, _ = diff(samples.flagged(), new, "--format", "human")

    assert "\x1b" not in out
    assert "\nmodel" not in out


@pytest.mark.parametrize("which", ["old", "new"])
def test_what_is_no_report_is_an_error_and_names_its_file(
    which: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_report(samples.flagged(), tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{"schema_version": 2}')
    good = tmp_path / "good.json"
    order = (bad, good) if which == "old" else (good, bad)

    code, out, err = run(capsys, *map(str, order))

    assert (code, out) == (2, "")
    assert err.startswith(f"Error (report): {bad} has schema version 2")
