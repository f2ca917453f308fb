"""`HubDouble`: fill it, serve it, look into it, make it fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from . import community
from .faults import Failure, Faults, LoggedRequest, Truncation
from .objects import Commit, make_tree
from .server import running
from .state import MAIN, DiscussionView, HubState, Kind, Repo, Role, Thread, User


class HubDouble:
    """A Hub in memory.

    Args:
        page_size: entries per page of every paged answer; small values exercise paging.
        on_event: called with one line for each new commit, pull request, comment and the like.
    """

    def __init__(
        self, *, page_size: int = 1000, on_event: Callable[[str], None] | None = None
    ) -> None:
        self._state = HubState(page_size, on_event or (lambda line: None))
        self._faults = Faults()
        self._endpoint: str | None = None

    # Serving

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve on loopback until the block ends; yields the endpoint. Port 0 takes a free one."""
        with running(self._state, self._faults, port) as actual:
            self._endpoint = f"http://127.0.0.1:{actual}"
            try:
                yield self._endpoint
            finally:
                self._endpoint = None

    @property
    def endpoint(self) -> str:
        """The address while the hub is served."""
        if self._endpoint is None:
            raise RuntimeError("The hub is not served: use it inside `with hub.serve():`")
        return self._endpoint

    # Filling

    def add_user(
        self, token: str, name: str, orgs: Iterable[str] = (), role: Role = "write"
    ) -> User:
        """Add a token and its holder; a user may have several tokens."""
        user = User(token, name, tuple(orgs), role)
        with self._state.lock:
            self._state.users[token] = user
        return user

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: Literal["auto", "manual"] | bool = False,
        owner: str | None = None,
        repo_type: Kind = "model",
    ) -> str:
        """Add or replace a repository; returns the sha of its one commit.

        `owner` is the user or organisation that may write; the namespace where not given.
        """
        gate: Literal["auto", "manual", False] = "auto" if gated is True else gated
        with self._state.lock:
            tree = make_tree(files or {})
            return self._state.add_repo(
                repo_type, repo_id, tree, owner=owner, private=private, gated=gate
            ).sha

    def remove_repo(self, repo_id: str, *, repo_type: Kind = "model") -> None:
        """Delete a repository."""
        with self._state.lock:
            del self._state.repos[repo_type, repo_id]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        message: str = "Update",
        *,
        delete: Iterable[str] = (),
        revision: str = "main",
        author: str | None = None,
        repo_type: Kind = "model",
    ) -> str:
        """Commit as somebody else, past every check; returns the sha."""
        with self._state.lock:
            repo = self._repo(repo_type, repo_id)
            tree = {**repo.resolve(revision).tree, **make_tree(files or {})}
            for path in delete:
                del tree[path]
            ref = repo.full_ref(revision) or MAIN
            who = author or repo.owner
            return self._state.add_commit(repo, ref, tree, title=message, author=who).sha

    def set_ref(
        self, repo_id: str, ref: str, revision: str = "main", *, repo_type: Kind = "model"
    ) -> None:
        """Point a ref given in full, such as refs/tags/v1 or refs/heads/dev, at a revision."""
        with self._state.lock:
            repo = self._repo(repo_type, repo_id)
            repo.refs[ref] = repo.resolve(revision).sha

    def grant(self, repo_id: str, user: str, *, repo_type: Kind = "model") -> None:
        """Let a user through a repository's gate."""
        with self._state.lock:
            self._repo(repo_type, repo_id).granted.add(user)

    def set_security(
        self, repo_id: str, path: str, level: str, *, repo_type: Kind = "model"
    ) -> None:
        """State what the Hub's scanners think of a file: unsafe, suspicious, caution, ..."""
        with self._state.lock:
            self._repo(repo_type, repo_id).scanned[path] = level

    # Looking

    def files(
        self, repo_id: str, revision: str = "main", *, repo_type: Kind = "model"
    ) -> dict[str, bytes]:
        """The files of a revision as they were committed, whatever `tamper` serves."""
        with self._state.lock:
            tree = self._repo(repo_type, repo_id).resolve(revision).tree
            return {path: blob.data for path, blob in sorted(tree.items())}

    def history(
        self, repo_id: str, revision: str = "main", *, repo_type: Kind = "model"
    ) -> list[Commit]:
        """The commits of a revision, newest first."""
        with self._state.lock:
            repo = self._repo(repo_type, repo_id)
            return repo.history(repo.resolve(revision))

    def pull_requests(self, repo_id: str, *, repo_type: Kind = "model") -> list[DiscussionView]:
        """The pull requests, oldest first."""
        threads = self._threads(repo_id, repo_type)
        return [thread for thread in threads if thread.is_pull_request]

    def discussions(self, repo_id: str, *, repo_type: Kind = "model") -> list[DiscussionView]:
        """The discussions that are no pull requests, oldest first."""
        threads = self._threads(repo_id, repo_type)
        return [thread for thread in threads if not thread.is_pull_request]

    def merge(self, repo_id: str, number: int, *, repo_type: Kind = "model") -> str:
        """Merge a pull request as the owner; returns the sha of the commit on main."""
        with self._state.lock:
            repo, thread = self._thread(repo_id, number, repo_type)
            return community.merge(self._state, repo, thread, repo.owner).sha

    def close(self, repo_id: str, number: int, *, repo_type: Kind = "model") -> None:
        """Close a discussion or pull request as the owner."""
        with self._state.lock:
            repo, thread = self._thread(repo_id, number, repo_type)
            community.set_status(self._state, repo, thread, repo.owner, "closed")

    @property
    def requests(self) -> list[LoggedRequest]:
        """Every request so far."""
        return self._faults.log()

    def bytes_sent(self, match: str = "") -> int:
        """Bytes of body sent in answer to requests whose path matches."""
        return sum(item.bytes_sent for item in self.requests if re.search(match, item.path))

    def forget_requests(self) -> None:
        """Empty the log of requests."""
        self._faults.forget()

    # Failing

    def fail(
        self,
        times: int | None = None,
        *,
        status: int = 503,
        match: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer requests whose path matches with `status`, the next `times` or all of them."""
        self._faults.add(Failure(re.compile(match), times, status, headers or {}))

    def truncate(self, match: str, *, times: int | None = None, keep: int | None = None) -> None:
        """Hang up after `keep` bytes of the body, or half of it."""
        self._faults.add(Truncation(re.compile(match), times, keep))

    def tamper(self, repo_id: str, path: str, data: bytes, *, repo_type: Kind = "model") -> None:
        """Serve other bytes for a file; its size, oid, sha256 and ETag stay as committed."""
        with self._state.lock:
            self._repo(repo_type, repo_id).tampered[path] = data

    def lie_size(self, repo_id: str, path: str, size: int, *, repo_type: Kind = "model") -> None:
        """State a wrong size for a file in all metadata and in the answer to HEAD."""
        with self._state.lock:
            self._repo(repo_type, repo_id).lied_sizes[path] = size

    def heal(self) -> None:
        """Undo `fail`, `truncate`, `tamper` and `lie_size`."""
        self._faults.clear()
        with self._state.lock:
            for repo in self._state.repos.values():
                repo.tampered.clear()
                repo.lied_sizes.clear()

    def _repo(self, repo_type: Kind, repo_id: str) -> Repo:
        return self._state.repo(repo_type, repo_id)

    def _thread(self, repo_id: str, number: int, repo_type: Kind) -> tuple[Repo, Thread]:
        repo = self._repo(repo_type, repo_id)
        return repo, repo.thread(number)

    def _threads(self, repo_id: str, repo_type: Kind) -> list[DiscussionView]:
        with self._state.lock:
            repo = self._repo(repo_type, repo_id)
            return [community.view(repo, thread) for thread in repo.threads]
