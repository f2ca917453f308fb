"""What a threshold may be fitted on and what it is judged on, fixed in splits.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.judge.parsing import RowError
from benchmarks.judge.rows import TowerRow

FILE = Path(__file__).with_name("splits.toml")
DEVELOPMENT = "development"
NAMES = {
    (False, False): DEVELOPMENT,
    (False, True): "held-out attacks",
    (True, False): "held-out bases",
    (True, True): "both held out",
}
"""By whether the base and whether the kind is held out."""


@dataclass(frozen=True)
class Split:
    """Towers to fit thresholds on, and towers to judge.

    Attributes:
        left_out: the family that was left out, for a split by family.
    """

    name: str
    fitted: tuple[TowerRow, ...]
    judged: tuple[TowerRow, ...]
    left_out: str | None = None


class Splits:
    """Which bases and kinds are held out."""

    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        parsed = tomllib.loads(file.read_text(encoding="utf-8"))
        self._bases = _held_out(parsed["bases"])
        self._attacks = _held_out(parsed["attacks"])
        self._kinds = self._attacks | _held_out(parsed["benign"])

    def of(self, tower: TowerRow) -> str:
        """The split of a tower; each is in one.

        Raises:
            RowError: the file does not name its base or its kind.
        """
        base = self._look_up(self._bases, "base", tower.base, tower)
        return NAMES[base, self.kind_is_held_out(tower)]

    def kind_is_held_out(self, tower: TowerRow) -> bool:
        """Whether no threshold may be fitted on towers of its kind; raises as `of`."""
        return self._look_up(self._kinds, "kind", tower.sort, tower)

    def is_attack(self, sort: str) -> bool:
        """Whether a kind is one of attacks."""
        return sort in self._attacks

    def _look_up(self, among: dict[str, bool], what: str, name: str, tower: TowerRow) -> bool:
        """Whether a base or kind is held out."""
        if name not in among:
            raise RowError(
                f"{self._file} does not name the {what} {name!r} of tower {tower.name}. Say there "
                "whether it is for development or held out."
            )
        return among[name]

    def all(self, towers: Sequence[TowerRow]) -> Iterator[Split]:
        """The four splits, all fitted on development, then each family left out.

        Without a family, thresholds come from the development towers of the others.
        """
        names = {tower.name: self.of(tower) for tower in towers}
        development = [tower for tower in towers if names[tower.name] == DEVELOPMENT]
        for name in NAMES.values():
            judged = tuple(tower for tower in towers if names[tower.name] == name)
            yield Split(name, tuple(development), judged)
        for family in sorted({tower.family for tower in towers}):
            fitted = tuple(tower for tower in development if tower.family != family)
            judged = tuple(tower for tower in towers if tower.family == family)
            yield Split(f"{family} left out", fitted, judged, family)


def _held_out(names: dict[str, list[str]]) -> dict[str, bool]:
    return {name: part == "held-out" for part in (DEVELOPMENT, "held-out") for name in names[part]}
