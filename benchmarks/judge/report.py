"""The section of docs/benchmarks.md, from the rows alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.judge import tables, twins
from benchmarks.judge.board import Board
from benchmarks.judge.contents import contents
from benchmarks.judge.decisions import ENTRIES
from benchmarks.judge.markdown import paragraph, splice
from benchmarks.judge.metrics import Outcome, ranks
from benchmarks.judge.plots import Curves, roc
from benchmarks.judge.splits import Split

_EXPLAINED = (
    "Thresholds, bands, probabilities (logistic in the score) and the shares behind `paper, "
    "calibrated` are fitted on the split `development` alone, so its rows are in-sample. A family "
    "that is left out is judged by thresholds from the development towers of the others. The "
    "baselines with a band flag what moved neither more nor less than development attacks did. F1 "
    "and AUROC with 95 % bootstrap intervals over bases, then training runs in them; recall and "
    "false alarms with exact 95 % bounds. Precision and F1 are at the zoo's own share of "
    "backdoors; exact bounds take towers as independent, the bootstrap does not. `no score`: "
    "judged without a figure (equal to the anchor, not scanned, failed): flagged only if the "
    "detector's own verdict says so, else ranked below all others; its probability is the share of "
    "backdoors in development. `no answer`: the verdict is inconclusive or not scanned. "
    "Cross-entropy in nats."
)


def write(board: Board, page: Path, images: Path) -> None:
    """Write the pictures into `images` and the section into `page`; all else in it stays.

    Raises:
        MarkerError: markers that do not enclose one section.
        RowError: a tower whose base or kind the splits do not name.
    """
    section = _section(board, _write_curves(board, images), page)
    # As bytes: line ends of the rest are none of ours.
    old = page.read_bytes().decode() if page.exists() else ""
    new = splice(old, section)
    # A kill leaves the old page or the new one.
    beside = page.with_name(f".{page.name}.new")
    beside.write_bytes(new.encode())
    beside.replace(page)


def _section(board: Board, images: Sequence[Path], page: Path) -> str:
    if not board.towers:
        return "No tower has been judged yet.\n"
    parts = [
        contents(board),
        "### Detectors\n\n",
        f"{paragraph(_EXPLAINED)}\n",
        tables.by_split(board),
    ]
    shown = " ".join(
        f"![ROC curves, {image.stem.removeprefix('zoo-roc-')}]"
        f"({os.path.relpath(image, page.parent)})"
        for image in images
    )
    parts += [f"\n{shown}\n" if shown else "", _remarks(board)]
    common = tables.head_to_head(board)
    if common is not None:
        parts += [
            f"\nThe same on the {len(common.counted)} towers that all detectors have judged:\n\n",
            tables.by_split(common),
        ]
    parts += [
        "\n### By family and kind\n\n",
        tables.by_kind(board),
        "\n### Drift against clean twins\n\n",
        twins.window_against_twins(board),
        "\n",
        tables.foreign_prompts(board),
        tables.seeds(board),
        tables.precision(board),
        "### Cost of a judgement\n\n",
        tables.cost(board),
    ]
    return "".join(parts)


def _remarks(board: Board) -> str:
    """What was left out."""
    remarks = []
    if board.outdated:
        remarks.append(f"Rows of detectors that have changed since, left out: {board.outdated}.")
    if board.failed:
        remarks.append(f"Judgements that failed, counted as `no score`: {board.failed}.")
    if board.unplanned:
        remarks.append(f"Towers that the plan no longer has, left out: {board.unplanned}.")
    return f"\n{paragraph(' '.join(remarks))}" if remarks else ""


def _write_curves(board: Board, images: Path) -> list[Path]:
    """One picture for the splits by base and kind, one for those by family."""
    splits = list(board.splits.all(board.counted))
    groups = {
        "zoo-roc-splits.svg": [split for split in splits if split.left_out is None],
        "zoo-roc-families.svg": [split for split in splits if split.left_out is not None],
    }
    written = []
    for name, of_group in groups.items():
        drawn = {split.name: _curves(board, split) for split in of_group}
        panels = {split: curves for split, curves in drawn.items() if curves}
        if panels:
            images.mkdir(parents=True, exist_ok=True)
            (images / name).write_bytes(roc(panels))
            written.append(images / name)
    return written


def _curves(board: Board, split: Split) -> Curves:
    """Entries of a detector that rank alike are drawn once."""
    curves: dict[str, list[Outcome]] = {}
    drawn = []
    for entry in board.entries(ENTRIES):
        outcomes = board.outcomes(entry, split)
        curve = entry.detector, ranks(outcomes)
        if outcomes and curve not in drawn:
            drawn.append(curve)
            curves[entry.name] = outcomes
    return curves
