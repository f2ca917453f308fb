"""JSON objects from files that may be damaged."""

from __future__ import annotations

import json
import sys
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin


class JudgeError(ValueError):
    """Something that a person has to put right."""


class RowError(JudgeError):
    """A manifest or a line that is not what it should be."""


def parse_object(text: bytes, place: str, remedy: str) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        RowError: it is none; says of what (`place`) and what to do (`remedy`).
    """
    try:
        # NaN and infinities are Python's own, and no JSON.
        facts = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{place} is not JSON: {error}. {remedy}") from error
    if not isinstance(facts, dict):
        raise RowError(f"{place} is no JSON object. {remedy}")
    return facts


def fits(value: Any, hint: Any) -> bool:
    """Whether a parsed value is of a type: a JSON scalar, a union, a literal or a dict of these.

    Integers are floats, booleans are no integers, and what is not finite is nothing.
    """
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is dict:
        _, of = get_args(hint)
        return isinstance(value, dict) and all(fits(item, of) for item in value.values())
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is hint


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")
