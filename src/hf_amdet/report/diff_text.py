"""A `ReportDiff` for people: what changed as sentences and rows, as plain text or as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from hf_amdet.report.diff import (
    Change,
    FileChange,
    Listed,
    ReportDiff,
    Side,
    StatisticChange,
    TowerDiff,
)
from hf_amdet.report.escaping import code, text
from hf_amdet.report.schema import Reason, Statistic

_DIGEST = 12
_TENSORS_NAMED = 3
_FIGURES = {"value", "low", "high"}
_MODEL = {
    "same": "The model is the same: what was read of it has not changed.",
    "changed": "The model changed: files that are read of it are others.",
    "unknown": "Whether the model changed cannot be told: one of the scans could not read it.",
}
_ANCHOR = {
    "same": "The anchor is the same.",
    "changed": "The anchor changed.",
    "unknown": "The reports have no tower in common whose anchors could be compared.",
}
_SCANNER = {
    "same": "The scanner is the same: version, settings, prompts, device and libraries.",
    "changed": "The scanner changed: see configuration and environment.",
}


@dataclass(frozen=True)
class Row:
    """Something that changed; None on the side that has no such thing."""

    what: str
    old: str | None
    new: str | None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under a title; texts are as the reports have them, not escaped."""

    title: str
    rows: tuple[Row, ...]


def subject(side: Side) -> str:
    """Which report it is, in a line."""
    at = f" at {side.commit_sha}" if side.commit_sha else ""
    return f"{side.target}{at}, scanned {side.created_at} with hf-amdet {side.hf_amdet}"


def summary(diff: ReportDiff) -> list[str]:
    """What it comes to, a sentence each: the verdict, the model, its anchor, the scanner."""
    if diff.is_empty:
        return ["Nothing changed."]
    old, new = (_words(side.verdict) for side in (diff.old, diff.new))
    if old != new:
        verdict = f"The verdict changed from {old} to {new}."
    elif diff.verdict_changed:
        verdict = f"The verdict is still {new}, but not that of every tower."
    else:
        verdict = f"The verdict is still {new}."
    return [verdict, _MODEL[diff.model], _ANCHOR[diff.anchor], _SCANNER[diff.scanner]]


def sections(diff: ReportDiff) -> list[Section]:
    """Every change, those without any left out."""
    old, new = diff.old.verdict, diff.new.verdict
    report = [
        *([Row("verdict", old, new)] if old != new else []),
        *_reasons("reason", diff.reasons),
        *map(_change, diff.fields),
    ]
    limits = [
        *_reasons("out of scope", diff.out_of_scope),
        *(Row("not covered", item, None) for item in diff.not_covered.gone),
        *(Row("not covered", None, item) for item in diff.not_covered.added),
    ]
    found = [
        Section("Report", tuple(report)),
        *(
            Section(f"Text encoder {tower.path or 'at the root'}", _tower(tower))
            for tower in diff.towers
        ),
        Section("Configuration", tuple(map(_change, diff.config))),
        Section("Environment", tuple(map(_change, diff.environment))),
        Section("Limits", tuple(limits)),
    ]
    return [section for section in found if section.rows]


def to_markdown(diff: ReportDiff) -> str:
    """The page of a diff; text of the reports is escaped."""
    lines = [
        "# Changes between two backdoor scans",
        "",
        f"- before: {text(subject(diff.old))}",
        f"- after: {text(subject(diff.new))}",
        "",
        *(f"**{text(sentence)}**\n" for sentence in summary(diff)),
    ]
    for section in sections(diff):
        lines += [f"## {text(section.title)}", "", "| | Before | After | |", "|---|---|---|---|"]
        lines += [
            f"| {code(row.what)} | {_cell(row.old)} | {_cell(row.new)} | {_cell(row.note)} |"
            for row in section.rows
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(shown: str | None) -> str:
    return "none" if shown is None else text(shown) if shown else ""


def _tower(tower: TowerDiff) -> tuple[Row, ...]:
    verdict = [Row("verdict", tower.old, tower.new)] if tower.old != tower.new else []
    return (
        *verdict,
        *_reasons("reason", tower.reasons),
        *map(_statistic, tower.statistics),
        *(_change(change, "threshold ") for change in tower.thresholds),
        *map(_change, tower.fields),
        *(_file(change, "file") for change in tower.files),
        *(_change(change, "base ") for change in tower.base),
        *(_file(change, "base file") for change in tower.base_files),
        *(_change(change, "anchor ") for change in tower.anchor),
        *(_file(change, "anchor file") for change in tower.anchor_files),
    )


def _reasons(what: str, reasons: Listed[Reason]) -> Iterator[Row]:
    for reason in reasons.gone:
        yield Row(what, f"{reason.message} ({reason.code})", None)
    for reason in reasons.added:
        yield Row(what, None, f"{reason.message} ({reason.code})")


def _change(change: Change, prefix: str = "") -> Row:
    old, new = change.old, change.new
    digits = 3
    if isinstance(old, float) and isinstance(new, float):
        digits = _digits([(old, new)])
    shown = _shown(old, digits), _shown(new, digits)
    return Row(prefix + change.name, *shown, "other entries" if shown[0] == shown[1] else "")


def _shown(value: JsonValue, digits: int) -> str | None:
    match value:
        case None | str():
            return value
        case float():
            return f"{value:.{digits}g}"
        case list() | dict():
            return "1 entry" if len(value) == 1 else f"{len(value)} entries"
    return json.dumps(value)


def _statistic(change: StatisticChange) -> Row:
    old, new = change.old, change.new
    notes = [
        f"{crossing.comparison} {crossing.new_limit:g} was {crossing.old}, is {crossing.new}"
        for crossing in change.crossed
    ]
    digits = 3
    if old is not None and new is not None:
        digits = _digits(list(zip(_numbers(old), _numbers(new), strict=False)))
        before, after = old.model_dump(), new.model_dump()
        notes += [
            f"{name} was {before.get(name)}, is {after.get(name)}"
            for name in sorted((before.keys() | after.keys()) - _FIGURES)
            if before.get(name) != after.get(name)
        ]
    return Row(change.name, _measured(old, digits), _measured(new, digits), "; ".join(notes))


def _measured(statistic: Statistic | None, digits: int) -> str | None:
    if statistic is None:
        return None
    value, *interval = (f"{number:.{digits}g}" for number in _numbers(statistic))
    return f"{value} [{', '.join(interval)}]" if interval else value


def _numbers(statistic: Statistic) -> list[float]:
    bounds = [statistic.low, statistic.high]
    return [statistic.value, *(bound for bound in bounds if bound is not None)]


def _digits(pairs: Sequence[tuple[float, float]]) -> int:
    """As many as tell apart what differs."""
    differing = [(old, new) for old, new in pairs if old != new]
    for digits in range(3, 17):
        if all(f"{old:.{digits}g}" != f"{new:.{digits}g}" for old, new in differing):
            return digits
    return 17


def _file(change: FileChange, what: str) -> Row:
    note = ""
    if change.is_read_alike:
        note = "the tensors that are read of it are the same"
    elif change.tensors:
        names = ", ".join(change.tensors[:_TENSORS_NAMED])
        more = len(change.tensors) - _TENSORS_NAMED
        note = f"other tensors: {names}" + (f" and {more} more" if more > 0 else "")
    old, new = (digest and f"sha256 {digest[:_DIGEST]}…" for digest in (change.old, change.new))
    return Row(f"{what} {change.path}", old, new, note)


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")
