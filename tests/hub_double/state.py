"""What the double remembers: users, repositories with their refs, discussion threads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from .objects import Blob, Commit, make_commit

Json = dict[str, Any]
Kind = Literal["model", "dataset", "space"]
Role = Literal["read", "write"]
Gate = Literal["auto", "manual", False]
MAIN = "refs/heads/main"
OPEN = ("open", "draft")
_SHA = re.compile(r"[0-9a-f]{7,40}")


class HubError(Exception):
    """An answer other than 2xx: status, message, the Hub's error code, extra body and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body, self.headers = body or {}, headers or {}


@dataclass(frozen=True)
class User:
    """The holder of one token; a read-only token may write nowhere."""

    token: str = field(repr=False)
    name: str
    orgs: tuple[str, ...]
    role: Role

    def owns(self, namespace: str) -> bool:
        """Whether the namespace is the user's own or one of their organisations'."""
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class DiscussionView:
    """A discussion or pull request as tests see it.

    `base` is the sha that a pull request starts from, `head` its newest; None for a discussion.
    """

    number: int
    title: str
    description: str
    status: str
    author: str
    comments: tuple[str, ...]
    is_pull_request: bool
    ref: str | None
    base: str | None
    head: str | None


@dataclass
class Thread:
    """A discussion or pull request; both share one numbering."""

    number: int
    title: str
    author: str
    created_at: str
    description: str
    base: str | None = None
    status: str = "open"
    merge_commit: str | None = None
    events: list[Json] = field(default_factory=list)

    @property
    def is_pull_request(self) -> bool:
        """A pull request knows the commit that it starts from."""
        return self.base is not None

    @property
    def ref(self) -> str | None:
        """Where a pull request's commits go."""
        return f"refs/pr/{self.number}" if self.is_pull_request else None


@dataclass
class Repo:
    """A repository with its commits, refs, threads and LFS store."""

    kind: Kind
    id: str
    owner: str
    private: bool
    gated: Gate
    created_at: str
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    threads: list[Thread] = field(default_factory=list)
    lfs: dict[str, Blob] = field(default_factory=dict)
    granted: set[str] = field(default_factory=set)
    scanned: dict[str, str] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)
    lied_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """The path of the repository's page, without a leading slash."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def main(self) -> Commit:
        """The head of the main branch."""
        return self.commits[self.refs[MAIN]]

    def readable_by(self, user: User | None) -> bool:
        """Whether the user may know that this repository exists."""
        return not self.private or self.writable_by(user)

    def writable_by(self, user: User | None) -> bool:
        """Whether the repository is the user's; the token's role is not looked at."""
        return user is not None and user.owns(self.owner)

    def opened_to(self, user: User | None) -> bool:
        """Whether the gate, if any, lets the user at the files."""
        granted = user is not None and user.name in self.granted
        return not self.gated or granted or self.writable_by(user)

    def full_ref(self, revision: str) -> str | None:
        """The ref that a branch or tag name, or a ref in full, stands for."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((ref for ref in names if ref in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, ref, sha or sha prefix of at least seven digits."""
        ref = self.full_ref(revision)
        if ref is not None:
            return self.commits[self.refs[ref]]
        if _SHA.fullmatch(revision):
            matches = [sha for sha in self.commits if sha.startswith(revision)]
            if len(matches) == 1:
                return self.commits[matches[0]]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, commit: Commit) -> list[Commit]:
        """The commit and its first parents, newest first."""
        chain = [commit]
        while chain[-1].parents:
            chain.append(self.commits[chain[-1].parents[0]])
        return chain

    def thread(self, number: int) -> Thread:
        """A discussion or pull request by its number."""
        if not 1 <= number <= len(self.threads):
            raise HubError(404, f"Discussion {number} not found")
        return self.threads[number - 1]

    def thread_of(self, ref: str | None) -> Thread | None:
        """The pull request whose commits go to this ref."""
        return next((thread for thread in self.threads if ref and thread.ref == ref), None)

    def served(self, path: str, blob: Blob) -> bytes:
        """The bytes that a download gets: another file's, if the test tampered with them."""
        return self.tampered.get(path, blob.data)

    def declared_size(self, path: str, blob: Blob) -> int:
        """The size that metadata states: a wrong one, if the test asked for a lie."""
        return self.lied_sizes.get(path, blob.size)


class Clock:
    """Dates one second apart from a fixed start, so that commit shas do not vary between runs."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def tick(self) -> str:
        """The next date in the Hub's format."""
        self._now += timedelta(seconds=1)
        return self._now.strftime("%Y-%m-%dT%H:%M:%S.000Z")


class HubState:
    """Everything behind the HTTP surface. Callers hold `lock` while they read or write."""

    def __init__(self, page_size: int, announce: Callable[[str], None]) -> None:
        self.lock = threading.RLock()
        self.clock = Clock()
        self.page_size = page_size
        self.announce = announce
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[Kind, str], Repo] = {}
        self.uploads: dict[str, tuple[Repo, str, int]] = {}

    def repo(self, kind: Kind, repo_id: str) -> Repo:
        """A repository by type and id, whoever asks."""
        try:
            return self.repos[kind, repo_id]
        except KeyError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def add_repo(
        self,
        kind: Kind,
        repo_id: str,
        tree: Mapping[str, Blob],
        *,
        owner: str | None = None,
        private: bool = False,
        gated: Gate = False,
    ) -> Commit:
        """Create a repository whose first commit holds `tree`."""
        owner = owner or repo_id.partition("/")[0]
        repo = Repo(kind, repo_id, owner, private, gated, self.clock.tick())
        self.repos[kind, repo_id] = repo
        return self.add_commit(repo, MAIN, tree, title="initial commit", author=owner)

    def add_commit(
        self,
        repo: Repo,
        ref: str,
        tree: Mapping[str, Blob],
        *,
        title: str,
        author: str,
        message: str = "",
        parent: str | None = None,
    ) -> Commit:
        """Put `tree` on top of the ref, or of `parent` for a ref that is not there yet."""
        parent = parent or repo.refs.get(ref)
        commit = make_commit(
            tree,
            parents=(parent,) if parent else (),
            title=title,
            message=message,
            author=author,
            date=self.clock.tick(),
        )
        repo.commits[commit.sha] = commit
        repo.refs[ref] = commit.sha
        repo.lfs.update({blob.sha256: blob for blob in tree.values() if blob.lfs})
        self.announce(f"commit  {repo.page}  {ref}  {commit.sha[:12]}  {title}  by {author}")
        return commit

    def open_thread(
        self, repo: Repo, *, title: str, description: str, author: str, base: str | None
    ) -> Thread:
        """Open a discussion, or a pull request that starts from the commit `base`."""
        number = len(repo.threads) + 1
        thread = Thread(number, title, author, self.clock.tick(), description, base)
        repo.threads.append(thread)
        word = "pull request" if thread.is_pull_request else "discussion"
        self.announce(f"{word}  {repo.page}/discussions/{number}  {title}  by {author}")
        return thread


def hex_id(*parts: object, length: int = 24) -> str:
    """A stable hexadecimal id, as the Hub gives to users, events and repositories."""
    return hashlib.sha1("\0".join(map(str, parts)).encode()).hexdigest()[:length]
