"""Read a card's YAML without building it: where our key stands, and what else there is.

Works on the events of the YAML parser. Building the values would expand merge keys and recurse
into nested lists, and a card is anybody's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from yaml.error import Mark
from yaml.events import (  # type: ignore[import-untyped,unused-ignore]
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from hf_amdet.errors import CardError

KEY = "amdet"

_parse: Any = yaml.parse
_LOADER: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # ten times faster where it is built in
_MAX_DEPTH = 64
_NULLS = ("", "~", "null", "Null", "NULL")
_LINE_END = re.compile(r"\r\n|\r|\n|\Z")
_LAST_LINE_END = re.compile(r"[\r\n](?=[^\r\n]*\Z)")


@dataclass(frozen=True)
class FrontMatter:
    """The YAML of a card, taken apart."""

    text: str
    column: int
    """Indentation of its keys."""
    block: tuple[int, int] | None
    """The whole lines in `text` that hold our key and its value; None without our key."""
    others: tuple[tuple[Any, ...], ...]
    """What the parser says of everything but our key; equal means that nothing else changed."""


def read(yaml_bytes: bytes, *, first_line: int) -> FrontMatter:
    """Take the YAML between the dashes apart; `first_line` is its place in README.md.

    Raises:
        CardError: what to mend, and where.
    """
    try:
        text = yaml_bytes.decode()
    except UnicodeDecodeError as error:
        raise CardError("the metadata of README.md is not UTF-8: save the file as UTF-8") from error
    events = _events(text, first_line)
    if not any(isinstance(event, DocumentStartEvent) for event in events):
        return FrontMatter(text, column=0, block=None, others=())  # nothing but comments
    root, pairs = _pairs(events)
    ours = None
    names: set[str] = set()
    others: list[Event] = []
    for key, value in pairs:
        name = _name(key[0], first_line)
        if name is not None and name in names:
            raise _fault(f"has the key {_short(name)} twice: keep one", key[0], first_line)
        if name is not None:
            names.add(name)
        if name == KEY:
            ours = [*key, *value]
        else:
            others += [*key, *value]
    if ours:
        _refuse_tricks(ours, first_line)
    return FrontMatter(
        text=text,
        column=_mark(root.start_mark).column,
        block=_block(text, ours) if ours else None,
        others=tuple(_content(event) for event in others),
    )


def read_key(front: FrontMatter) -> dict[str, Any] | None:
    """The mapping under our key, None without our key.

    Raises:
        CardError: the key holds something else.
    """
    if front.block is None:
        return None
    try:
        document = yaml.load(front.text[slice(*front.block)], Loader=_LOADER)  # noqa: S506 - safe
        value = document[KEY]
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as a date of the 99th
        raise CardError(f"README.md: the value of `{KEY}:` does not parse: remove it") from error
    if not isinstance(value, dict):
        raise CardError(f"README.md: `{KEY}:` holds no mapping: remove it, or rename the key")
    return {str(name): item for name, item in value.items()}


def strings_under(yaml_bytes: bytes, key: str, *, first_line: int) -> list[str]:
    """The string under a key of the top mapping, or the strings of a flat list there, else [].

    Raises:
        CardError: what to mend, and where.
    """
    try:
        events = _events(yaml_bytes.decode(), first_line)
    except UnicodeDecodeError as error:
        raise CardError("the metadata of README.md is not UTF-8: save the file as UTF-8") from error
    if not any(isinstance(event, DocumentStartEvent) for event in events):
        return []
    values = [
        value
        for (name, *_), value in _pairs(events)[1]
        if isinstance(name, ScalarEvent) and name.value == key
    ]
    # Of a key that stands twice readers take one or the other.
    return _strings(values[0]) if len(values) == 1 else []


def _strings(value: list[Event]) -> list[str]:
    """A plain string, or a list of such; nothing else, and nothing of a list with other things."""
    if isinstance(value[0], SequenceStartEvent):
        value = value[1:-1]
    texts = [
        str(event.value)
        for event in value
        if isinstance(event, ScalarEvent) and not (event.implicit[0] and event.value in _NULLS)
    ]
    return texts if len(texts) == len(value) else []


def _events(text: str, first_line: int) -> list[Event]:
    try:
        events: list[Event] = list(_parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        where = f" (line {first_line + error.problem_mark.line})" if error.problem_mark else ""
        raise CardError(
            f"the metadata of README.md is not valid YAML{where}: {error.problem}; mend it first"
        ) from error
    except yaml.YAMLError as error:
        raise CardError(
            "the metadata of README.md holds characters that YAML does not allow: remove them"
        ) from error
    depth, anchors = 0, set()
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _fault("is nested too deeply: flatten it", event, first_line)
        if isinstance(event, AliasEvent) and event.anchor not in anchors:
            raise _fault("has an unknown alias: write the value out", event, first_line)
        anchors.add(getattr(event, "anchor", None))
    if sum(isinstance(event, DocumentStartEvent) for event in events) > 1:
        raise CardError("the metadata of README.md holds several YAML documents: keep one")
    return events


def _pairs(events: list[Event]) -> tuple[MappingStartEvent, list[tuple[list[Event], list[Event]]]]:
    """The top mapping and its keys and values, each as the events it consists of."""
    root = events[2]
    if not isinstance(root, MappingStartEvent):
        raise CardError("the metadata of README.md is no mapping: write it as `key: value` lines")
    if root.flow_style or root.anchor or root.tag:
        raise CardError(
            "the metadata of README.md is written in braces, or with an anchor or tag of its own: "
            "write it as `key: value` lines"
        )
    nodes = list(_nodes(events[3:]))
    return root, list(zip(nodes[0::2], nodes[1::2], strict=True))


def _nodes(events: list[Event]) -> Iterator[list[Event]]:
    """Split what follows the start of a collection into its nodes, up to its end."""
    depth, node = 0, []
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth < 0:
            return
        node.append(event)
        if depth == 0:
            yield node
            node = []


def _name(key: Event, first_line: int) -> str | None:
    if isinstance(key, AliasEvent):
        raise _fault("has a key that is an alias: write the key out", key, first_line)
    if not isinstance(key, ScalarEvent):
        return None
    if key.value == "<<" and key.implicit[0]:
        # What is merged in could hold our key, too.
        raise _fault("merges keys in with `<<`: write them out", key, first_line)
    return str(key.value)


def _refuse_tricks(ours: list[Event], first_line: int) -> None:
    for event in ours:
        tagged = isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None
        if tagged or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise _fault(f"has anchors, aliases or tags in `{KEY}:`: remove it", event, first_line)


def _block(text: str, ours: list[Event]) -> tuple[int, int]:
    start = text[: _mark(ours[0].start_mark).index]
    line = _LAST_LINE_END.search(start)
    # The end of a block collection has no length and stands at whatever comes next.
    last = max(
        _mark(event.end_mark).index
        for event in ours
        if not isinstance(event, CollectionEndEvent)
        or _mark(event.end_mark).index > _mark(event.start_mark).index
    )
    end = _LINE_END.search(text, len(text[:last].rstrip()))
    return line.end() if line else 0, end.end() if end else len(text)


def _mark(mark: Any) -> Mark:
    """The place of an event; the parser gives every event one, which its types leave open."""
    assert mark is not None
    place: Mark = mark
    return place


def _content(event: Event) -> tuple[Any, ...]:
    """An event without its place."""
    names = ("anchor", "tag", "implicit", "value")
    return (type(event).__name__, *(getattr(event, name, None) for name in names))


def _fault(problem: str, event: Event, first_line: int) -> CardError:
    line = first_line + _mark(event.start_mark).line
    return CardError(f"the metadata of README.md {problem} (line {line})")


def _short(name: str) -> str:
    return repr(name[:60])
