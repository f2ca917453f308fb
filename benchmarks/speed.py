"""What a scan of a full-size tower costs: ``python -m benchmarks.speed [--baseline]``.

Builds suspect and anchor as `benchmarks.fullsize` does, scans one against the other with the
default profile, and prints for every stage its seconds, its floating-point operations (torch's
counter: matrix products) and the share of what matrix products alone reach on this machine; then
the same for the parts that the published method consists of. ``--baseline`` adds what these parts
take one prompt or point at a time in fp32, and the ratio. A table first, then JSON.

The weights are random, so the answer means nothing and a landscape is drawn; a scan that finds no
evidence draws none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fullsize import CLIP_L, build, configurations
from benchmarks.judge.baselines import load
from benchmarks.judge.markdown import table
from hf_amdet.detection.config import PAPER
from hf_amdet.detection.landscape import survey
from hf_amdet.detection.probes import encode_batch
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import DType, Runtime
from hf_amdet.detection.stages import Run
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.pipeline import ScanConfig, scan
from hf_amdet.prompts import load_prompts

_SHAPE = (4_096, 1_024, 4_096)
"""Of the matrix product that the machine is measured by."""
_POINTS = 15
"""Points along each axis of the landscape that is timed; the published one has 50."""


@dataclass(frozen=True)
class Work:
    """Something that was done, and what it took.

    Attributes:
        count: how many times it was done; `seconds` and `flops` are of all of them.
        loop_s: seconds of the same arithmetic unbatched and in fp32; None if not measured.
    """

    name: str
    count: int
    seconds: float
    flops: int
    loop_s: float | None = None


def main() -> None:
    options = _parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime = Runtime("cpu", options.dtype)
    peak = _peak(torch.bfloat16 if runtime.bf16 else torch.float32)
    with tempfile.TemporaryDirectory(prefix="speed-", dir=options.work) as name:
        folder = Path(name)
        build(configurations()[options.only], folder)
        stages = _scan(folder, options.dtype)
        start = time.perf_counter()
        suspect, anchor = (load(folder / repo) for repo in ("suspect", "anchor"))
        loading = Work("load two towers", 1, time.perf_counter() - start, 0)
    parts = [loading, *_parts(suspect, anchor, runtime, baseline=options.baseline)]
    print(
        f"{options.only}, {runtime.dtype}, {torch.get_num_threads()} threads; matrix products "
        f"reach {peak / 1e9:.0f} GFLOP/s.\n"
    )
    print(_table([*stages, *parts], peak))
    facts = {"only": options.only, "dtype": runtime.dtype, "threads": torch.get_num_threads()}
    works = {"stages": list(map(asdict, stages)), "parts": list(map(asdict, parts))}
    print(json.dumps({**facts, "peak": peak, **works}))


def _peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    rows, inner, columns = _SHAPE
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def _scan(folder: Path, dtype: DType) -> list[Work]:
    """The stages of a whole scan from local files to the report, and the sum."""
    flops: dict[str, int] = {}
    timed = Stopwatch.measure

    @contextmanager
    def counted(watch: Stopwatch, stage: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter, timed(watch, stage):
            yield
        flops[stage] = flops.get(stage, 0) + counter.get_total_flops()

    Stopwatch.measure = counted  # type: ignore[method-assign,assignment]
    try:
        start = time.perf_counter()
        config = ScanConfig(anchor=str(folder / "anchor"), device="cpu", dtype=dtype)
        report = scan(str(folder / "suspect"), config)
        whole = time.perf_counter() - start
    finally:
        Stopwatch.measure = timed  # type: ignore[method-assign]
    works = [Work(stage, 1, s, flops.get(stage, 0)) for stage, s in report.timings.items()]
    return [*works, Work("whole scan", 1, whole, sum(flops.values()))]


def _parts(
    suspect: ModelTower, anchor: ModelTower, runtime: Runtime, *, baseline: bool
) -> list[Work]:
    """What the published method consists of, at its sizes."""
    (settings,) = PAPER.inversions
    run = Run(suspect, anchor, PAPER, runtime, Observer(), 0)
    probes = run.probes(load_prompts().prompts)
    trigger = torch.randn(1, suspect.width, generator=run.generator(1))
    exact = Runtime("cpu", "fp32", batch=1)

    def features(runtime: Runtime, count: int) -> None:
        def work(part: slice) -> Tensor:
            return encode_batch(suspect, probes.optimise.rows(part), runtime).clean

        for _ in runtime.in_batches(work, count):
            pass

    def steps(runtime: Runtime, batch: int, count: int) -> None:
        few = replace(settings, batch=batch, steps=count, epochs=None)
        for _ in replace(run, runtime=runtime).inversion(probes, few, 100):
            pass

    def points(runtime: Runtime, grid: int) -> None:
        landscape = replace(PAPER.landscape, grid=grid)
        survey(suspect, anchor, probes.held_out, trigger, landscape, runtime, run.generator(2))

    few = 3
    works = [
        _counted("features of a prompt", 64, lambda: features(runtime, 64)),
        _counted("published step", 2, lambda: steps(runtime, settings.batch, 2)),
        _counted("landscape point", _POINTS**2, lambda: points(runtime, _POINTS)),
    ]
    if not baseline:
        return works
    loops: list[tuple[int, Callable[[], None]]] = [
        (8, lambda: features(exact, 8)),
        # As many steps of one prompt as a step has prompts.
        (1, lambda: steps(exact, 1, settings.batch)),
        (few**2, lambda: points(exact, few)),
    ]
    return [
        replace(work, loop_s=_seconds(loop) / count * work.count)
        for work, (count, loop) in zip(works, loops, strict=True)
    ]


def _counted(name: str, count: int, work: Callable[[], None]) -> Work:
    with FlopCounterMode(display=False) as counter:
        seconds = _seconds(work)
    return Work(name, count, seconds, counter.get_total_flops())


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _table(works: list[Work], peak: float) -> str:
    rows = []
    for work in works:
        loop = "-" if work.loop_s is None else f"{work.loop_s / work.count:.3f}"
        ratio = "-" if work.loop_s is None else f"{work.loop_s / work.seconds:.1f}"
        rows.append(
            [
                work.name,
                f"{work.seconds / work.count:.3f}",
                f"{work.flops / work.count / 1e9:.1f}",
                f"{work.flops / work.seconds / peak:.0%}",
                loop,
                ratio,
            ]
        )
    columns = ["work", "s", "GFLOP", "share of peak", "s, one at a time in fp32", "ratio"]
    return table(columns, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", choices=list(configurations()), default=CLIP_L)
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--baseline", action="store_true", help="the unbatched loop too; minutes")
    parser.add_argument("--work", type=Path, help="where some GB of weights are put for a while")
    return parser


if __name__ == "__main__":
    main()
