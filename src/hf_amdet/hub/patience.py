"""Try again where somebody else was faster, or the Hub is busy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hf_amdet.errors import ConflictError, HubError, HubUnavailableError

if TYPE_CHECKING:
    from httpx2 import Response

_Result = TypeVar("_Result")

_MAX_MOVES = 3
_BACKOFF = (1.0, 2.0, 4.0, 8.0)
_MAX_WAIT = 60.0
_RETRIED = (429, 502, 503, 504)


class MovedError(Exception):
    """Somebody else committed between our reading and our writing."""


def patiently(
    attempt: Callable[[], _Result], repo_id: str, sleep: Callable[[float], None]
) -> _Result:
    """Make an attempt, and again from its start where the branch moved on or the Hub was busy.

    Waits as long as the Hub asks for, up to a minute, else a few seconds, by calling `sleep`.

    Raises:
        ConflictError: the branch moved on at every attempt.
        HubUnavailableError: the Hub stayed busy, or cannot be reached at all.
    """
    moves, backoff = 0, iter(_BACKOFF)
    while True:
        try:
            return attempt()
        except MovedError as error:
            moves += 1
            if moves > _MAX_MOVES:
                raise ConflictError(
                    f"{repo_id} was changed by somebody else during each of {moves} attempts: "
                    "nothing was published; try again later"
                ) from error
        except HubUnavailableError as error:
            if not _is_busy(error):
                raise
            asked, wait = _asked_to_wait(response_of(error)), next(backoff, None)
            if wait is None:
                raise
            if asked is not None and asked > _MAX_WAIT:
                raise HubUnavailableError(f"{error} The Hub asks to wait {asked:.0f} s.") from error
            sleep(wait if asked is None else asked)


def _is_busy(error: HubUnavailableError) -> bool:
    response = response_of(error)
    if response is not None:
        return response.status_code in _RETRIED
    # The metadata check reads its answer as JSON before it looks at the status.
    return isinstance(error.__cause__, json.JSONDecodeError)


def _asked_to_wait(response: Response | None) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if response is None:
        return None
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    stated = response.headers.get("Retry-After", "").strip()
    return float(stated) if stated.isascii() and stated.isdigit() else None


def response_of(error: HubError) -> Response | None:
    """The answer of the Hub that an error of ours was made from."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    return cause.response if isinstance(cause, HfHubHTTPError) else None
