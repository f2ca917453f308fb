from dataclasses import replace

import pytest

from hf_amdet.detection.config import DEFAULT, PROFILES


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is over soon: nothing is planted here that it would have to find."""
    brief = tuple(replace(i, restarts=1, steps=4) for i in DEFAULT.inversions)
    landscape = replace(DEFAULT.landscape, grid=5)
    assert DEFAULT.thresholds is not None
    # Random towers have tokens that unite all prompts, which are much alike to them anyway.
    thresholds = replace(DEFAULT.thresholds, natural=2.0, gap=0.2, unclear=0.15)
    profile = replace(
        DEFAULT,
        prompts=60,
        held_out=20,
        inversions=brief,
        landscape=landscape,
        thresholds=thresholds,
    )
    monkeypatch.setitem(PROFILES, "default", profile)
