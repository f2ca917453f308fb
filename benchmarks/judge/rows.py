"""What is known of towers and of their judgements: append-only files, one JSON object a line."""

from __future__ import annotations

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, Self, TypeVar, get_type_hints

from benchmarks.judge.parsing import RowError, fits, parse_object
from benchmarks.zoo.towers import digest

Label = Literal["backdoored", "clean", "natural"]
Prompts = Literal["embedded", "foreign"]
Key = tuple[str | int, ...]
ERROR = "error"
"""The verdict of a judgement that failed; it is tried again at the next run."""
FLAGGED = "flagged"
NO_ANSWER = ("inconclusive", "not_scanned")

_MANIFEST = {
    "clean_cosine_to_anchor": "drift",
    "clean_cosine_to_anchor_foreign": "drift_foreign",
}
"""Facts that have another name in manifests."""


class Row(ABC):
    """A line of a store."""

    @property
    @abstractmethod
    def key(self) -> Key:
        """What it is about: of several lines with one key the last counts."""

    @classmethod
    def of(cls, facts: dict[str, Any], place: str) -> Self:
        """The row that `facts` hold; keys that no row has are left out.

        Raises:
            RowError: a fact is missing or of another type; `place` says of what.
        """
        # Subclasses are dataclasses; this base has no fields of its own.
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in facts]
        if missing:
            raise RowError(f"{place} says nothing of {', '.join(missing)}. Make it anew.")
        hints = get_type_hints(cls)
        wrong = [name for name in names if not fits(facts[name], hints[name])]
        if wrong:
            raise RowError(f"{place} is damaged in {', '.join(wrong)}. Make it anew.")
        return cls(**{name: facts[name] for name in names})


@dataclass(frozen=True)
class TowerRow(Row):
    """A tower of the zoo, as its manifest describes it.

    Attributes:
        run: the training run; an attack and its clean twin have the same.
        kind: of attack or benign change; "twin" for a clean twin, which `twin_of` names.
        took: whether a backdoor or natural feature took; None for a tower without one.
        success: share of held-out triggered prompts that reach the goal; `success_foreign` the
            same on prompts of a grammar that the tower was not trained on.
        drift: mean pooled cosine to the anchor on held-out ordinary prompts, 1 for none.
        seconds: what it took to make it.
        anchor: folder of the anchor, relative to the zoo.
        weights, anchor_weights: `digest` of both folders.
    """

    name: str
    family: str
    base: str
    run: str
    label: Label
    kind: str
    twin_of: str | None
    pinned: bool | None
    took: bool | None
    success: float | None
    success_foreign: float | None
    drift: float
    drift_foreign: float
    seconds: float
    anchor: str
    recipe: dict[str, Any]
    weights: str
    anchor_weights: str

    @classmethod
    def read(cls, folder: Path, zoo: Path) -> TowerRow:
        """The row of a tower's folder.

        Raises:
            RowError: a manifest that lacks a fact, or an anchor that has changed since.
            OSError: tower or anchor is not there.
        """
        file = folder / "manifest.json"
        facts = parse_object(file.read_bytes(), str(file), "Make it anew.")
        for name in ("anchor", "anchor_sha256"):
            if not isinstance(facts.get(name), str):
                raise RowError(f"{file} says nothing of {name}. Make it anew.")
        digests = {"weights": digest(folder), "anchor_weights": digest(zoo / facts["anchor"])}
        if digests["anchor_weights"] != facts["anchor_sha256"]:
            raise RowError(
                f"{file}: the anchor {facts['anchor']} has changed since. "
                "`python -m benchmarks.zoo` makes the tower anew."
            )
        # Honest changes have no trigger that could succeed.
        unplanted = {"success": None, "success_foreign": None}
        renamed = {_MANIFEST.get(name, name): fact for name, fact in facts.items()}
        return cls.of(unplanted | renamed | digests, str(file))

    @property
    def key(self) -> Key:
        """Which tower it is: a tower that was made anew takes the place of the old one."""
        return (self.name,)

    @property
    def sort(self) -> str:
        """The kind that counts: a clean twin belongs with its attack."""
        return self.twin_of or self.kind

    @property
    def positive(self) -> bool:
        return self.label == "backdoored"

    @property
    def counts(self) -> bool:
        """Whether it is a positive or a negative: what was planted and did not take is neither."""
        return self.label == "clean" or self.took is True


@dataclass(frozen=True)
class ScoreRow(Row):
    """What a detector says of a tower.

    Attributes:
        detector_hash: of what decides the detector's answer.
        prompts_sha256: of the prompts that were read; "" for a detector that reads none.
        dtype: precision of the search, "bf16" or "fp32".
        score: higher is more suspicious; None where there is no finite one.
        verdict: None for a detector that only ranks.
        seconds: wall time. peak_mib: peak resident memory; None where it cannot be measured.
    """

    weights: str
    anchor_weights: str
    detector: str
    detector_hash: str
    seed: int
    prompts: Prompts
    prompts_sha256: str
    dtype: str
    score: float | None
    verdict: str | None
    statistics: dict[str, float]
    seconds: float
    peak_mib: float | None

    @property
    def key(self) -> Key:
        """A judgement is made once for each."""
        return (
            self.weights,
            self.anchor_weights,
            self.detector,
            self.detector_hash,
            self.seed,
            self.prompts,
            self.prompts_sha256,
            self.dtype,
        )


R = TypeVar("R", bound=Row)


class Store(Generic[R]):
    """An append-only file of rows, to which several processes may write.

    A line that was cut off (the process was killed) is not read, and removed by the next append.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self._path, self._kind = path, kind

    def rows(self) -> list[R]:
        """The last row of each key, in the order in which the keys came first.

        Raises:
            RowError: a whole line that is no row; names file and line.
        """
        if not self._path.exists():
            return []
        *lines, _cut_off = self._path.read_bytes().split(b"\n")
        found: dict[Key, R] = {}
        for number, line in enumerate(lines, 1):
            row = self._parse(line, f"{self._path}, line {number},")
            found[row.key] = row
        return list(found.values())

    def append(self, rows: Iterable[R]) -> None:
        """Add rows; each is on the disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for row in rows:
            line = json.dumps(vars(row), sort_keys=True, allow_nan=False) + "\n"
            with self._path.open("a+b", buffering=0) as file:
                # Locked by the system, so that a killed process leaves no lock behind.
                fcntl.flock(file, fcntl.LOCK_EX)
                _drop_cut_off(file)
                file.write(line.encode())
                os.fsync(file.fileno())

    def _parse(self, line: bytes, place: str) -> R:
        facts = parse_object(line, place, "Remove that line.")
        return self._kind.of(facts, place)


@dataclass(frozen=True)
class Stores:
    """The two files of a folder of results."""

    folder: Path

    @cached_property
    def towers(self) -> Store[TowerRow]:
        return Store(self.folder / "towers.jsonl", TowerRow)

    @cached_property
    def scores(self) -> Store[ScoreRow]:
        return Store(self.folder / "scores.jsonl", ScoreRow)


def _drop_cut_off(file: BinaryIO) -> None:
    """Cut a line without its end from the end of `file`."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
