"""How good detectors are: by split, by kind, against the drift window, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.judge.board import Board
from benchmarks.judge.decisions import ENTRIES
from benchmarks.judge.markdown import counted, estimate, number, paragraph, table
from benchmarks.judge.metrics import Metrics, Outcome, auroc, flagged_share, measure
from benchmarks.judge.rows import ERROR, TowerRow

MAIN = "default"
"""The entry whose figures by kind are given with their bounds."""
WINDOW = "drift-window"
GOAL = 0.7
"""The window's AUROC against clean twins, above which the zoo is confounded by drift."""

_TWINS = (
    "Attacks that took against their clean twins (same data, steps, pinning and loss, without the "
    f"trigger). An AUROC below {GOAL} is the goal: above it, drift alone would tell them apart. "
    "For the plain drift the better direction is taken."
)
_FOREIGN = (
    "The same towers, searched with the embedded prompts and with prompts of the grammar that "
    "they were not trained on."
)


def by_split(board: Board) -> str:
    """The main table: every entry on every split."""
    rows = []
    for split in board.splits.all(board.counted):
        name = split.name
        for entry in board.entries(ENTRIES):
            outcomes = board.outcomes(entry, split)
            if outcomes:
                # Equal draws for all entries, so that their intervals can be compared.
                metrics = measure(outcomes, np.random.default_rng(0))
                rows.append([name, entry.name, *_figures(metrics)])
                name = ""
    columns = ("split", "detector", "n+", "n−", "no score", "precision", "recall", "F1", "AUROC")
    return table((*columns, "false alarms", "Brier", "cross-entropy"), rows)


def _figures(metrics: Metrics) -> list[str]:
    return [
        str(metrics.positives),
        str(metrics.negatives),
        str(metrics.unscored),
        number(metrics.precision),
        counted(metrics.recall),
        estimate(metrics.f1, metrics.f1_interval),
        estimate(metrics.auroc, metrics.auroc_interval),
        counted(metrics.false_alarms),
        number(metrics.brier, 3),
        number(metrics.cross_entropy, 3),
    ]


def head_to_head(board: Board) -> Board | None:
    """The towers that every detector has judged; None where that is all of them or none."""
    judged = [
        {case.tower.name for case in board.cases(entry.detector, board.counted)}
        for entry in board.entries(ENTRIES)
    ]
    if not judged or all(names == judged[0] for names in judged):
        return None
    common = set.intersection(*judged)
    return board.only(t for t in board.towers if t.name in common) if common else None


def by_kind(board: Board) -> str:
    """Recall by family and attack, false alarms by family and benign kind."""
    attacks = [tower for tower in board.counted if tower.positive]
    others = [tower for tower in board.counted if not tower.positive]
    return (
        "Recall (flagged of those that took), thresholds from development:\n\n"
        f"{_by_kind(board, attacks, 'attack')}\n"
        "False alarms (flagged of those without a backdoor):\n\n"
        f"{_by_kind(board, others, 'benign')}"
    )


def _by_kind(board: Board, towers: Sequence[TowerRow], what: str) -> str:
    if not towers:
        return "None.\n"
    groups: dict[str, set[str]] = {}
    for tower in towers:
        groups.setdefault(f"all {tower.family}", set()).add(tower.name)
    kinds: dict[str, set[str]] = {}
    for tower in towers:
        name = f"twin of {tower.twin_of}" if tower.twin_of else tower.kind
        if board.splits.kind_is_held_out(tower):
            name += " (held out)"
        kinds.setdefault(name, set()).add(tower.name)
    entries = board.entries(ENTRIES)
    # Thresholds belong to development and are the same for each group.
    decided = {entry.name: board.outcomes(entry, board.whole(towers)) for entry in entries}
    rows = []
    for name, members in [*sorted(groups.items()), *sorted(kinds.items())]:
        cells = [name, str(len(members))]
        for entry in entries:
            ours = [o for o in decided[entry.name] if o.tower in members]
            share = flagged_share(ours, positive=towers[0].positive)
            cells.append(counted(share, bounds=entry.name == MAIN))
        rows.append(cells)
    return table((what, "n", *(entry.name for entry in entries)), rows)


def window_against_twins(board: Board) -> str:
    """How well the drift alone tells attacks from their clean twins."""
    rows = []
    families = sorted({tower.family for tower in board.counted})
    for name, of_family in [("all", families), *((family, [family]) for family in families)]:
        towers = [tower for tower in board.counted if tower.family in of_family]
        outcomes = _twinned(board, towers)
        metrics = measure(outcomes, np.random.default_rng(0))
        decisions = auroc(_scored(outcomes, [float(bool(o.flagged)) for o in outcomes]))
        drifts = _drifts(board, towers)
        plain = auroc(_scored(outcomes, [drifts[outcome.tower] for outcome in outcomes]))
        rows.append(
            [
                name,
                str(metrics.positives),
                str(metrics.negatives),
                number(decisions),
                estimate(metrics.auroc, metrics.auroc_interval),
                number(None if plain is None else max(plain, 1 - plain)),
            ]
        )
    columns = ("family", "attacks", "twins", "AUROC of the window", "of its score")
    return f"{paragraph(_TWINS)}\n{table((*columns, 'of the plain drift'), rows)}"


