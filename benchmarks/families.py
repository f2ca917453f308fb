"""Scan the zoo's towers of every family: ``python -m benchmarks.families [--zoo zoo] [--seeds N]``.

Each tower is scanned against its family's anchor with the default profile, once a seed. Prints a
Markdown table and writes a JSON line a scan to ``OUT/families.jsonl``. The distance of an anchor
to a tower of another seed, ``--other clip=zoo/work/longclip-base-1``, is how far apart the weights
of towers are that have nothing to do with each other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file

from hf_amdet import ScanConfig, scan
from hf_amdet.report.schema import Report

FAMILIES = ("clip", "longclip", "siglip")
TOWERS = ("backdoored", "paired", "clean")
COLUMNS = (
    "family",
    "tower",
    "seed",
    "verdict",
    "consistency gap",
    "consistency",
    "anchor consistency",
    "divergence ratio",
    "weight distance",
    "seconds",
)


@dataclass(frozen=True)
class Scanned:
    """One scan; without statistics where a tower could not be read or searched."""

    family: str
    tower: str
    seed: int
    verdict: str
    reasons: list[str]
    statistics: dict[str, tuple[float, float | None, float | None]]
    """Value and, where measured, the ends of its interval."""
    distance: float | None
    seconds: float

    @classmethod
    def of(cls, report: Report, family: str, tower: str, seed: int) -> Scanned:
        reasons, statistics, distance = list(report.reasons), {}, None
        for entry in report.towers:
            reasons += entry.reasons
            statistics = {n: (s.value, s.low, s.high) for n, s in entry.statistics.items()}
            distance = entry.anchor.distance if entry.anchor else None
        return cls(
            family,
            tower,
            seed,
            report.verdict.value,
            [reason.code for reason in reasons],
            statistics,
            distance,
            sum(report.timings.values()),
        )

    def cells(self) -> tuple[str, ...]:
        """What stands under `COLUMNS`."""
        values = {name: value for name, (value, _, _) in self.statistics.items()}
        _, low, high = self.statistics.get("consistency_gap", (None, None, None))
        return (
            self.family,
            self.tower,
            str(self.seed),
            f"`{self.verdict}`",
            f"{_figure(values.get('consistency_gap'))} [{_figure(low)}, {_figure(high)}]",
            _figure(values.get("consistency")),
            _figure(values.get("anchor_consistency")),
            _figure(values.get("divergence_ratio"), 1),
            _figure(self.distance, 3),
            _figure(self.seconds, 1),
        )


def scans(zoo: Path, families: list[str], seeds: int) -> Iterator[Scanned]:
    """Scan what there is of `families` in `zoo`, one scan a tower and seed."""
    for family in families:
        anchor = zoo / family / "anchor"
        for tower in TOWERS:
            folder = zoo / family / tower
            if not folder.is_dir():
                continue
            for seed in range(seeds):
                report = scan(str(folder), ScanConfig(anchor=str(anchor), seed=seed))
                yield Scanned.of(report, family, tower, seed)


def weight_distance(first: Path, second: Path) -> float:
    """|F - S| / |S| over all weights but the token embeddings, as a report's anchor distance.

    Token embeddings are left out because tokenizers of other seeds have other tokens.
    """
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    apart = total = 0.0
    for name, weight in theirs.items():
        if "token_embedding" not in name and "projection" not in name:
            apart += (ours[name].double() - weight.double()).square().sum().item()
            total += weight.double().square().sum().item()
    return float((apart / total) ** 0.5)


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _named(value: str) -> tuple[str, Path]:
    family, equals, folder = value.partition("=")
    if family not in FAMILIES or not equals:
        raise argparse.ArgumentTypeError(f"FAMILY=DIR, with a family of {', '.join(FAMILIES)}")
    return family, Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="holds a folder a family")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="scan with seeds 0 to this less one")
    parser.add_argument("--other", type=_named, action="append", default=[], metavar="FAMILY=DIR")
    parser.add_argument("--out", type=Path, default=Path("zoo/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    with (options.out / "families.jsonl").open("w") as lines:
        for scanned in scans(options.zoo, options.family or list(FAMILIES), options.seeds):
            lines.write(json.dumps(asdict(scanned)) + "\n")
            lines.flush()
            print("| " + " | ".join(scanned.cells()) + " |", flush=True)
    for family, folder in options.other:
        distance = weight_distance(folder, options.zoo / family / "anchor")
        print(
            f"\n{family}: the distance of its anchor to a tower of another seed is {distance:.3f}."
        )


if __name__ == "__main__":
    main()
