"""All detectors of the table, by name: the scanner's profiles and the baselines."""

from __future__ import annotations

import ast
import hashlib
import io
import math
import time
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import hf_amdet
from benchmarks.judge import baselines
from benchmarks.judge.baselines import Finding
from benchmarks.judge.rows import ERROR, FLAGGED, Key, Prompts, ScoreRow, TowerRow
from benchmarks.judge.views import views
from hf_amdet.detection.config import PROFILES
from hf_amdet.detection.runtime import DType, Runtime
from hf_amdet.pipeline import ScanConfig, run
from hf_amdet.prompts import load_prompts

_CLEAR_PEAK = "5"
"""What makes Linux begin a process's peak of resident memory anew."""
IN_FP32 = "default-fp32"
"""The default profile without bf16: judged where it is asked for, and compared with `default`."""
_CALIBRATING = {"calibrate.py", "calibration.py", "nulls.py", "significance.py", "variants.py"}


@dataclass(frozen=True)
class Answer:
    """What a detector says, before it stands in a row."""

    score: float | None
    verdict: str | None
    statistics: dict[str, float]


@dataclass(frozen=True)
class Detector:
    """A way to tell backdoored towers from clean ones.

    Attributes:
        hash: sha256 over what decides its answer.
        seeded: whether a seed changes the answer.
        reads_prompts: whether prompts do.
        answer: (tower, anchor, seed, prompts) -> what it says; prompts as in `load_prompts`.
    """

    name: str
    hash: str
    dtype: str
    seeded: bool
    reads_prompts: bool
    answer: Callable[[Path, Path, int, str | None], Answer]


@dataclass(frozen=True)
class Job:
    """One judgement to be made.

    Attributes:
        folder, anchor: of the tower and of its anchor.
        file: prompts, one a line; None for the embedded ones.
    """

    tower: TowerRow
    folder: Path
    anchor: Path
    detector: str
    seed: int
    prompts: Prompts
    file: Path | None

    @property
    def key(self) -> Key:
        """The key of the row that it makes; without what the detector does not look at."""
        return self._row(Answer(None, None, {}), 0.0, None).key

    def judge(self) -> ScoreRow:
        """Ask the detector, which sees no labels; raises whatever it raises."""
        prompts = None if self.file is None else str(self.file)
        with views(self.folder, self.anchor) as (tower, anchor):
            _forget_peak()
            start = time.perf_counter()
            answer = detectors()[self.detector].answer(tower, anchor, self.seed, prompts)
            return self._row(answer, time.perf_counter() - start, _peak())

    def failed(self) -> ScoreRow:
        """The row of a judgement that could not be made."""
        return self._row(Answer(None, ERROR, {}), 0.0, None)

    def _row(self, answer: Answer, seconds: float, peak: float | None) -> ScoreRow:
        detector = detectors()[self.detector]
        return ScoreRow(
            weights=self.tower.weights,
            anchor_weights=self.tower.anchor_weights,
            detector=self.detector,
            detector_hash=detector.hash,
            seed=self.seed if detector.seeded else 0,
            prompts=self.prompts if detector.reads_prompts else "embedded",
            prompts_sha256=_digest(self.file) if detector.reads_prompts else "",
            dtype=detector.dtype,
            score=_finite(answer.score),
            verdict=answer.verdict,
            statistics={n: v for n, v in answer.statistics.items() if math.isfinite(v)},
            seconds=round(seconds, 3),
            peak_mib=peak,
        )


@cache
def detectors() -> dict[str, Detector]:
    """All there are, in the order of the table."""
    usual: DType = "bf16" if Runtime("cpu").bf16 else "fp32"
    found = [
        _scanner("default", "default", usual),
        _scanner("paper", "paper", usual),
        _baseline("weight-difference", baselines.weight_difference, reads_prompts=False),
        _baseline("drift-window", baselines.drift_window, reads_prompts=True),
        _baseline("tables", baselines.tables, reads_prompts=False),
        _scanner(IN_FP32, "default", "fp32"),
    ]
    return {detector.name: detector for detector in found}


def _scanner(name: str, profile: Literal["default", "paper"], dtype: DType) -> Detector:
    """A profile of hf-amdet.

    The published method runs in fp32, which would take twice as long for hundreds of towers.
    """

    def answer(folder: Path, anchor: Path, seed: int, prompts: str | None) -> Answer:
        config = ScanConfig(
            anchor=str(anchor),
            profile=profile,
            prompts=prompts,
            seed=seed,
            device="cpu",
            dtype=dtype,
        )
        report = run(str(folder), config).report
        # A folder without a text tower has no entry.
        entry = next(iter(report.towers), None)
        if entry is None:
            return Answer(None, report.verdict.value, {})
        statistics = {name: s.value for name, s in entry.statistics.items()}
        return Answer(entry.score, entry.verdict.value, statistics)

    package = Path(hf_amdet.__file__).parent
    sources = [package / "prompts.py", package / "report" / "build.py"]
    for part in ("detection", "encoders", "pipeline"):
        sources += _of_scans(package / part)
    # One that is not called as its profile is another detector.
    settings = repr(PROFILES[profile]) + name.removeprefix(profile)
    return Detector(name, _hash(settings, sources), dtype, True, True, answer)


def _baseline(
    name: str, find: Callable[[Path, Path, str | None], Finding], *, reads_prompts: bool
) -> Detector:
    def answer(folder: Path, anchor: Path, seed: int, prompts: str | None) -> Answer:
        del seed
        found = find(folder, anchor, prompts)
        verdict = None
        if found.flagged is not None:
            verdict = FLAGGED if found.flagged else "no_evidence"
        return Answer(found.score, verdict, found.statistics)

    assert baselines.__file__ is not None
    package = Path(hf_amdet.__file__).parent
    sources = [Path(baselines.__file__), package / "prompts.py", *_of_scans(package / "encoders")]
    return Detector(name, _hash(name, sources), "fp32", False, reads_prompts, answer)


def _of_scans(folder: Path) -> list[Path]:
    """The modules in `folder` that a scan without a calibration runs through."""
    return [file for file in sorted(folder.glob("*.py")) if file.name not in _CALIBRATING]


def _hash(settings: str, sources: Iterable[Path]) -> str:
    """Of settings and of source files by name; their folder does not count."""
    whole = hashlib.sha256(settings.encode())
    for file in sources:
        whole.update(f"\n{file.parent.name}/{file.name}\n".encode())
        whole.update(_code(file.read_text(encoding="utf-8")).encode())
    return whole.hexdigest()


def _code(source: str) -> str:
    """What is run of a Python file: no answer changes with its comments and docstrings."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _digest(file: Path | None) -> str:
    """sha256 of a file of prompts, or of the embedded ones."""
    return _embedded() if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _embedded() -> str:
    return load_prompts(None).sha256


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError:
        return


def _peak() -> float | None:
    """Peak resident MiB since `_forget_peak`; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
