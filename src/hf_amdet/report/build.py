"""From what the pipeline measured to a `Report`. The only place where the two meet."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from hf_amdet._version import __version__
from hf_amdet.report.schema import (
    AnchorRecord,
    BaseRecord,
    CandidateRecord,
    Environment,
    FileRecord,
    MovedRowRecord,
    Reason,
    RemapRecord,
    StaticRecord,
    Statistic,
    Threshold,
    TokenRecord,
    TowerReport,
    Verdict,
)

if TYPE_CHECKING:  # detection imports torch, reports can be read without it
    from hf_amdet.detection.config import Profile
    from hf_amdet.detection.detect import Detection
    from hf_amdet.detection.judges import Measure
    from hf_amdet.detection.runtime import Runtime
    from hf_amdet.detection.significance import Significance
    from hf_amdet.detection.static import StaticDiff


@dataclass(frozen=True)
class Place:
    """A tower of the target and what was read for it."""

    path: str
    architecture: str | None
    files: Sequence[FileRecord] = ()
    base: BaseRecord | None = None


def scanned(
    place: Place,
    anchor: AnchorRecord,
    detection: Detection,
    significance: Significance | None = None,
    notes: Sequence[Reason] = (),
) -> TowerReport:
    """The entry of a tower that was scanned; `notes` stand behind the verdict's reasons."""
    conclusion = detection.conclusion
    reasons = [Reason(code=f.code, message=f.message) for f in conclusion.findings]
    return TowerReport(
        path=place.path,
        architecture=place.architecture,
        verdict=Verdict(conclusion.answer),
        score=conclusion.score if math.isfinite(conclusion.score) else None,
        witness=conclusion.witness,
        p_value=None if significance is None else significance.p_value,
        predictive_value=None if significance is None else significance.predictive_value,
        prevalence=None if significance is None else significance.prevalence,
        calibration=significance.calibration if significance else _uncalibrated(detection),
        statistics=_statistics(detection.statistics),
        thresholds=tuple(
            Threshold(
                statistic=c.statistic,
                comparison=c.comparison,
                value=c.value,
                unit=c.unit,
                source=c.source,
            )
            for c in conclusion.criteria
        ),
        reasons=(*reasons, *notes),
        files=tuple(place.files),
        base=place.base,
        anchor=anchor,
        candidates=tuple(
            CandidateRecord(
                objective=c.objective,
                restart=c.restart,
                token=None if c.token is None else TokenRecord(id=c.token, text=c.text or ""),
                loss=c.loss if math.isfinite(c.loss) else None,
                steps=c.steps,
                statistics=_statistics(c.statistics),
            )
            for c in detection.candidates
        ),
        static=_static(detection.static),
    )


def _uncalibrated(detection: Detection) -> str:
    """The published thresholds are those of another model, ours those of the zoo's."""
    return "none" if detection.static is None else "transferred"


_LISTED = 16
"""Tokens, texts and rows that a report lists."""


def _static(diff: StaticDiff | None) -> StaticRecord | None:
    if diff is None:
        return None
    return StaticRecord(
        added=len(diff.added),
        removed=len(diff.removed),
        added_tokens=diff.added[:_LISTED],
        read_alike=diff.read_alike,
        remaps=tuple(
            RemapRecord(text=r.text, reads=r.reads, ids=r.suspect, anchor_ids=r.anchor)
            for r in diff.remaps[:_LISTED]
        ),
        moved_rows=tuple(
            MovedRowRecord(row=r.row, piece=r.piece, moved=r.moved, ratio=r.ratio)
            for r in diff.moved_rows[:_LISTED]
        ),
        token_outlier=diff.token_outlier,
        position_outlier=diff.position_outlier,
    )


def without_detection(
    place: Place, verdict: Verdict, reason: Reason, anchor: AnchorRecord | None = None
) -> TowerReport:
    """The entry of a tower that no inversion was run on."""
    return TowerReport(
        path=place.path,
        architecture=place.architecture,
        verdict=verdict,
        score=None,
        p_value=None,
        calibration="none",
        statistics={},
        thresholds=(),
        reasons=(reason,),
        files=tuple(place.files),
        base=place.base,
        anchor=anchor,
    )


def as_another(place: Place, other: TowerReport) -> TowerReport:
    """The entry of a tower whose weights are those of another one, which has the answer."""
    reason = Reason(
        code="same_weights",
        message="To the precision of fp16 its weights are those of the tower "
        f"{other.path or 'at the root'}, and the answer is the same.",
    )
    entry = without_detection(place, other.verdict, reason, other.anchor)
    return entry.model_copy(update={"score": other.score})


def environment(runtime: Runtime) -> Environment:
    """Versions, device and precision of this process."""
    version = importlib.metadata.version
    return Environment(
        hf_amdet=__version__,
        python=platform.python_version(),
        platform=f"{sys.platform}-{platform.machine()}",
        torch=version("torch"),
        transformers=version("transformers"),
        accelerate=version("accelerate"),
        huggingface_hub=version("huggingface_hub"),
        device=str(runtime.device),
        dtype=runtime.dtype,
    )


def settings(profile: Profile) -> dict[str, float | int | str | bool | None]:
    """Every number of the profile under a dotted name."""
    flat: dict[str, float | int | str | bool | None] = {}

    def add(prefix: str, value: object) -> None:
        if value is None or isinstance(value, bool | int | float | str):
            flat[prefix] = value
        elif isinstance(value, tuple):
            for item in value:
                add(f"{prefix}.{item.objective.name}", item)
        else:
            for item in fields(value):  # type: ignore[arg-type]
                add(f"{prefix}.{item.name}" if prefix else item.name, getattr(value, item.name))

    add("", profile)
    return flat


def _statistics(measures: Mapping[str, Measure]) -> dict[str, Statistic]:
    """Those that are numbers: JSON has no NaN, and the reasons say where one came up."""
    return {
        name: Statistic(value=m.value, low=m.low, high=m.high, unit=m.unit, n=m.n)
        for name, m in measures.items()
        if all(math.isfinite(number) for number in (m.value, m.low, m.high) if number is not None)
    }
