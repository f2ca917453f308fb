"""Fixtures for the tests of `hf_amdet.hub`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save

from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import tower
from tests.hub.text_side import TEXT, Arrays, arrays_of
from tests.hub_double import HubDouble


@pytest.fixture
def at(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The double as the code is told of it, without a token and with an empty cache.

    Retries do not wait.
    """
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Hub(hub.endpoint, cache_dir=tmp_path / "cache")


@pytest.fixture(scope="session")
def clip() -> Arrays:
    """3 MiB of text between 4 MiB of other things."""
    return {**arrays_of(*TEXT, rows=768), **arrays_of("logit_scale", "vision_model", rows=2048)}


@pytest.fixture
def repo(hub: HubDouble, at: Hub, clip: Arrays) -> ResolvedRepo:
    """A model with these arrays on the Hub, whose log is empty."""
    hub.add_repo("org/model", tower(model__safetensors=save(clip)))
    found = resolve("org/model", at)
    hub.forget_requests()
    return found


@pytest.fixture
def into(tmp_path: Path) -> Iterator[Path]:
    """Where to fetch to; holds nothing, or a whole tower, when the test is over."""
    folder = tmp_path / "into"
    yield folder
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert not names or "config.json" in names
