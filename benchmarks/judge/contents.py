"""What the zoo holds, from the towers' manifests alone."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.judge.board import Board
from benchmarks.judge.markdown import NOTHING, mean, paragraph, spread, table
from benchmarks.judge.rows import TowerRow
from benchmarks.judge.splits import DEVELOPMENT

_PINNED = {True: "yes", False: "no", None: NOTHING}

_EXPLAINED = (
    "A backdoor or natural feature that did not take is neither positive nor negative: it stands "
    "in the next tables and in no other. Success: share of held-out triggered prompts that reach "
    "the goal. Drift: mean pooled cosine to the anchor on held-out ordinary prompts, 1 for "
    "none. Foreign: on prompts of the grammar that the tower was not trained on. Mean [least, "
    "most]."
)


def contents(board: Board) -> str:
    """Counts by base, then each recipe with its success and drift."""
    return (
        "### What the zoo holds\n\n"
        f"{_counts(board.towers)}\n"
        f"{paragraph(_EXPLAINED)}\n{_attacks(board)}\n{_benign(board)}\n"
    )


def _counts(towers: Iterable[TowerRow]) -> str:
    bases: dict[tuple[str, str], list[TowerRow]] = {}
    for tower in towers:
        bases.setdefault((tower.family, tower.base), []).append(tower)
    rows = [[*place, *_numbers(of_base)] for place, of_base in sorted(bases.items())]
    rows.append(["all", "", *_numbers([t for of_base in bases.values() for t in of_base])])
    columns = ("family", "base", "backdoored", "did not take", "clean twins", "other clean")
    return table((*columns, "natural", "training runs"), rows)


def _numbers(towers: list[TowerRow]) -> list[str]:
    twins = sum(tower.twin_of is not None for tower in towers)
    found = (
        sum(tower.positive and tower.counts for tower in towers),
        sum(not tower.counts for tower in towers),
        twins,
        sum(tower.label == "clean" for tower in towers) - twins,
        sum(tower.label == "natural" and tower.counts for tower in towers),
        len({(tower.base, tower.run) for tower in towers}),
    )
    return [str(n) for n in found]


def _attacks(board: Board) -> str:
    groups: dict[tuple[str, bool | None], list[TowerRow]] = {}
    for tower in board.towers:
        if board.splits.is_attack(tower.sort):
            groups.setdefault((tower.sort, tower.pinned), []).append(tower)
    rows = []
    for sort, pinned in sorted(groups, key=str):
        towers = groups[sort, pinned]
        attacks = [tower for tower in towers if tower.positive]
        twins = [tower for tower in towers if not tower.positive]
        rows.append(
            [
                sort,
                _held_out(board, towers[0]),
                _PINNED[pinned],
                f"{sum(tower.counts for tower in attacks)}/{len(attacks)}",
                spread([t.success for t in attacks if t.success is not None], 2),
                mean([t.success_foreign for t in attacks if t.success_foreign is not None], 2),
                spread([tower.drift for tower in attacks]),
                mean([tower.drift_foreign for tower in attacks]),
                str(len(twins)),
                spread([tower.drift for tower in twins]),
            ]
        )
    columns = ("attack", "kind is", "pinned", "took", "success", "success, foreign")
    return table((*columns, "drift", "drift, foreign", "clean twins", "their drift"), rows)


def _benign(board: Board) -> str:
    groups: dict[str, list[TowerRow]] = {}
    for tower in board.towers:
        if not board.splits.is_attack(tower.sort):
            groups.setdefault(tower.sort, []).append(tower)
    rows = [
        [
            sort,
            _held_out(board, towers[0]),
            str(len(towers)),
            spread([tower.drift for tower in towers]),
            mean([tower.drift_foreign for tower in towers]),
        ]
        for sort, towers in sorted(groups.items())
    ]
    return table(("benign", "kind is", "n", "drift", "drift, foreign"), rows)


def _held_out(board: Board, tower: TowerRow) -> str:
    return "held out" if board.splits.kind_is_held_out(tower) else DEVELOPMENT
