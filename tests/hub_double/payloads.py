"""The JSON shapes of the Hub's answers."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

from .cards import card_data
from .objects import Blob, Commit, Tree, directories, merge_trees, unified_diff
from .state import MAIN, OPEN, HubState, Json, Repo, Thread, User, hex_id

_CARD_TAGS = ("tags", "language", "datasets")


def whoami(user: User) -> Json:
    """Answer of /api/whoami-v2."""
    return {
        "type": "user",
        "id": hex_id("user", user.name),
        "name": user.name,
        "fullname": user.name,
        "email": f"{user.name}@example.com",
        "emailVerified": True,
        "canPay": False,
        "periodEnd": None,
        "isPro": False,
        "avatarUrl": f"/avatars/{user.name}.svg",
        "orgs": [_org(name) for name in user.orgs],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "test", "role": user.role},
        },
    }


def _org(name: str) -> Json:
    return {
        "type": "org",
        "id": hex_id("org", name),
        "name": name,
        "fullname": name,
        "avatarUrl": f"/avatars/{name}.svg",
        "isEnterprise": False,
        "roleInOrg": "write",
    }


def author(name: str) -> Json:
    """A user as the author of a discussion or event."""
    return {
        "_id": hex_id("user", name),
        "type": "user",
        "name": name,
        "fullname": name,
        "avatarUrl": f"/avatars/{name}.svg",
        "isHf": False,
        "isHfAdmin": False,
        "isMod": False,
        "isPro": False,
    }


def repo_summary(repo: Repo, commit: Commit) -> Json:
    """What both the list of repositories and the info of one hold."""
    card = repo_card(commit)
    summary: Json = {
        "_id": hex_id(repo.kind, repo.id),
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": repo_tags(card),
    }
    if repo.kind == "model":
        summary["modelId"] = repo.id
        summary |= {k: card[k] for k in ("pipeline_tag", "library_name") if k in card}
    return summary


def repo_info(
    repo: Repo,
    commit: Commit,
    *,
    blobs: bool = False,
    security: bool = False,
    expand: Collection[str] = (),
) -> Json:
    """Answer of R and R/revision/{rev}."""
    info = repo_summary(repo, commit)
    info["cardData"] = repo_card(commit) or None
    info["siblings"] = [
        _sibling(repo, path, blob) if blobs else {"rfilename": path}
        for path, blob in sorted(commit.tree.items())
    ]
    info["usedStorage"] = sum(blob.size for blob in repo.lfs.values())
    info["spaces"] = []
    if security:
        info["securityRepoStatus"] = security_status(repo)
    if expand:
        info = {key: value for key, value in info.items() if key in {"_id", "id", *expand}}
    return info


def repo_card(commit: Commit) -> dict[str, Any]:
    """The metadata of the README at this commit; empty when there is none."""
    readme = commit.tree.get("README.md")
    return card_data(readme.data if readme else None) or {}


def repo_tags(card: dict[str, Any]) -> list[str]:
    """The tags that the Hub derives from a card."""
    tags: list[str] = []
    for key in _CARD_TAGS:
        value = card.get(key) or []
        prefix = "dataset:" if key == "datasets" else ""
        tags += [f"{prefix}{item}" for item in (value if isinstance(value, list) else [value])]
    tags += [str(card[key]) for key in ("library_name", "pipeline_tag") if key in card]
    if "license" in card:
        tags.append(f"license:{card['license']}")
    bases = card.get("base_model") or []
    tags += [f"base_model:{base}" for base in (bases if isinstance(bases, list) else [bases])]
    return [*dict.fromkeys(tags), "region:us"]


def _sibling(repo: Repo, path: str, blob: Blob) -> Json:
    size = repo.declared_size(path, blob)
    sibling: Json = {"rfilename": path, "blobId": blob.oid, "size": size}
    if blob.lfs:
        sibling["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": blob.pointer_size}
    return sibling


def security_status(repo: Repo) -> Json:
    """The Hub's own scanners' view of the repository."""
    issues = [{"path": path, "level": level} for path, level in sorted(repo.scanned.items())]
    return {"scansDone": True, "filesWithIssues": issues}


def tree_items(repo: Repo, commit: Commit, *, expand: bool = False) -> dict[str, Json]:
    """Every file and directory of a commit by path."""
    items: dict[str, Json] = {}
    for path, oid in directories(commit.tree).items():
        if path:
            items[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
    for path, blob in commit.tree.items():
        size = repo.declared_size(path, blob)
        items[path] = {"type": "file", "path": path, "oid": blob.oid, "size": size}
        if blob.lfs:
            lfs = {"oid": blob.sha256, "size": size, "pointerSize": blob.pointer_size}
            items[path]["lfs"] = lfs
    if expand:
        for path, item in items.items():
            _expand(item, repo, commit, path)
    return dict(sorted(items.items()))


def _expand(item: Json, repo: Repo, commit: Commit, path: str) -> None:
    last = _last_change(repo, commit, path)
    item["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    if item["type"] == "file":
        level = repo.scanned.get(path, "safe")
        scan = {"status": level}
        item["securityFileStatus"] = {**scan, "avScan": scan, "pickleImportScan": scan}


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    def content(tree: Tree) -> dict[str, str]:
        return {p: b.oid for p, b in tree.items() if p == path or p.startswith(path + "/")}

    history = repo.history(commit)
    for newer, older in pairwise(history):
        if content(newer.tree) != content(older.tree):
            return newer
    return history[-1]


def commit_item(commit: Commit) -> Json:
    """An entry of R/commits/{rev}."""
    return {
        "id": commit.sha,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author}],
        "date": commit.date,
    }


def thread_summary(repo: Repo, thread: Thread) -> Json:
    """An entry of the list of discussions."""
    comments = sum(event["type"] == "comment" for event in thread.events)
    return {
        "num": thread.number,
        "title": thread.title,
        "author": author(thread.author),
        "createdAt": thread.created_at,
        "status": thread.status,
        "isPullRequest": thread.is_pull_request,
        "repo": {"name": repo.id, "type": repo.kind},
        "numComments": comments,
        "numReactionUsers": 0,
        "topReactions": [],
        "pinned": False,
    }


def thread_details(repo: Repo, thread: Thread, base_url: str) -> Json:
    """Answer of R/discussions/{n}."""
    details = thread_summary(repo, thread) | {
        "_id": hex_id(repo.kind, repo.id, thread.number),
        "collection": "discussions",
        "events": thread.events,
        "locked": False,
        "isReport": False,
    }
    if thread.is_pull_request:
        details |= {
            "changes": {"base": MAIN, "mergeCommitId": thread.merge_commit},
            "diff": thread_diff(repo, thread),
            "diffUrl": f"{base_url}/{repo.page}/discussions/{thread.number}.diff",
            "filesWithConflicts": conflicts(repo, thread),
        }
    return details


def thread_diff(repo: Repo, thread: Thread) -> str:
    """The diff of a pull request against the commit that it starts from."""
    if thread.base is None or thread.ref is None:
        return ""
    return unified_diff(repo.commits[thread.base].tree, repo.resolve(thread.ref).tree)


def conflicts(repo: Repo, thread: Thread) -> list[str]:
    """Files that both an open pull request and main changed since the pull request's base."""
    if thread.base is None or thread.ref is None or thread.status not in OPEN:
        return []
    base, theirs = repo.commits[thread.base].tree, repo.resolve(thread.ref).tree
    return merge_trees(base, repo.main.tree, theirs)[1]


def event(state: HubState, thread: Thread, user: str, kind: str, data: Json) -> Json:
    """Append an event to a thread and return it."""
    item = {
        "id": hex_id("event", thread.number, thread.created_at, len(thread.events)),
        "type": kind,
        "author": author(user),
        "createdAt": state.clock.tick(),
        "data": data,
    }
    thread.events.append(item)
    return item


def comment_event(state: HubState, thread: Thread, user: str, text: str) -> Json:
    """Append a comment to a thread."""
    now = state.clock.tick()
    latest = {"raw": text, "html": text, "updatedAt": now, "author": author(user)}
    data = {
        "edited": False,
        "hidden": False,
        "editors": [user],
        "editorAvatarUrls": [],
        "latest": latest,
        "numEdits": 0,
        "history": [],
        "reactions": [],
    }
    return event(state, thread, user, "comment", data)
