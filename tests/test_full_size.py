"""Towers as large as the public ones load and scan within bounds; their weights are random."""

import pytest

from benchmarks.fullsize import CLIP_L, SDXL, configurations, measure

GB = 1e9 / 2**20
"""In MiB."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [(CLIP_L, 6 * GB), (SDXL, 10 * GB)])
def test_a_full_size_scan_stays_in_memory(name: str, limit: float) -> None:
    towers = configurations()[name]

    measured = measure(towers, None)

    assert len(measured["towers"]) == len(towers)
    assert "not_scanned" not in measured["towers"].values()
    assert measured["peak_mib"] < limit


def test_every_known_shape_is_measured() -> None:
    assert {CLIP_L, SDXL} <= configurations().keys()
    assert len(configurations()[SDXL]) == 2
