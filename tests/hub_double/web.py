"""Requests, responses, and what every route shares: parameters, access checks, paging."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode

from .state import HubError, HubState, Kind, Repo, User

API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
"""Path of a repository in the API."""

SITE = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)"
"""Path of a repository on the site; models have no prefix."""

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One HTTP request. `path` is raw (quoted) and without the query; `headers` in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    port: int

    @property
    def base_url(self) -> str:
        """The address that the client used for this server."""
        return f"http://{self.headers.get('host') or f'127.0.0.1:{self.port}'}"

    @property
    def target(self) -> str:
        """Path and query as they were sent."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def flag(self, name: str) -> bool:
        """Whether a query parameter is set to something other than false."""
        return self.param(name).lower() not in ("", "0", "false")

    def param(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return next(iter(self.params(name)), default)

    def params(self, name: str) -> list[str]:
        """Every value of a query parameter."""
        return parse_qs(self.query).get(name, [])

    def form(self) -> dict[str, list[str]]:
        """The body as a form."""
        return parse_qs(self.body.decode())

    def json(self) -> Any:
        """The body as JSON; an empty body is an empty object."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "Request body is not valid JSON") from None


@dataclass(frozen=True)
class Response:
    """One HTTP response. `length` is the Content-Length where a HEAD states another one."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class Call:
    """A request that a route matched, with the route's named parts unquoted."""

    state: HubState
    request: Request
    parts: Mapping[str, str]

    @property
    def user(self) -> User | None:
        """Who sent the request: None without a token, an error for a token nobody has."""
        return user_of(self.state, self.request)

    def repo(self) -> Repo:
        """The repository of the path, if this user may know of it."""
        repo = self.state.repos.get((self.kind, self.parts["repo"]))
        if repo is not None and repo.readable_by(self.user):
            return repo
        if self.user is None:
            # The Hub does not tell an anonymous client whether a private repository exists.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def open_repo(self) -> Repo:
        """The repository of the path, if this user may also read its files."""
        repo = self.repo()
        if repo.opened_to(self.user):
            return repo
        message = f"Access to {repo.kind} {repo.id} is restricted"
        if self.user is None:
            raise HubError(401, f"{message}. Please log in.", "GatedRepo")
        message += f" and you are not in the authorized list. Visit {self.request.base_url}"
        raise HubError(403, f"{message}/{repo.page} to ask for access.", "GatedRepo")

    def writer(self) -> User:
        """The user, who must hold a token that may write at all."""
        user = self.user
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if user.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        return user

    @property
    def kind(self) -> Kind:
        """The repository type of the path."""
        kind = self.parts.get("kind") or "model"
        return "dataset" if kind == "dataset" else "space" if kind == "space" else "model"


Handler = Callable[[Call], Response]


@dataclass(frozen=True)
class Route:
    """Method, pattern of the raw path, and the function that answers."""

    method: Literal["GET", "POST", "PUT"]
    pattern: re.Pattern[str]
    handler: Handler


def route(method: Literal["GET", "POST", "PUT"], pattern: str, handler: Handler) -> Route:
    """A route whose pattern has to match the whole raw path."""
    return Route(method, re.compile(pattern), handler)


def dispatch(routes: Sequence[Route], state: HubState, request: Request) -> Response:
    """Answer a request; a HEAD takes the route of the GET."""
    method = "GET" if request.method == "HEAD" else request.method
    try:
        for candidate in routes:
            match = candidate.pattern.fullmatch(request.path)
            if match and candidate.method == method:
                # Unquoted only now: refs%2Fpr%2F1 is one segment of the path, not three.
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part}
                with state.lock:
                    return candidate.handler(Call(state, request, parts))
        raise HubError(404, f"Sorry, the double does not answer {method} {request.path}")
    except HubError as error:
        return error_response(error)


def user_of(state: HubState, request: Request) -> User | None:
    """The user behind the bearer token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not token:
        return None
    user = state.users.get(token) if scheme.lower() == "bearer" else None
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer; dates in card metadata become text."""
    body = json.dumps(value, default=str).encode()
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, body, {**kind, **(headers or {})})


def error_response(error: HubError) -> Response:
    """An error as the client parses it: code and message in headers, message in the body."""
    # Header values are latin-1; a message may quote a file name that is not.
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode()}
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_response(
        {"error": error.message, **error.body}, error.status, {**headers, **error.headers}
    )


def paged(call: Call, items: Sequence[object], default_limit: int) -> Response:
    """One page of a list, with the address of the next one in the Link header."""
    request = call.request
    limit = min(int(request.param("limit") or default_limit), default_limit)
    start = int(request.param("cursor") or 0)
    headers = {}
    if start + limit < len(items):
        query = [(name, value) for name, value in parse_qsl(request.query) if name != "cursor"]
        address = (
            f"{request.base_url}{request.path}?{urlencode([*query, ('cursor', start + limit)])}"
        )
        headers["Link"] = f'<{address}>; rel="next"'
    return json_response(items[start : start + limit], headers=headers)


def ranged(response: Response, range_header: str | None) -> Response:
    """The part of a 200 response that a single-range Range header asks for."""
    match = _RANGE.fullmatch(range_header or "")
    if not match or match.groups() == ("", ""):
        return response
    size = len(response.body)
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= end:
        return Response(416, headers={"Content-Range": f"bytes */{size}"})
    headers = {**response.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return replace(response, status=206, body=response.body[start:end], headers=headers)


def quoted(path: str) -> str:
    """A path for an address: slashes stay."""
    return quote(path, safe="/")
