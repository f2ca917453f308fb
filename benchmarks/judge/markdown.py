"""Tables of a page, and the place in it that a command may write."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import fmean

from benchmarks.judge.metrics import Interval, Share
from benchmarks.judge.parsing import JudgeError

NOTHING = "-"
_WIDTH = 100
_STAR = "\\*"
"""Without the backslash it would begin a list."""
BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"


class MarkerError(JudgeError):
    """A page of which it cannot be told where the section stands."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, which ends in a newline."""
    head, *body = [f"| {' | '.join(cells)} |\n" for cells in (columns, *rows)]
    return "".join((head, f"|{'---|' * len(columns)}\n", *body))


def paragraph(text: str) -> str:
    """Text in lines of the page's width, which ends in a newline."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def estimate(value: float | None, interval: Interval | None) -> str:
    """A figure and its interval where it has one."""
    if value is None or interval is None:
        return number(value)
    return f"{value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean [least, most]."""
    if not values:
        return NOTHING
    low, high = min(values), max(values)
    return f"{fmean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def mean(values: Sequence[float], digits: int = 3) -> str:
    return number(fmean(values), digits) if values else NOTHING


def counted(share: Share | None, *, bounds: bool = True) -> str:
    """k/n, on request with the bounds of the share in percent."""
    if share is None or share.n == 0:
        return NOTHING
    if not bounds or share.bounds is None:
        return f"{share.k}/{share.n}"
    low, high = 100 * share.bounds.low, 100 * share.bounds.high
    return f"{share.k}/{share.n} [{low:.1f}, {high:.1f} %]"


class Failures:
    """Stars what rests on judgements that failed, and says below the table how many those are."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def star(self, cell: str, failed: int, what: str) -> str:
        """`cell`, starred if any of its judgements failed; `what` names it below."""
        if not failed:
            return cell
        self._counts[what] = self._counts.get(what, 0) + failed
        return f"{cell}{_STAR}"

    @property
    def note(self) -> str:
        """Nothing where none failed, else a paragraph with an empty line before it."""
        if not self._counts:
            return ""
        counts = "; ".join(f"{what}: {count}" for what, count in self._counts.items())
        text = paragraph(f"{_STAR} With judgements that failed, taken as `no score` ({counts}).")
        return f"\n{text}"


def splice(page: str, section: str) -> str:
    """`page` with `section` between the markers; without markers, both at its end.

    Raises:
        MarkerError: one marker without the other, several, or in the wrong order.
    """
    written = f"{BEGIN}\n{section}{END}"
    begins, ends = page.count(BEGIN), page.count(END)
    if begins == ends == 0:
        return f"{page}{'' if page.endswith(chr(10)) or not page else chr(10)}\n{written}\n"
    start, stop = page.find(BEGIN), page.find(END)
    if begins != 1 or ends != 1 or stop < start:
        raise MarkerError(
            f"There must be one {BEGIN} and behind it one {END}. Remove the others, or all of "
            "them to have the section at the end."
        )
    return page[:start] + written + page[stop + len(END) :]
