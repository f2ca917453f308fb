"""How a running detection is watched, without it knowing who watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Observer:
    """Receives progress; the base class ignores it."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins; 0 where their number is not known."""

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        """So much of the current stage is done; `loss` is the lowest of the restarts'."""


class Stopwatch:
    """Seconds by stage; a stage entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
