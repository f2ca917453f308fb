"""A report as one HTML page, report.html, which runs nothing and loads nothing.

Names, messages and tokens come from the repo under scan. Whatever the template prints goes through
`_shown`, so that none of it is markup, moves other text about, or stays unseen. Should that fail,
the page's own policy still allows neither scripts nor addresses.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from hf_amdet.report import escaping, markdown
from hf_amdet.report.inline_svg import Picture, with_prefix
from hf_amdet.report.schema import Report

_SIGNS = {">=": "≥", "<=": "≤"}
_BLOCKS = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff"
_RIGHT_TO_LEFT = re.compile(f"([{_BLOCKS}]+(?: +[{_BLOCKS}]+)*)")
"""Text in scripts that run from right to left."""


def to_html(report: Report, pictures: Mapping[str, Sequence[Picture]] = {}) -> str:
    """Everything that the report holds, as a page that stands alone.

    Equal reports and pictures give equal text.

    Args:
        pictures: by the path of a tower, in the order in which they are to stand.
    """
    style = markdown.template_source("report_page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    page = (
        _environment()
        .get_template("report_page.html.jinja")
        .render(
            report=report,
            pictures=_placed(report, pictures),
            style=Markup(style),  # noqa: S704
            policy=policy,
            not_covered=markdown.not_covered(report),
            commands=markdown.commands(report),
            settings=markdown.settings(report.config),
            environment=list(report.environment),
            times=[(name, _number(value)) for name, value in sorted(report.timings.items())],
            no_p_value=markdown.NO_P_VALUE,
            objection=markdown.OBJECTION,
        )
    )
    return page + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(markdown.template_source),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "attribute": _attribute,
        "interval": markdown.interval,
        "line": _line,
        "name": _name,
        "number": _number,
        "percent": _percent,
        "sentence": markdown.sentence,
        "sign": _sign,
        "statistics": markdown.statistics,
        "words": _words,
    }
    return environment


def _placed(
    report: Report, pictures: Mapping[str, Sequence[Picture]]
) -> dict[str, list[tuple[Picture, Markup]]]:
    """The pictures of every tower, with ids that no other picture of the page has."""
    numbers = count(1)
    return {
        tower.path: [
            (picture, Markup(with_prefix(picture.svg, f"picture{next(numbers)}-")))  # noqa: S704
            for picture in pictures.get(tower.path, ())
        ]
        for tower in report.towers
    }


def _shown(value: object) -> object:
    """What the template prints: any string but our own markup is made harmless."""
    if isinstance(value, Markup | int):
        return value
    if isinstance(value, str):
        return _isolated(value)
    raise TypeError(f"not text: {value!r}; use one of the filters name, number, percent")


def _isolated(value: str) -> Markup:
    """What runs from right to left stands alone, or it would turn round what is beside it."""
    parts = _RIGHT_TO_LEFT.split(escaping.seen(value))
    # Of the parts, every second one is what the pattern has found.
    return Markup("").join(
        Markup("<bdi>{}</bdi>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def _attribute(value: str) -> Markup:
    """For places that take no markup at all."""
    return escape(escaping.seen(value))


def _name(value: object) -> Markup:
    """A name or a setting as code."""
    if value is None:
        return Markup("none")
    shown = _isolated(str(value))
    return Markup("<code>{}</code>").format(shown) if shown.strip() else Markup("(empty)")


def _line(message: str) -> str:
    return " ".join(message.split()) or "(empty)"


def _words(value: str) -> str:
    return value.replace("_", " ")


def _number(value: float | None) -> str:
    return "none" if value is None else escaping.number(value)


def _percent(share: float) -> str:
    return f"{escaping.number(100 * share)} %"


def _sign(comparison: str) -> str:
    return _SIGNS.get(comparison, comparison)
