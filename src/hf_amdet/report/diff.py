"""What changed between two reports: two scans of one commit, or of two revisions of a model.

A verdict can change because the model did, because its anchor did, or because the scanner did;
these are told apart. When a scan ran and how long it took is no change.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from hf_amdet.report.schema import (
    AnchorRecord,
    BaseRecord,
    FileRecord,
    Reason,
    Report,
    Statistic,
    Threshold,
    TowerReport,
    Verdict,
)

State = Literal["same", "changed", "unknown"]
Held = Literal["met", "unclear", "missed"]
"""Whether value and interval all meet a threshold, only some of them, or none."""

_Item = TypeVar("_Item")

_TIMES = {"created_at", "timings"}
_OF_A_REPORT = set("verdict reasons towers out_of_scope config environment not_covered".split())
"""Fields that are told in a way of their own, as those of a tower below."""
_OF_A_TOWER = {"path", "verdict", "reasons", "statistics", "thresholds", "files", "base", "anchor"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Side(_Frozen):
    """Which report it is."""

    target: str
    repo_id: str | None
    commit_sha: str | None
    created_at: str
    verdict: Verdict
    hf_amdet: str


class Change(_Frozen):
    """A field with other values in the two reports; None also where a report has no such field."""

    name: str
    old: JsonValue
    new: JsonValue


class Listed(_Frozen, Generic[_Item]):
    """What only one of two lists holds, in the order that it has there."""

    gone: tuple[_Item, ...] = ()
    added: tuple[_Item, ...] = ()


class FileChange(_Frozen):
    """A file that was added, is gone, or has other bytes."""

    path: str
    old: str | None = Field(description="sha256; null where the file was not read")
    new: str | None
    tensors: tuple[str, ...] | None = Field(
        description="names of the tensors that differ, where both scans read only tensors of the "
        "file; null where they did not"
    )

    @property
    def is_read_alike(self) -> bool:
        """Whether the file differs only where neither scan looked."""
        return self.tensors == ()


class Crossing(_Frozen):
    """A threshold that a statistic meets in another way than before."""

    comparison: str
    old_limit: float
    new_limit: float
    old: Held
    new: Held


class StatisticChange(_Frozen):
    """A statistic that moved, or whose threshold moved past it."""

    name: str
    old: Statistic | None
    new: Statistic | None
    crossed: tuple[Crossing, ...] = ()


class TowerDiff(_Frozen):
    """One text tower; of one that only one report has, `old` or `new` is null."""

    path: str
    old: Verdict | None
    new: Verdict | None
    reasons: Listed[Reason]
    files: tuple[FileChange, ...]
    statistics: tuple[StatisticChange, ...] = ()
    thresholds: tuple[Change, ...] = ()
    base: tuple[Change, ...] = ()
    base_files: tuple[FileChange, ...] = ()
    anchor: tuple[Change, ...] = ()
    anchor_files: tuple[FileChange, ...] = ()
    fields: tuple[Change, ...] = Field(
        default=(), description="all other fields, those of newer reports among them"
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        lists = (self.files, self.statistics, self.thresholds, self.base, self.base_files)
        more = (self.anchor, self.anchor_files, self.fields, self.reasons.gone, self.reasons.added)
        return self.old == self.new and not any((*lists, *more))


class ReportDiff(_Frozen):
    """All that differs between two reports. Equal reports give equal diffs, byte by byte."""

    old: Side
    new: Side
    verdict_changed: bool = Field(
        description="of the repo or of any tower; a tower that came or went counts"
    )
    model: State = Field(description="judged by the files of its towers that were read")
    anchor: State
    scanner: State = Field(description="version, settings, prompts, device and libraries")
    reasons: Listed[Reason]
    towers: tuple[TowerDiff, ...] = Field(description="those in which anything differs")
    out_of_scope: Listed[Reason]
    config: tuple[Change, ...]
    environment: tuple[Change, ...]
    not_covered: Listed[str]
    fields: tuple[Change, ...] = Field(
        description="all other fields, those of newer reports among them"
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs but times."""
        listed = (self.reasons, self.out_of_scope, self.not_covered)
        more = (self.towers, self.config, self.environment, self.fields)
        differs = self.verdict_changed or any(part.gone or part.added for part in listed)
        return not (differs or any(more))


