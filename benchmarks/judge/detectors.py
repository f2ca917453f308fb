"""All detectors of the table, by name: the scanner's profiles and the baselines."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import hf_amdet
from benchmarks.judge import baselines
from benchmarks.judge.baselines import Finding
from benchmarks.judge.rows import ERROR, Key, Prompts, ScoreRow, TowerRow
from hf_amdet.detection.config import PROFILES
from hf_amdet.detection.runtime import DType, Runtime
from hf_amdet.pipeline import ScanConfig, run

FLAGGED = "flagged"
_CLEAR_PEAK = "5"
"""What makes Linux begin a process's peak of resident memory anew."""


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
        """Ask the detector; raises whatever it raises."""
        _forget_peak()
        start = time.perf_counter()
        prompts = None if self.file is None else str(self.file)
        answer = detectors()[self.detector].answer(self.folder, self.anchor, self.seed, prompts)
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
            dtype=detector.dtype,
            score=answer.score,
            verdict=answer.verdict,
            statistics=answer.statistics,
            seconds=round(seconds, 3),
            peak_mib=peak,
        )


@cache
def detectors() -> dict[str, Detector]:
    """All there are, in the order of the table."""
    found = [
        _scanner("default"),
        _scanner("paper"),
        _baseline("weight-difference", baselines.weight_difference, reads_prompts=False),
        _baseline("drift-window", baselines.drift_window, reads_prompts=True),
        _baseline("tables", baselines.tables, reads_prompts=False),
    ]
    return {detector.name: detector for detector in found}


def _scanner(profile: Literal["default", "paper"]) -> Detector:
    """A profile of hf-amdet, in bf16 where the hardware has it.

    The published method runs in fp32, which would take twice as long for hundreds of towers.
    """
    dtype: DType = "bf16" if Runtime("cpu").bf16 else "fp32"

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
        # A planted natural backdoor brings its anchor along, in a folder of its own.
        entry = next((tower for tower in report.towers if tower.path == ""), None)
        if entry is None:
            return Answer(None, report.verdict.value, {})
        statistics = {name: s.value for name, s in entry.statistics.items()}
        return Answer(entry.score, entry.verdict.value, statistics)

    package = Path(hf_amdet.__file__).parent
    sources = [package / "prompts.py"]
    for part in ("detection", "encoders"):
        sources += sorted((package / part).glob("*.py"))
    return Detector(profile, _hash(repr(PROFILES[profile]), sources), dtype, True, True, answer)


def _baseline(
    name: str, find: Callable[[Path, Path, str | None], Finding], *, reads_prompts: bool
) -> Detector:
    def answer(folder: Path, anchor: Path, seed: int, prompts: str | None) -> Answer:
        del seed
        found = find(folder, anchor, prompts)
        verdict = None
        if found.flagged is not None:
            verdict = FLAGGED if found.flagged else "no_evidence"
        score = found.score if math.isfinite(found.score) else None
        return Answer(score, verdict, found.statistics)

    assert baselines.__file__ is not None
    return Detector(
        name, _hash(name, [Path(baselines.__file__)]), "fp32", False, reads_prompts, answer
    )


def _hash(settings: str, sources: Iterable[Path]) -> str:
    """Of settings and of source files by name; their folder does not count."""
    whole = hashlib.sha256(settings.encode())
    for file in sources:
        whole.update(f"\n{file.parent.name}/{file.name}\n".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()


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
