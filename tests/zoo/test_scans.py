"""The benchmark of families reports what its scans found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import families
from hf_amdet import Report, ScanConfig
from tests.report import samples


def test_every_tower_and_seed_has_a_row_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for tower in ("anchor", "backdoored", "clean"):
        (tmp_path / "siglip" / tower).mkdir(parents=True)

    def scan(target: str, config: ScanConfig) -> Report:
        assert config.anchor == str(tmp_path / "siglip" / "anchor")
        return samples.flagged() if target.endswith("backdoored") else samples.no_evidence()

    monkeypatch.setattr(families, "scan", scan)
    options = ["--zoo", str(tmp_path), "--out", str(tmp_path / "results"), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["families", *options])
    families.main()

    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 4
    figures = "0.41 [0.38, 0.44] | - | - | - | 0.034 | 9.8"
    assert rows[3] == f"| siglip | backdoored | 1 | `flagged` | {figures} |"
    lines = (tmp_path / "results" / "families.jsonl").read_text().splitlines()
    scans = [json.loads(line) for line in lines]
    assert [(scan["tower"], scan["seed"]) for scan in scans] == [
        *(("backdoored", 0), ("backdoored", 1)),
        *(("clean", 0), ("clean", 1)),
    ]
    assert scans[0]["statistics"]["consistency_gap"] == pytest.approx([0.412, 0.382, 0.442])
    assert scans[2]["verdict"] == "no_evidence"
