"""Rows of towers and judgements, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.judge.board import Board, place_of
from benchmarks.judge.decisions import Case
from benchmarks.judge.metrics import Outcome
from benchmarks.judge.rows import ScoreRow, TowerRow
from benchmarks.judge.splits import Splits

_TOWER = TowerRow(
    name="clip-a/one",
    family="clip",
    base="clip-a",
    run="clip-a/one",
    label="clean",
    kind="contrastive",
    twin_of=None,
    pinned=None,
    took=None,
    success=None,
    success_foreign=None,
    drift=0.99,
    drift_foreign=0.98,
    seconds=1.0,
    anchor="bases/clip-a",
    recipe={},
    weights="",
    anchor_weights="anchor",
)
_SCORE = ScoreRow(
    weights="clip-a/one",
    anchor_weights="anchor",
    detector="tables",
    detector_hash="now",
    seed=0,
    prompts="embedded",
    prompts_sha256="",
    dtype="fp32",
    score=0.0,
    verdict=None,
    statistics={},
    seconds=1.0,
    peak_mib=100.0,
)


def tower(name: str = "clip-a/one", **changes: Any) -> TowerRow:
    """A clean tower of its own run; its weights are its name."""
    base = name.split("/")[0]
    own = {"name": name, "weights": name, "base": base, "run": name, "family": base[:-2]}
    return replace(_TOWER, **own | changes)


def attack(name: str, kind: str = "text-on-text", **changes: Any) -> TowerRow:
    """A backdoor that took."""
    facts = {"label": "backdoored", "kind": kind, "took": True, "success": 0.9}
    return tower(name, **facts | changes)


def score(of: TowerRow, value: float | None = 0.0, **changes: Any) -> ScoreRow:
    """What `tables` says of a tower."""
    own = {"weights": of.weights, "anchor_weights": of.anchor_weights, "score": value}
    return replace(_SCORE, **own | changes)


def case(of: TowerRow, value: float | None, **changes: Any) -> Case:
    return Case(of, score(of, value, **changes))


def board(rows: dict[str, float | None], *towers: TowerRow, **changes: Any) -> Board:
    """What `tables` says of `towers`: scores by name."""
    scored = [score(t, rows[t.name], **changes) for t in towers if t.name in rows]
    return Board(towers, Splits(), {place_of(row): row for row in scored}, 0, 0)


def outcome(
    positive: bool,
    score: float | None = None,
    *,
    flagged: bool | None = False,
    base: str = "clip-a",
    run: str = "run",
    probability: float | None = None,
    verdict: str | None = None,
) -> Outcome:
    return Outcome(f"{base}/{run}", base, run, positive, verdict, score, flagged, probability)
