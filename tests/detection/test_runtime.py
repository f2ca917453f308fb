"""Device, precision and batches that shrink."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_amdet.detection.runtime import Runtime
from hf_amdet.errors import UsageError
from tests.detection.doubles import OUT_OF_MEMORY, fp32, observed_dtypes, tokens
from tests.towers import make_tower

batches = given(st.integers(0, 40), st.integers(1, 64), st.integers(1, 5), st.integers(1, 40))
quick = settings(deadline=None, max_examples=100, derandomize=True)
pytestmark = pytest.mark.usefixtures("no_collection")


def _worked(count: int, batch: int, unit: int, room: int) -> tuple[list[list[int]], list[int]]:
    """Items of each part, and the sizes that failed, with memory for `room` items at once."""
    failed: list[int] = []

    def work(part: slice) -> list[int]:
        size = part.stop - part.start
        if size > room:
            failed.append(size)
            raise RuntimeError(OUT_OF_MEMORY)
        return list(range(part.start, part.stop))

    results = list(fp32(batch).in_batches(work, count, unit=unit))
    assert all(items == list(range(part.start, part.stop)) for part, items in results)
    return [items for _, items in results], failed


@quick
@batches
def test_every_item_is_worked_on_once_in_order_whatever_fits(
    count: int, batch: int, unit: int, room: int
) -> None:
    parts, _ = _worked(count, batch, unit, room)
    assert [item for items in parts for item in items] == list(range(count))
    most = max(1, batch // unit)
    assert all(len(items) <= most for items in parts)
    # Halving what did not fit leaves at least half of what would.
    assert all(len(items) >= min(most, (room + 1) // 2) for items in parts[:-1])


@pytest.mark.parametrize(("count", "batch", "unit"), [(2, 4, 1), (12, 256, 4), (3, 256, 10)])
def test_nothing_is_tried_again_at_a_size_that_did_not_fit(
    count: int, batch: int, unit: int
) -> None:
    """A batch larger than what there is to do is first cut to that."""
    _, failed = _worked(count, batch, unit, room=1)
    assert len(failed) == len(set(failed))


def test_a_single_item_that_does_not_fit_raises() -> None:
    def work(part: slice) -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(fp32().in_batches(work, 8))


def test_other_errors_pass_at_once() -> None:
    calls = []

    def work(part: slice) -> None:
        calls.append(part)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        list(fp32().in_batches(work, 8))
    assert len(calls) == 1


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "", "xpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(UsageError, match=f"Device '{device}' is not available"):
        Runtime(device)


@pytest.mark.parametrize(("dtype", "bf16"), [("bf16", True), ("fp32", False)])
def test_a_named_precision_is_the_one_that_towers_run_in(dtype: str, bf16: bool) -> None:
    runtime = Runtime("cpu", "bf16" if dtype == "bf16" else "fp32")
    tower = make_tower()
    probes = tokens(tower, 2)
    assert (runtime.dtype, runtime.bf16) == (dtype, bf16)
    for fp32_asked, expected in ((False, bf16), (True, False)):
        with observed_dtypes(tower) as seen, runtime.precision(fp32=fp32_asked):
            tower.encode(tower.embed(probes.ids), probes.ends)
        assert seen == {torch.bfloat16 if expected else torch.float32}
