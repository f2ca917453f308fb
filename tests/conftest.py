"""Settings and fixtures for all tests."""

import os
import tempfile

# huggingface_hub reads its settings once, at import: they have to stand before anything imports
# it. A home of its own keeps a developer's token and downloads out of the tests; without xet an
# upload takes the plain LFS protocol, which is what the double speaks.
_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ.setdefault("HF_HOME", _HOME.name)
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(_name, None)

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402

from tests.hub_double import HubDouble  # noqa: E402


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    """A fresh, empty hub that is being served; its address is `hub.endpoint`."""
    double = HubDouble()
    with double.serve():
        yield double
