"""How good detectors are: by split, by kind, on other prompts and seeds, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.judge.board import Board
from benchmarks.judge.decisions import ENTRIES, Entry
from benchmarks.judge.detectors import IN_FP32
from benchmarks.judge.markdown import NOTHING, Failures, counted, estimate, number, paragraph, table
from benchmarks.judge.metrics import Metrics, auroc, failed, flagged_share, measure
from benchmarks.judge.rows import ERROR, TowerRow
from benchmarks.judge.splits import DEVELOPMENT

MAIN = "default"
"""The entry whose figures by kind are given with their bounds."""
SCANNERS = ("default", "paper")
"""Detectors that may say that there is no answer."""

_BY_KIND = (
    "Towers of the split `development`, on which thresholds are fitted, are left out of these two "
    "tables."
)
_FOREIGN = (
    "The same towers, searched with the embedded prompts and with prompts of the grammar that "
    "they were not trained on."
)


def by_split(board: Board) -> str:
    """The main table: every entry on every split."""
    rows, failures = [], Failures()
    for split in board.splits.all(board.counted):
        name = split.name
        for entry in board.entries(ENTRIES):
            outcomes = board.outcomes(entry, split)
            if outcomes:
                # Equal draws for all entries, so that their intervals can be compared.
                metrics = measure(outcomes, np.random.default_rng(0))
                who = failures.star(entry.name, metrics.failed, f"{split.name} / {entry.name}")
                rows.append([name, who, *_figures(entry, metrics)])
                name = ""
    columns = ("split", "detector", "n+", "n−", "no score", "no answer", "precision", "recall")
    written = table((*columns, "F1", "AUROC", "false alarms", "Brier", "cross-entropy"), rows)
    return f"{written}{failures.note}"


def _figures(entry: Entry, metrics: Metrics) -> list[str]:
    n = metrics.positives + metrics.negatives
    answers = entry.decides == "verdict" and entry.detector in SCANNERS
    return [
        str(metrics.positives),
        str(metrics.negatives),
        str(metrics.unscored),
        f"{metrics.unanswered}/{n}" if answers else NOTHING,
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
    """Recall by family and attack, false alarms by family and benign kind; nothing in-sample."""
    held_out = [tower for tower in board.counted if board.splits.of(tower) != DEVELOPMENT]
    attacks = [tower for tower in held_out if tower.positive]
    others = [tower for tower in held_out if not tower.positive]
    return (
        f"{paragraph(_BY_KIND)}\n"
        "Recall (flagged of those that took):\n\n"
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
    rows, failures = [], Failures()
    for name, members in [*sorted(groups.items()), *sorted(kinds.items())]:
        cells = [name, str(len(members))]
        for entry in entries:
            ours = [o for o in decided[entry.name] if o.tower in members]
            share = flagged_share(ours, positive=towers[0].positive)
            cell = counted(share, bounds=entry.name == MAIN)
            cells.append(failures.star(cell, failed(ours), f"{name} / {entry.name}"))
        rows.append(cells)
    return f"{table((what, 'n', *(entry.name for entry in entries)), rows)}{failures.note}"


def foreign_prompts(board: Board) -> str:
    """Embedded against foreign prompts, on the towers that were judged with both; else nothing."""
    rows, failures = [], Failures()
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
        who = failures.star(entry.name, sum(map(failed, pairs)), entry.name)
        rows.append([who, *cells, f"{agreed}/{len(towers)}"])
    if not rows:
        return ""
    three = ("recall", "AUROC", "false alarms")
    columns = [f"{name}, {prompts}" for prompts in ("embedded", "foreign") for name in three]
    return (
        f"### Foreign prompts\n\n{paragraph(_FOREIGN)}\n"
        f"{table(('detector', *columns, 'same decision'), rows)}{failures.note}\n"
    )


def seeds(board: Board) -> str:
    """Whether seeds agree, on towers that were judged with several; else nothing."""
    rows, failures = [], Failures()
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
            who = failures.star(entry.name, sum(map(failed, by_seed)), entry.name)
            rows.append([who, str(max(map(len, several))), f"{agreed}/{len(several)}"])
    if not rows:
        return ""
    return (
        "### Seeds\n\nTowers on which all seeds decide alike; the tables above are of seed 0.\n\n"
        f"{table(('detector', 'seeds', 'alike'), rows)}{failures.note}\n"
    )


def precision(board: Board) -> str:
    """Whether bf16 and fp32 agree, on towers that were judged in both; else nothing."""
    in_fp32 = {case.tower.name: case.row for case in board.cases(IN_FP32, board.counted)}
    pairs = [
        (case.row, in_fp32[case.tower.name])
        for case in board.cases("default", board.counted)
        if case.row.dtype == "bf16" and case.tower.name in in_fp32
    ]
    if not pairs:
        return ""
    alike = sum(bf16.verdict == fp32.verdict for bf16, fp32 in pairs)
    apart = [
        abs(bf16.score - fp32.score)
        for bf16, fp32 in pairs
        if bf16.score is not None and fp32.score is not None
    ]
    text = (
        f"The default profile in bf16 and in fp32 gives {alike} of {len(pairs)} towers the same "
        f"verdict. Their scores differ by {number(float(np.median(apart)), 3)} in the median and "
        f"by {number(max(apart), 3)} at most."
    )
    return f"### Precision\n\n{paragraph(text)}\n"


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
