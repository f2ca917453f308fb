"""What each part of the search brings: ``python -m benchmarks.ablation [--zoo zoo]``.

Runs every variant on the development towers that stand in the zoo (splits.toml: nothing else may
decide how the detector is built), prints a line for each tower, and writes the table into
docs/benchmarks.md. A tower that has its line in RESULTS is not searched again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.judge.baselines import load
from benchmarks.judge.detectors import detectors
from benchmarks.judge.markdown import number, paragraph, table
from benchmarks.judge.rows import TowerRow
from benchmarks.judge.splits import DEVELOPMENT, Splits
from benchmarks.judge.towers import towers_in
from benchmarks.zoo.plan import entries
from hf_amdet.detection.config import DEFAULT, InversionSettings, SweepSettings
from hf_amdet.detection.contrast import real_tokens
from hf_amdet.detection.objective import Batch, ConsistencyGap, PublishedObjective, consistency
from hf_amdet.detection.progress import Observer
from hf_amdet.detection.runtime import Runtime
from hf_amdet.detection.stages import Run
from hf_amdet.encoders.base import Features
from hf_amdet.prompts import load_prompts

BEGIN, END = "<!-- ablation:begin -->", "<!-- ablation:end -->"
_WEAK = "attribute"
"""The attack that none of the variants finds; shown beside the others, not among them."""


@dataclass(frozen=True)
class PooledContrast:
    """cos(A(v), T(v)) - consistency(T(v)): the suspect's features become one, not the anchor's."""

    name: ClassVar[str] = "pooled-contrast"

    def __call__(self, batch: Batch, suspect: Features, anchor: Features) -> Tensor:
        del batch
        alike = cosine_similarity(anchor.pooled.float(), suspect.pooled.float(), dim=-1)
        return alike.mean(dim=-1) - consistency(suspect.pooled)


_NEAR = DEFAULT.inversions[0]


def _far(objective: PublishedObjective | PooledContrast | ConsistencyGap) -> InversionSettings:
    """From N(0, I), as published, with as many prompts encoded as among rows."""
    return InversionSettings(objective, _NEAR.restarts, _NEAR.steps, _NEAR.batch)


VARIANTS: Mapping[str, InversionSettings | SweepSettings] = {
    "published, from N(0, I)": _far(PublishedObjective()),
    "pooled contrast, from N(0, I)": _far(PooledContrast()),
    "consistency gap, from N(0, I)": _far(ConsistencyGap()),
    "pooled contrast, among rows": replace(_NEAR, objective=PooledContrast()),
    "consistency gap, among rows": _NEAR,
    "consistency gap, among rows, k = 3": replace(_NEAR, trigger_length=3),
    "real tokens, 1 in the last round": SweepSettings(kept=1, verified=1),
    "real tokens, all in the second round": SweepSettings(screened=1.0),
    "real tokens": SweepSettings(),
}


def widest_gap(
    run: Run, prompts: Sequence[str], variant: InversionSettings | SweepSettings
) -> float:
    """The widest consistency gap on held-out prompts of what a variant finds."""
    if isinstance(variant, SweepSettings):
        ours, theirs = (run.probes(prompts, tower) for tower in (run.suspect, run.anchor))
        candidates = real_tokens(run, prompts, ours, theirs, variant)
    else:
        run = replace(run, profile=replace(run.profile, inversions=(variant,)))
        probes = run.probes(prompts)
        search = run.inversion(probes, variant, 100)
        for _ in search:
            pass
        candidates = run.judge(probes, [search.candidates])
    return max(c.statistics["consistency_gap"].value for c in candidates)


@dataclass(frozen=True)
class Line:
    """A tower and the widest gap that each variant found, by name.

    Attributes:
        code: hash of the detection that searched.
    """

    name: str
    code: str
    weights: str
    kind: str
    backdoored: bool
    gaps: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    code = detectors()["default"].hash
    done = {(line.name, line.weights): line for line in _read(options.results) if line.code == code}
    splits, lines = Splits(), []
    for folder in towers_in(options.zoo, {entry.name for entry in entries("full")}):
        tower = TowerRow.read(folder, options.zoo)
        if not tower.counts or splits.of(tower) != DEVELOPMENT:
            continue
        line = done.get((tower.name, tower.weights))
        if line is None or line.gaps.keys() != VARIANTS.keys():
            line = _search(tower, folder, options.zoo / tower.anchor, code)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(line), sort_keys=True) + "\n")
            print(line.name, {name: round(gap, 2) for name, gap in line.gaps.items()}, flush=True)
        lines.append(line)
    page = options.docs.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    options.docs.write_text(f"{before}{BEGIN}\n{_section(lines)}{END}{after}", encoding="utf-8")
    return 0


def _search(tower: TowerRow, folder: Path, anchor: Path, code: str) -> Line:
    prompts = load_prompts(None).prompts
    run = Run(load(folder), load(anchor), DEFAULT, Runtime("cpu"), Observer(), 0)
    gaps = {name: widest_gap(run, prompts, variant) for name, variant in VARIANTS.items()}
    return Line(tower.name, code, tower.weights, tower.sort, tower.label == "backdoored", gaps)


def _section(lines: Sequence[Line]) -> str:
    """The table: how far each variant keeps attacks and clean towers apart."""
    attacks = [line for line in lines if line.backdoored and line.kind != _WEAK]
    weak = [line for line in lines if line.backdoored and line.kind == _WEAK]
    clean = [line for line in lines if not line.backdoored]
    if not attacks or not clean:
        return "No development tower has been searched yet.\n"
    rows = []
    for name in VARIANTS:
        found, missed, none = (
            [line.gaps[name] for line in part] for part in (attacks, weak, clean)
        )
        area = roc_auc_score([1] * len(found) + [0] * len(none), found + none)
        ends = (min(found), max(none), min(found) - max(none), area)
        rows.append([name, *map(number, ends), number(max(missed, default=None))])
    text = paragraph(
        f"{len(attacks)} attacks that took and {len(clean)} clean towers, twins among them, of the "
        "development split. The widest consistency gap on held-out prompts: the least of the "
        "attacks, the largest of the clean towers, the room between them, the AUROC, and the "
        f"largest of {len(weak)} attribute attacks, which stand outside of all other columns."
    )
    columns = ["search", "least attack", "largest clean", "room", "AUROC", "attribute"]
    return f"{text}\n{table(columns, rows)}"


def _read(results: Path) -> list[Line]:
    if not results.exists():
        return []
    return [Line(**json.loads(row)) for row in results.read_text(encoding="utf-8").splitlines()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--zoo", type=Path, default=Path("zoo"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
