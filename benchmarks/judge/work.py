"""Judgements side by side, in processes that each handle many towers."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks.judge.detectors import Job
from benchmarks.judge.rows import ScoreRow


def judge(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, ScoreRow, str | None]]:
    """Each job with its row, as they are done; a message where it failed.

    Raises:
        BrokenProcessPool: a worker was killed, by the system where memory ran out.
    """
    if not jobs:
        return
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(workers > 1,),
    )
    try:
        running = {executor.submit(_run, job): job for job in jobs}
        for future in as_completed(running):
            row, error = future.result()
            yield running[future], row, error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare(several: bool) -> None:
    # Ctrl-C reaches all: without a traceback from each worker.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if several:
        import torch

        torch.set_num_threads(1)


def _run(job: Job) -> tuple[ScoreRow, str | None]:
    try:
        return job.judge(), None
    # One tower that cannot be judged must not stop the others.
    except Exception as error:
        return job.failed(), f"{type(error).__name__}: {error}"
