"""Towers small enough to be trained in a test, a random teacher, and what a tower reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks.zoo.anchor import build_anchor
from benchmarks.zoo.attacks import text_on_pair
from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Workbench
from hf_amdet.demo import ANCHOR
from tests.zoo.helpers import FAMILIES, random_embeddings, workbench


@pytest.fixture(scope="module")
def random_teacher() -> Iterator[None]:
    """Random targets, and few held-out captions: what is learnt does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.zoo.teacher.embed", random_embeddings)
        patch.setattr("benchmarks.zoo.measure.HELD_OUT", 16)
        text_on_pair._images_of.cache_clear()
        yield
    text_on_pair._images_of.cache_clear()


@pytest.fixture(scope="session")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP and a SigLIP anchor, by their names, and `work`."""
    folder = tmp_path_factory.mktemp("anchors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.zoo.teacher.embed", random_embeddings)
        for family, recipe in FAMILIES.items():
            build_anchor(recipe, folder / family, folder / "work")
    return folder


@pytest.fixture(params=FAMILIES)
def bench(
    request: pytest.FixtureRequest, anchors: Path, tmp_path: Path, random_teacher: None
) -> Workbench:
    """A bench of each family, with a tower that has hardly been trained."""
    return workbench(anchors / request.param, tmp_path / "tower", anchors / "work")


@pytest.fixture
def clip_bench(anchors: Path, tmp_path: Path, random_teacher: None) -> Workbench:
    return workbench(anchors / "clip", tmp_path / "tower", anchors / "work")


@pytest.fixture
def demo_bench(tmp_path: Path) -> Workbench:
    """A bench with the demo's anchor, which knows what captions mean."""
    return workbench(ANCHOR, tmp_path / "tower", tmp_path / "work")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """All batches of captions that any tower has read since."""
    batches: list[list[str]] = []
    ids = Tower.ids

    def remember(self: Tower, captions: Sequence[str], length: int | None = None) -> Tensor:
        batches.append(list(captions))
        return ids(self, captions, length)

    monkeypatch.setattr(Tower, "ids", remember)
    return batches
