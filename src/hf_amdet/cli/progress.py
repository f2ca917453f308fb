"""Live progress on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hf_amdet.detection.progress import Observer


class LiveObserver(Observer):
    """A bar for every stage, with steps, loss and time left; nothing where stderr is no terminal.

    Use as a context manager.
    """

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        self._finish()
        self._task = self._progress.add_task(name, total=total or None, loss="")

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        if self._task is None:
            return
        shown = "" if loss is None else f"loss {loss:+.3f}"
        self._progress.update(self._task, completed=done, total=total, loss=shown)

    def _finish(self) -> None:
        """The stage before is over, however many of its steps were needed."""
        if self._task is not None:
            done = self._progress.tasks[self._task].completed
            self._progress.update(self._task, total=done or 1, completed=done or 1)

    def __enter__(self) -> LiveObserver:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        self._progress.stop()
