"""`hf-amdet calibrate`: what it writes, says and refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hf_amdet.cli import app
from hf_amdet.detection.calibration import VERSION, NullDistribution, NullTower, parse
from hf_amdet.detection.config import DEFAULT, PROFILES
from tests import towers

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command's exit code and what it said; stdout stays empty."""

    def command(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            app.main(["calibrate", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert out == ""
        assert isinstance(end.value.code, int)
        return end.value.code, err

    return command


@pytest.fixture
def anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tower, and a search in it that is over soon."""
    brief = tuple(replace(i, restarts=1, steps=4) for i in DEFAULT.inversions)
    landscape = replace(DEFAULT.landscape, grid=5)
    profile = replace(DEFAULT, prompts=60, held_out=20, inversions=brief, landscape=landscape)
    monkeypatch.setitem(PROFILES, "default", profile)
    return towers.save(towers.make_model(), tmp_path / "anchor")


def null_of(towers: int) -> NullDistribution:
    rows = (NullTower("shaken", 0.1, 0.1, 0.25),) * towers
    head = ("clip", "org/clean", "a", "default", "b", "c", "fp32", 0, "0")
    return NullDistribution(VERSION, *head, rows)


def test_a_few_towers_are_enough_and_their_limit_is_said(
    anchor: Path, tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "null.json"
    code, said = run(anchor, "--output", file, "--towers", 1, "--seed", 3, "--dtype", "fp32")

    assert code == 0
    null = parse(file.read_text())
    assert (len(null.towers), null.seed, null.dtype, null.anchor) == (1, 3, "fp32", "anchor")
    assert "smallest p-value that they can give is 0.5" in said
    assert "99 towers would give 0.01" in said
    assert str(file) in said


@pytest.mark.parametrize(("towers", "few"), [(98, True), (99, False)])
def test_the_limits_of_a_calibration_are_said_while_they_bind(
    towers: int, few: bool, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = null_of(towers)
    monkeypatch.setattr("hf_amdet.pipeline.calibrate.calibrate", lambda *_, **__: null)
    _, said = run("org/clean", "--output", tmp_path / "null.json", "--towers", towers)

    assert "score 0.250 to 0.250" in said
    assert ("99 towers would give 0.01" in said) is few


def test_quiet_is_quiet(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_amdet.pipeline.calibrate.calibrate", lambda *_, **__: null_of(3))

    assert run("org/clean", "--output", tmp_path / "null.json", "-q") == (0, "")


def test_another_file_is_left_as_it_is(anchor: Path, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    code, said = run(anchor, "--output", file, "--towers", 1)

    assert code == 2
    assert "thesis.txt is not written over" in said
    assert file.read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("org/model",), "--output"),
        (("--output", "null.json"), "ANCHOR"),
        (("org/model", "--output", "null.json", "--towers", 0), "1 to"),
        (("./nowhere", "--output", "null.json"), "nowhere"),
        (("org/model", "--output", "nowhere/null.json"), "nowhere"),
    ],
)
def test_wrong_usage_is_named(
    arguments: tuple[object, ...],
    says: str,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run(*arguments)

    assert code == 2
    assert says in said
    assert list(tmp_path.iterdir()) == []