def _twinned(board: Board, towers: Sequence[TowerRow]) -> list[Outcome]:
    """The window's decisions on runs of which both attack and twin were judged."""
    drifts = _drifts(board, towers)
    judged = [tower for tower in towers if tower.name in drifts]
    attacks = {tower.run for tower in judged if tower.positive}
    twins = {tower.run for tower in judged if tower.twin_of}
    pairs = [t for t in judged if t.run in attacks & twins and (t.positive or t.twin_of)]
    (entry,) = (entry for entry in ENTRIES if entry.name == WINDOW)
    return board.outcomes(entry, board.whole(pairs))


def _drifts(board: Board, towers: Sequence[TowerRow]) -> dict[str, float]:
    """The drift of each tower that the window could measure, by name."""
    rows = {case.tower.name: case.row.statistics for case in board.cases(WINDOW, towers)}
    return {name: found["drift"] for name, found in rows.items() if "drift" in found}


def _scored(outcomes: Sequence[Outcome], scores: Sequence[float]) -> list[Outcome]:
    """The same with other scores."""
    return [replace(o, score=score) for o, score in zip(outcomes, scores, strict=True)]


def foreign_prompts(board: Board) -> str:
    """Embedded against foreign prompts, on the towers that were judged with both; else nothing."""
    rows = []
    for entry in board.entries(ENTRIES):
        foreign = {c.tower.name for c in board.cases(entry.detector, board.counted, 0, "foreign")}
        towers = [tower for tower in board.counted if tower.name in foreign]
        pairs = [
            board.outcomes(entry, board.whole(towers), 0, prompts)
            for prompts in ("embedded", "foreign")
        ]
        if not foreign or len(pairs[0]) != len(pairs[1]):
            continue
        agreed = sum(a.flagged == b.flagged for a, b in zip(*pairs, strict=True))
        cells = []
        for outcomes in pairs:
            recall, alarms = (flagged_share(outcomes, positive=p) for p in (True, False))
            cells += [counted(recall), number(auroc(outcomes)), counted(alarms)]
        rows.append([entry.name, *cells, f"{agreed}/{len(towers)}"])
    if not rows:
        return ""
    three = ("recall", "AUROC", "false alarms")
    columns = [f"{name}, {prompts}" for prompts in ("embedded", "foreign") for name in three]
    return (
        f"### Foreign prompts\n\n{paragraph(_FOREIGN)}\n"
        f"{table(('detector', *columns, 'same decision'), rows)}\n"
    )


def seeds(board: Board) -> str:
    """Whether seeds agree, on towers that were judged with several; else nothing."""
    rows = []
    numbers = sorted({row.seed for row in board.rows})
    for entry in board.entries(ENTRIES):
        by_seed = [board.outcomes(entry, board.whole(), seed) for seed in numbers]
        flags: dict[str, list[bool | None]] = {}
        for outcomes in by_seed:
            for outcome in outcomes:
                flags.setdefault(outcome.tower, []).append(outcome.flagged)
        several = [answers for answers in flags.values() if len(answers) > 1]
        if several:
            agreed = sum(len(set(answers)) == 1 for answers in several)
            rows.append([entry.name, str(max(map(len, several))), f"{agreed}/{len(several)}"])
    if not rows:
        return ""
    return (
        "### Seeds\n\nTowers on which all seeds decide alike; the tables above are of seed 0.\n\n"
        f"{table(('detector', 'seeds', 'alike'), rows)}\n"
    )


def cost(board: Board) -> str:
    """Seconds and memory of a judgement."""
    rows = []
    for detector in dict.fromkeys(entry.detector for entry in board.entries(ENTRIES)):
        done = [r for r in board.rows if r.detector == detector and r.verdict != ERROR]
        peaks = [row.peak_mib for row in done if row.peak_mib is not None]
        if done:
            rows.append(
                [
                    detector,
                    ", ".join(sorted({row.dtype for row in done})),
                    str(len(done)),
                    *_percentiles([row.seconds for row in done]),
                    *_percentiles(peaks),
                ]
            )
    columns = ("detector", "precision", "judgements", "s, median", "s, 95th percentile")
    return table((*columns, "peak MiB, median", "peak MiB, 95th percentile"), rows)


def _percentiles(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return number(None), number(None)
    median, high = np.percentile(values, (50, 95))
    digits = 0 if median >= 100 else 1
    return number(float(median), digits), number(float(high), digits)
