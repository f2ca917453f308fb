"""Suspect and anchor in, `Detection` out: the profiles put together."""

from __future__ import annotations

from collections.abc import Sequence

from hf_amdet.detection.config import Profile
from hf_amdet.detection.contrast import detect_contrast
from hf_amdet.detection.progress import Observer
from hf_amdet.detection.published import detect_published
from hf_amdet.detection.runtime import Runtime
from hf_amdet.detection.stages import Candidate, Detection, Run
from hf_amdet.encoders.base import TextTower

__all__ = ["Candidate", "Detection", "detect"]


def detect(
    suspect: TextTower,
    anchor: TextTower,
    prompts: Sequence[str],
    profile: Profile,
    *,
    seed: int,
    runtime: Runtime,
    observer: Observer | None = None,
) -> Detection:
    """Run `profile` on one suspect.

    Args:
        prompts: ordinary prompts; the profile's number of them is drawn by `seed`.

    Raises:
        PromptsError: too few prompts, or no two words among them.
    """
    run = Run(suspect, anchor, profile, runtime, observer or Observer(), seed)
    with run.watch.measure("probes"):
        probes = run.probes(prompts)
    if profile.gates is not None:
        return detect_published(run, probes, profile.gates)
    return detect_contrast(run, probes, prompts)
