"""What a test makes go wrong, and the log of what was asked and sent."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from .state import HubError


@dataclass(frozen=True)
class LoggedRequest:
    """One request: `path` with its query, the Range header, and bytes of body in and out."""

    method: str
    path: str
    range: str | None
    body_size: int
    bytes_sent: int
    status: int


@dataclass
class Exchange:
    """A request under way; `sent` grows before each piece of the body goes out."""

    method: str
    path: str
    range: str | None
    received: int
    status: int = 0
    sent: int = 0

    def logged(self) -> LoggedRequest:
        """The exchange as it stands."""
        return LoggedRequest(
            self.method, self.path, self.range, self.received, self.sent, self.status
        )


@dataclass
class _Fault:
    match: re.Pattern[str]
    times: int | None

    def strikes(self, path: str) -> bool:
        if self.times == 0 or not self.match.search(path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Failure(_Fault):
    """Answer with an error instead."""

    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)

    def error(self) -> HubError:
        """The answer."""
        return HubError(self.status, "The double was told to fail", headers=self.headers)


@dataclass
class Truncation(_Fault):
    """Close the connection after `keep` bytes of the body, or after half of it."""

    keep: int | None = None

    def cut(self, length: int) -> int:
        """How many of the body's bytes go out."""
        return length // 2 if self.keep is None else min(self.keep, length)


class Faults:
    """The faults that are set and the log of exchanges; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: list[Failure] = []
        self._truncations: list[Truncation] = []
        self._exchanges: list[Exchange] = []

    def add(self, fault: Failure | Truncation) -> None:
        """Set a fault; the one set first strikes first."""
        with self._lock:
            if isinstance(fault, Failure):
                self._failures.append(fault)
            else:
                self._truncations.append(fault)

    def clear(self) -> None:
        """Lift every fault."""
        with self._lock:
            self._failures.clear()
            self._truncations.clear()

    def failure(self, path: str) -> Failure | None:
        """The failure that strikes this request, if one does."""
        with self._lock:
            return next((fault for fault in self._failures if fault.strikes(path)), None)

    def cut(self, path: str, length: int) -> int:
        """How many bytes of a body of this length go out."""
        with self._lock:
            fault = next((fault for fault in self._truncations if fault.strikes(path)), None)
        return length if fault is None else fault.cut(length)

    def record(self, exchange: Exchange) -> None:
        """Log an exchange from its start, so that the client cannot outrun the log."""
        with self._lock:
            self._exchanges.append(exchange)

    def log(self) -> list[LoggedRequest]:
        """Every exchange so far."""
        with self._lock:
            return [exchange.logged() for exchange in self._exchanges]

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self._exchanges.clear()
