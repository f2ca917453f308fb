"""Judge all detectors on the zoo: ``python -m benchmarks.evaluate [--size small|full]``.

Makes the towers that are missing, asks every detector about every tower that has no line in
RESULTS yet, prints a line for each, and writes the section of docs/benchmarks.md. Interrupted, it
goes on where it stopped; runs add up. ``--report-only`` needs no towers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.judge.detectors import IN_FP32, Job, detectors
from benchmarks.judge.parsing import JudgeError
from benchmarks.judge.rows import ERROR, Prompts, ScoreRow, Stores, TowerRow
from benchmarks.judge.splits import Splits
from benchmarks.judge.towers import prompts_file, towers_in
from benchmarks.judge.work import judge


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where judgements failed, 2 where all had to stop, 130 where interrupted."""
    options = _parser().parse_args(arguments)
    stores = Stores(options.results)
    failed: list[str] = []
    try:
        if not options.report_only:
            failed = _judge(options, stores)
        _report(options, stores)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print(
            "A worker was killed, most likely because memory ran out. Give fewer --workers; what "
            "was judged is kept.",
            file=sys.stderr,
        )
        return 2
    except JudgeError as error:
        print(error, file=sys.stderr)
        return 2
    for failure in failed:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failed else 0


def _report(options: argparse.Namespace, stores: Stores) -> None:
    # Each worker imports this module, and needs no plots and no fits.
    from benchmarks.judge.board import Board
    from benchmarks.judge.report import write

    hashes = {name: detector.hash for name, detector in detectors().items()}
    board = Board.read(stores, hashes, Splits(), _planned())
    write(board, options.docs, options.docs.parent / "images")


def _planned() -> set[str]:
    """The names of all towers of the zoo."""
    from benchmarks.zoo.plan import entries

    return {entry.name for entry in entries("full")}


def _judge(options: argparse.Namespace, stores: Stores) -> list[str]:
    """Make what is missing; returns what failed."""
    folders, failed = _folders(options)
    # Of what was planted and did not take nothing is counted.
    towers = [(folder, row) for folder, row in _towers(options, stores, folders) if row.counts]
    names = options.detector or [name for name in detectors() if name != IN_FP32]
    done = {row.key for row in stores.scores.rows() if row.verdict != ERROR}
    jobs = {}
    for name in names:
        for seed in range(options.seeds):
            for folder, tower in towers:
                job = _job(options, tower, folder, name, seed)
                if job.key not in done:
                    jobs[job.key] = job
    print(f"{len(towers)} towers that count, {len(jobs)} judgements to make", flush=True)
    for number, (job, row, error) in enumerate(judge(list(jobs.values()), options.workers), 1):
        stores.scores.append([row])
        print(f"{number}/{len(jobs)} {_line(job, row)}", flush=True)
        if error:
            failed.append(f"{job.tower.name}, {job.detector}: {error}")
    return failed


def _folders(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The folders of the zoo that there are, and what could not be made."""
    if options.no_make:
        return towers_in(options.zoo, _planned()), []
    from benchmarks.zoo.make import make

    folders: list[Path] = []
    try:
        for entry, folder in make(options.size, options.zoo, options.workers):
            print(f"tower {entry.name}", flush=True)
            folders.append(folder)
    except BrokenProcessPool:
        raise
    except RuntimeError as error:
        return sorted(folders), [str(error)]
    return sorted(folders), []


def _towers(
    options: argparse.Namespace, stores: Stores, folders: Sequence[Path]
) -> list[tuple[Path, TowerRow]]:
    """`folders` with their rows, which are written down where they are new."""
    known = {row.name: row for row in stores.towers.rows()}
    splits, found = Splits(), []
    for folder in folders:
        row = TowerRow.read(folder, options.zoo)
        splits.of(row)
        if known.get(row.name) != row:
            stores.towers.append([row])
        found.append((folder, row))
    return found


def _job(options: argparse.Namespace, tower: TowerRow, folder: Path, name: str, seed: int) -> Job:
    prompts: Prompts = options.prompts
    file = prompts_file(options.zoo, tower.base) if prompts == "foreign" else None
    return Job(tower, folder, options.zoo / tower.anchor, name, seed, prompts, file)


def _line(job: Job, row: ScoreRow) -> str:
    score = "-" if row.score is None else f"{row.score:.3f}"
    return f"{job.tower.name} {row.detector} {row.verdict or '-'} {score} {row.seconds:.1f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="where the towers are")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/zoo"))
    parser.add_argument(
        "--detector", choices=list(detectors()), action="append", help=f"default: all but {IN_FP32}"
    )
    parser.add_argument("--seeds", type=_positive, default=1, help="seeds 0 to this less one")
    parser.add_argument("--prompts", choices=("embedded", "foreign"), default="embedded")
    parser.add_argument(
        "--workers", type=_positive, default=len(os.sched_getaffinity(0)), help="processes"
    )
    parser.add_argument(
        "--no-make", action="store_true", help="judge the towers that stand in the zoo, all sizes"
    )
    parser.add_argument("--report-only", action="store_true", help="from the lines in RESULTS")
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    return parser


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more.")
    return number


if __name__ == "__main__":
    sys.exit(main())
