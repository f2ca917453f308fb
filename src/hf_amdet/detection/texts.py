"""Texts of a repo: how they are compared, and how much of them is shown."""

from __future__ import annotations

import unicodedata

_SHOWN = 64


def shortened(text: str) -> str:
    """A text as reports have it: nobody needs more, and a piece may be megabytes long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def plain(text: str) -> str:
    """Letters without case, width, accents and the spaces between them."""
    apart = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in apart if not c.isspace() and unicodedata.category(c) != "Mn")
