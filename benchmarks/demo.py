"""Cost of the demo on this machine: ``python -m benchmarks.demo [--runs 3]``.

Runs `hf-amdet --help` and `hf-amdet demo` as processes of their own and prints, as a table and as
JSON, median, least and most wall seconds and the peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

COMMANDS = {"--help": ("--help",), "demo": ("demo", "--quiet")}


@dataclass(frozen=True)
class Cost:
    """Wall seconds over some runs, and the largest peak resident memory among them."""

    runs: int
    median_s: float
    least_s: float
    most_s: float
    peak_mib: float


def measure(arguments: tuple[str, ...], runs: int) -> Cost:
    """Run `hf-amdet` with `arguments`, once to warm the file cache and then `runs` times."""
    seconds, peaks = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        running = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "hf_amdet", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(running.pid, 0)
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"hf-amdet {' '.join(arguments)} failed")
    timed = seconds[1:]
    return Cost(runs, statistics.median(timed), min(timed), max(timed), max(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    costs = {name: measure(arguments, runs) for name, arguments in COMMANDS.items()}
    print("| command | runs | median s | least s | most s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for name, cost in costs.items():
        print(
            f"| `hf-amdet {name}` | {cost.runs} | {cost.median_s:.2f} | {cost.least_s:.2f} "
            f"| {cost.most_s:.2f} | {cost.peak_mib:.0f} |"
        )
    print(json.dumps({name: asdict(cost) for name, cost in costs.items()}))


if __name__ == "__main__":
    main()
