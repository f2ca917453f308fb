from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hf_amdet.errors import OutputError, ReportError
from hf_amdet.report import files
from hf_amdet.report.schema import Report
from tests.report import samples


def test_a_report_survives_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_report(samples.flagged(), path)
    assert files.load(path) == samples.flagged()


def test_equal_reports_give_equal_bytes() -> None:
    backwards = dict(reversed(samples.flagged().timings.items()))
    assert files.to_json(samples.flagged(timings=backwards)) == files.to_json(samples.flagged())


def test_json_is_ascii_and_ends_with_one_newline() -> None:
    text = files.to_json(samples.flagged(target="塔\u202e"))
    assert text.isascii()
    assert text.endswith("}\n")


def test_fields_of_a_newer_release_survive(tmp_path: Path) -> None:
    document = {**json.loads(files.to_json(samples.flagged())), "later_field": {"a": [1]}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    assert json.loads(files.to_json(files.load(path))) == document


def test_faults_are_named_by_their_json_path() -> None:
    document = json.loads(files.to_json(samples.flagged()))
    document["towers"][0]["score"] = "high"
    del document["config"]
    with pytest.raises(ReportError) as caught:
        files.validate(document)
    assert "$.towers[0].score" in str(caught.value)
    assert "'config' is a required property" in str(caught.value)


def test_long_faults_are_cut() -> None:
    document = json.loads(files.to_json(samples.flagged()))
    document["towers"] = [{"x" * 10_000: 1}] * 9
    with pytest.raises(ReportError) as caught:
        files.validate(document)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"schema_version": NaN}', "is not JSON"),
        (b"[]", "not a report"),
        (b'{"schema_version": 2}', "schema version 2"),
        (b'{"schema_version": 1}', "is a required property"),
        (b'{"schema_version": true}', "not a report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ReportError, match=said):
        files.load(path)


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    text = files.to_json(samples.flagged()).replace('"download": 1.25', '"download": 1e999')
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ReportError):
        files.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot read"):
        files.load(tmp_path / "absent.json")
    with pytest.raises(ReportError, match="cannot read"):
        files.load(tmp_path)


def test_a_file_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    path = tmp_path / "report.json"
    files.write_report(samples.flagged(), path)
    with pytest.raises(ReportError, match="larger than 10 bytes"):
        files.load(path)


def test_an_invalid_report_is_not_written(tmp_path: Path) -> None:
    broken = Report.model_construct(**{**samples.flagged().__dict__, "created_at": 3})
    with (
        pytest.warns(UserWarning, match="serializer"),
        pytest.raises(ReportError, match="created_at"),
    ):
        files.write_report(broken, tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    _fail_fsync(monkeypatch, OSError(code, os.strerror(code)))
    with pytest.raises(OutputError, match=os.strerror(code)):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_fsync(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "report.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        files.write_atomically(tmp_path / "absent" / "report.json", b"new")


def test_a_written_file_has_the_ordinary_mode(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    files.write_atomically(tmp_path / "written", b"x")
    assert (tmp_path / "written").stat().st_mode == ordinary.stat().st_mode


def _fail_fsync(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fsync(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fsync)
