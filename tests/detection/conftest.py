"""Fixtures of the detection tests."""

from collections.abc import Iterator

import pytest
import torch

from hf_amdet.detection import runtime


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Towers this small only wait for their threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def no_collection() -> Iterator[None]:
    """Out of memory collects garbage, which takes 0.2 s in a process that imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "clear_device_cache", lambda garbage_collection=False: None)
        yield
