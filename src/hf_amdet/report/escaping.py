"""Strangers' text in our Markdown: it shows as it is, and never acts.

File names, architecture names and messages about them come from the repo under scan, whose owner
may want to end our section early, forge a verdict or hide a link. Three filters cover all places;
each returns `Markdown`, and the templates refuse to print anything else.
"""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 1000
_PLAIN_ARGUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:+=-]{0,199}")
_LINK = re.compile(r"\S*(?:://|www\.|@)\S*", re.IGNORECASE)
_LEADING_MARK = re.compile(r"\A(?:([-+=:])|(\d{1,9})([.)])(?= |\Z))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "`": "&#96;"}
_TEXT = {**{mark: "\\" + mark for mark in "\\*_[]~$#"}, **_ENTITIES}
_IN_CODE = {mark: f"\\x{ord(mark):02x}" for mark in "`|<>"} | {"\\": "\\\\"}
# Controls, bidirectional overrides, zero-width characters, line separators, surrogates.
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


class Markdown(str):
    """Markdown that may be printed as it is."""

    __slots__ = ()


def code(value: object) -> Markdown:
    """A name as a code span. What could end the span, or is not seen, stands as a `\\x` escape."""
    text = _short(str(value))
    shown = "".join(_IN_CODE.get(character) or _seen(character) for character in text)
    # Blanks at both ends of a span would be dropped, and an empty span is no span.
    return Markdown(f"`{shown}`") if shown.strip() else Markdown("(empty)")


def text(value: object) -> Markdown:
    """A sentence on one line, without markup; what a renderer would make a link is code."""
    line = " ".join(_short(str(value)).split()) or "(empty)"
    parts, end = [], 0
    for match in _LINK.finditer(line):
        parts += [_sentence(line[end : match.start()]), code(match.group())]
        end = match.end()
    escaped = "".join([*parts, _sentence(line[end:])])
    # Only at its start can a line be taken for a list, a heading or an underline.
    return Markdown(_LEADING_MARK.sub(r"\2\\\1\3", escaped))


def seen(value: str) -> str:
    """`value` cut to a bearable length, with `\\x` escapes for what is not seen or reorders text.

    Markup stays in it: for pages that are escaped in another way.
    """
    return "".join(_seen(character) for character in _short(value))


def number(value: float) -> Markdown:
    """Three significant digits; counts are whole."""
    return Markdown(str(value) if isinstance(value, int) else f"{value:.3g}")


def argument(value: object, placeholder: str) -> Markdown:
    """A word of a shell command, or `placeholder` for one that a shell might take apart."""
    word = str(value)
    return Markdown(word if _PLAIN_ARGUMENT.fullmatch(word) else placeholder)


def only_escaped(value: object) -> object:
    """What the templates print goes through here: plain strings are a programming error."""
    if isinstance(value, Markdown | int):
        return value
    raise TypeError(f"not escaped: {value!r}; use one of the filters code, text, number")


def _sentence(part: str) -> str:
    return "".join(_TEXT.get(character) or _seen(character) for character in part)


def _seen(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    point = ord(character)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