def compare(old: Report, new: Report) -> ReportDiff:
    """What `new` says otherwise than `old`. Towers are the same where their paths are."""
    pairs = list(_pairs(old.towers, new.towers))
    towers = [_tower(one, other) for one, other in pairs]
    config = _fields(old.config, new.config)
    environment = _fields(old.environment, new.environment)
    runs_alike = not environment and all(change.name == "anchor" for change in config)
    return ReportDiff(
        old=_side(old),
        new=_side(new),
        verdict_changed=old.verdict != new.verdict or any(t.old != t.new for t in towers),
        model=_model_state(old, new, pairs),
        anchor=_anchor_state(pairs),
        scanner="same" if runs_alike else "changed",
        reasons=_reasons(old.reasons, new.reasons),
        towers=tuple(tower for tower in towers if not tower.is_empty),
        out_of_scope=_reasons(old.out_of_scope, new.out_of_scope),
        config=config,
        environment=environment,
        not_covered=_listed(_by_itself(old.not_covered), _by_itself(new.not_covered)),
        fields=_fields(old, new, _OF_A_REPORT | _TIMES),
    )


def to_json(diff: ReportDiff) -> str:
    """`diff` as ASCII JSON."""
    return json.dumps(diff.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def _side(report: Report) -> Side:
    return Side(
        target=report.target,
        repo_id=report.repo_id,
        commit_sha=report.commit_sha,
        created_at=report.created_at,
        verdict=report.verdict,
        hf_amdet=report.environment.hf_amdet,
    )


_Pair = tuple[TowerReport | None, TowerReport | None]


def _pairs(old: Sequence[TowerReport], new: Sequence[TowerReport]) -> Iterator[_Pair]:
    """The towers of both by their paths.

    Where a folder has an entry for what could not be read of it too, that one has no files.
    """
    sides: list[defaultdict[str, list[TowerReport]]] = []
    for towers in (old, new):
        sides.append(defaultdict(list))
        for tower in sorted(towers, key=lambda tower: not tower.files):
            sides[-1][tower.path].append(tower)
    for path in sorted(sides[0].keys() | sides[1].keys()):
        yield from zip_longest(sides[0][path], sides[1][path])


def _tower(old: TowerReport | None, new: TowerReport | None) -> TowerDiff:
    some = old or new
    assert some is not None
    diff = TowerDiff(
        path=some.path,
        old=old.verdict if old else None,
        new=new.verdict if new else None,
        reasons=_reasons(old.reasons if old else (), new.reasons if new else ()),
        files=_files(old, new),
    )
    if old is None or new is None:
        return diff
    more = {
        "statistics": _statistics(old, new),
        "thresholds": tuple(_changes(_limits(old.thresholds), _limits(new.thresholds))),
        "base": _fields(old.base, new.base, {"files"}),
        "base_files": _files(old.base, new.base),
        "anchor": _fields(old.anchor, new.anchor, {"files"}),
        "anchor_files": _files(old.anchor, new.anchor),
        "fields": _fields(old, new, _OF_A_TOWER),
    }
    return diff.model_copy(update=more)


def _statistics(old: TowerReport, new: TowerReport) -> tuple[StatisticChange, ...]:
    changes = []
    for name in sorted(old.statistics.keys() | new.statistics.keys()):
        before, after = old.statistics.get(name), new.statistics.get(name)
        crossed = () if before is None or after is None else tuple(_crossings(name, old, new))
        if before != after or crossed:
            changes.append(StatisticChange(name=name, old=before, new=after, crossed=crossed))
    return tuple(changes)


def _crossings(name: str, old: TowerReport, new: TowerReport) -> Iterator[Crossing]:
    before, after = (
        {t.comparison: t.value for t in tower.thresholds if t.statistic == name}
        for tower in (old, new)
    )
    for comparison in sorted(before.keys() & after.keys()):
        held = (
            _held(old.statistics[name], comparison, before[comparison]),
            _held(new.statistics[name], comparison, after[comparison]),
        )
        if held[0] != held[1]:
            yield Crossing(
                comparison=comparison,
                old_limit=before[comparison],
                new_limit=after[comparison],
                old=held[0],
                new=held[1],
            )


def _held(statistic: Statistic, comparison: str, limit: float) -> Held:
    numbers = [n for n in (statistic.value, statistic.low, statistic.high) if n is not None]
    met = [
        {">=": n >= limit, "<=": n <= limit, ">": n > limit, "<": n < limit}[comparison]
        for n in numbers
    ]
    return "met" if all(met) else "unclear" if any(met) else "missed"


def _limits(thresholds: Sequence[Threshold]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for threshold in thresholds:
        name = f"{threshold.statistic} {threshold.comparison}"
        limits |= {name: threshold.value, f"{name} (source)": threshold.source}
    return limits


_HasFiles = TowerReport | AnchorRecord | BaseRecord


def _files(old: _HasFiles | None, new: _HasFiles | None) -> tuple[FileChange, ...]:
    before, after = ({f.path: f for f in side.files} if side else {} for side in (old, new))
    changes = []
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        tensors = _tensors(one, other)
        if one is None or other is None or one.sha256 != other.sha256 or tensors:
            changes.append(
                FileChange(
                    path=path,
                    old=one.sha256 if one else None,
                    new=other.sha256 if other else None,
                    tensors=tensors,
                )
            )
    return tuple(changes)


def _tensors(old: FileRecord | None, new: FileRecord | None) -> tuple[str, ...] | None:
    if old is None or new is None or not (old.tensors and new.tensors):
        return None
    names = sorted(old.tensors.keys() | new.tensors.keys())
    return tuple(name for name in names if old.tensors.get(name) != new.tensors.get(name))


def _model_state(old: Report, new: Report, pairs: Sequence[_Pair]) -> State:
    both = [(one, other) for one, other in pairs if one and other]
    # Where a scan could read nothing of a tower, nothing can be compared.
    read = [(one, other) for one, other in both if one.files and other.files]
    pinned = _is_one_commit(old, new)
    if any(
        _other_content(one, other, pinned=pinned)
        or _other_content(one.base, other.base, pinned=_is_one_commit(one.base, other.base))
        for one, other in read
    ):
        return "changed"
    if pinned:
        return "same"
    if len(both) < len(pairs):
        return "changed"
    return "same" if both and len(read) == len(both) else "unknown"


def _anchor_state(pairs: Sequence[_Pair]) -> State:
    anchors = [(one.anchor, other.anchor) for one, other in pairs if one and other]
    if any(_other_content(*pair, pinned=_is_one_commit(*pair)) for pair in anchors):
        return "changed"
    return "same" if anchors else "unknown"


_HasCommit = Report | AnchorRecord | BaseRecord


def _is_one_commit(old: _HasCommit | None, new: _HasCommit | None) -> bool:
    if old is None or new is None or None in (old.repo_id, old.commit_sha):
        return False
    return (old.repo_id, old.commit_sha) == (new.repo_id, new.commit_sha)


def _other_content(old: _HasFiles | None, new: _HasFiles | None, *, pinned: bool) -> bool:
    """Whether other bytes were read. Of one commit, a file more was only read by one scanner."""
    return any(
        not (change.is_read_alike or (pinned and None in (change.old, change.new)))
        for change in _files(old, new)
    )


def _reasons(old: Sequence[Reason], new: Sequence[Reason]) -> Listed[Reason]:
    before, after = ({(r.code, r.message): r for r in reasons} for reasons in (old, new))
    return _listed(before, after)


def _by_itself(items: Sequence[str]) -> dict[str, str]:
    return {item: item for item in items}


def _listed(old: Mapping[Any, _Item], new: Mapping[Any, _Item]) -> Listed[_Item]:
    return Listed(
        gone=tuple(item for key, item in old.items() if key not in new),
        added=tuple(item for key, item in new.items() if key not in old),
    )


def _fields(
    old: BaseModel | None, new: BaseModel | None, without: set[str] | None = None
) -> tuple[Change, ...]:
    """The fields that differ, under dotted names, unknown ones too."""
    before, after = (
        side.model_dump(mode="json", exclude=without) if side else {} for side in (old, new)
    )
    return tuple(_changes(before, after))


def _changes(old: JsonValue, new: JsonValue, name: str = "") -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _changes(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield Change(name=name, old=old, new=new)
