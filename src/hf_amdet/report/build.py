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
    Reason,
    Statistic,
    Threshold,
    TowerReport,
    Verdict,
)

if TYPE_CHECKING:  # detection imports torch, reports can be read without it
    from hf_amdet.detection.config import Profile
    from hf_amdet.detection.detect import Detection
    from hf_amdet.detection.judges import Measure
    from hf_amdet.detection.runtime import Runtime

NOT_COVERED = (
    "everything but the text tower: U-Net, image tower, and what adapters do to them",
    "hidden states other than the last, which some pipelines read (SD 2 and SDXL)",
    "poisoned rows of the embedding table, and tokenizers that map a string to other tokens",
    "attacks added after download: prompt tuning, textual inversion, adapters",
    "attribute backdoors that shift features without bringing them together",
    "calibration: there is no null distribution for this family, so no p-value",
)


@dataclass(frozen=True)
class Place:
    """A tower of the target and what was read for it."""

    path: str
    architecture: str | None
    files: Sequence[FileRecord] = ()
    base: BaseRecord | None = None


def scanned(
    place: Place, anchor: AnchorRecord, detection: Detection, notes: Sequence[Reason] = ()
) -> TowerReport:
    """The entry of a tower that was scanned; `notes` stand behind the verdict's reasons."""
    conclusion = detection.conclusion
    reasons = [Reason(code=f.code, message=f.message) for f in conclusion.findings]
    return TowerReport(
        path=place.path,
        architecture=place.architecture,
        verdict=Verdict(conclusion.answer),
        score=conclusion.score if math.isfinite(conclusion.score) else None,
        p_value=None,
        calibration="none",
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
                loss=c.loss if math.isfinite(c.loss) else None,
                steps=c.steps,
                statistics=_statistics(c.statistics),
            )
            for c in detection.candidates
        ),
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
