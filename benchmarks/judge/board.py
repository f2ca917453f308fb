"""All results that count, joined: towers, and what current detectors say of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.judge.decisions import Case, Entry, decide
from benchmarks.judge.metrics import Outcome
from benchmarks.judge.parsing import RowError
from benchmarks.judge.rows import ERROR, Prompts, ScoreRow, Stores, TowerRow
from benchmarks.judge.splits import DEVELOPMENT, Split, Splits

Place = tuple[str, str, str, int, Prompts]
"""Weights, the anchor's weights, detector, seed and prompts."""


@dataclass(frozen=True)
class Board:
    """Rows of current detectors on the towers of the plan.

    Attributes:
        towers: in the order in which they were first judged.
        outdated: how many rows were left out because their detector has changed since.
        unplanned: how many towers were left out because the plan no longer has them.
    """

    towers: tuple[TowerRow, ...]
    splits: Splits
    scores: Mapping[Place, ScoreRow]
    outdated: int
    unplanned: int

    @classmethod
    def read(
        cls, stores: Stores, hashes: Mapping[str, str], splits: Splits, names: Collection[str]
    ) -> Board:
        """The rows of `stores` whose detector has one of `hashes`, by name.

        Args:
            names: of the towers that the plan has.

        Raises:
            RowError: a line that is no row, or two towers that count and are the same.
        """
        known = stores.towers.rows()
        towers = tuple(tower for tower in known if tower.name in names)
        _refuse_equal(tower for tower in towers if tower.counts)
        rows = stores.scores.rows()
        current = [row for row in rows if hashes.get(row.detector) == row.detector_hash]
        scores = {place_of(row): row for row in current}
        outdated, unplanned = len(rows) - len(current), len(known) - len(towers)
        return cls(towers, splits, scores, outdated, unplanned)

    @property
    def counted(self) -> tuple[TowerRow, ...]:
        """The towers that are positives or negatives."""
        return tuple(tower for tower in self.towers if tower.counts)

    @property
    def rows(self) -> tuple[ScoreRow, ...]:
        """What is known of the towers that there are."""
        ours = {(tower.weights, tower.anchor_weights) for tower in self.towers}
        return tuple(r for r in self.scores.values() if (r.weights, r.anchor_weights) in ours)

    @property
    def failed(self) -> int:
        """How many judgements could not be made."""
        return sum(row.verdict == ERROR for row in self.rows)

    def only(self, towers: Iterable[TowerRow]) -> Board:
        """The same with fewer towers."""
        return replace(self, towers=tuple(towers))

    def cases(
        self,
        detector: str,
        towers: Iterable[TowerRow],
        seed: int = 0,
        prompts: Prompts = "embedded",
    ) -> list[Case]:
        """Those of `towers` that `detector` has judged."""
        places = (
            (tower, (tower.weights, tower.anchor_weights, detector, seed, prompts))
            for tower in towers
        )
        return [Case(tower, self.scores[p]) for tower, p in places if p in self.scores]

    def outcomes(
        self,
        entry: Entry,
        split: Split,
        seed: int = 0,
        prompts: Prompts = "embedded",
    ) -> list[Outcome]:
        """What `entry` decides of the towers of `split`.

        Thresholds come from seed 0 and the embedded prompts, whatever is judged.
        """
        fitted = self.cases(entry.detector, split.fitted)
        return decide(entry, fitted, self.cases(entry.detector, split.judged, seed, prompts))

    def whole(self, judged: Sequence[TowerRow] | None = None) -> Split:
        """Thresholds from development, judged on `judged` or on all that count."""
        development = [t for t in self.counted if self.splits.of(t) == DEVELOPMENT]
        return Split("all", tuple(development), tuple(self.counted if judged is None else judged))

    def entries(self, among: Iterable[Entry]) -> list[Entry]:
        """Those of whose detector there are results of seed 0 on the embedded prompts."""
        present = {r.detector for r in self.rows if (r.seed, r.prompts) == (0, "embedded")}
        return [entry for entry in among if entry.detector in present]


def place_of(row: ScoreRow) -> Place:
    """Where a board has a row; of several precisions or texts of prompts, the latest to come."""
    return row.weights, row.anchor_weights, row.detector, row.seed, row.prompts


def _refuse_equal(towers: Iterable[TowerRow]) -> None:
    """Each tower is one piece of evidence; raises RowError where one stands for two."""
    seen: dict[tuple[str, str], str] = {}
    for tower in towers:
        other = seen.setdefault((tower.weights, tower.anchor_weights), tower.name)
        if other != tower.name:
            raise RowError(
                f"The towers {other} and {tower.name} are the same, byte for byte. Change the "
                "recipe of one, or take it out of the plan."
            )
