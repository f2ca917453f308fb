"""Fixtures of the detection tests."""

from collections.abc import Iterator
from string import ascii_lowercase

import pytest
import torch

from hf_amdet.detection import runtime, static
from tests.detection.planted import Zoo, planted


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


@pytest.fixture(scope="module")
def few_texts() -> Iterator[None]:
    """Tokenizers are compared by letters and the prompts, which takes no second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "_short_texts", lambda *_: ascii_lowercase)
        yield


@pytest.fixture
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers are compared by all short texts, but of the characters only by ASCII."""
    monkeypatch.setattr(static, "_LAST", 0x7F)


@pytest.fixture(scope="session", params=["clip", "siglip"])
def zoo(request: pytest.FixtureRequest, one_thread: None) -> Zoo:
    return planted(request.param)
