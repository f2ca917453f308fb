"""Routes that change nothing: who am I, repositories, trees, files."""

from __future__ import annotations

import hashlib
import mimetypes
from urllib.parse import urlencode

from .objects import Blob, Commit
from .payloads import (
    commit_item,
    repo_info,
    repo_summary,
    security_status,
    tree_items,
    whoami,
)
from .state import HubError, Json, Kind, Repo
from .web import API, SITE, Call, Response, json_response, paged, quoted, ranged, route

_EXPANDED_PAGE = 50
_CDN_HOST = "localhost"
"""Another name of the same machine: the client then treats it as a host that is not the Hub."""


def get_whoami(call: Call) -> Response:
    """The user of the token."""
    user = call.user
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return json_response(whoami(user))


def auth_check(call: Call) -> Response:
    """Whether the user may read the files."""
    call.open_repo()
    return json_response({})


def auth_check_write(call: Call) -> Response:
    """Whether the user may write to the repository."""
    repo, user = call.open_repo(), call.writer()
    if not repo.writable_by(user):
        raise HubError(403, f"Forbidden: no write access to {repo.id}")
    return json_response({})


def get_info(call: Call) -> Response:
    """Information about a repository; open to all even when its files are gated."""
    repo, request = call.repo(), call.request
    info = repo_info(
        repo,
        _commit(call, repo),
        blobs=request.flag("blobs"),
        security=request.flag("securityStatus"),
        expand=request.params("expand") + request.params("expand[]"),
    )
    return json_response(info)


def get_scan(call: Call) -> Response:
    """The security status on its own."""
    return json_response(security_status(call.repo()))


def get_tree(call: Call) -> Response:
    """The entries of a directory, or of everything below it."""
    repo = call.repo()
    commit = _commit(call, repo)
    folder = call.parts.get("path", "").strip("/")
    expand = call.request.flag("expand")
    items = tree_items(repo, commit, expand=expand)
    if folder and items.get(folder, {}).get("type") != "directory":
        raise _entry_not_found(folder, commit)
    prefix = f"{folder}/" if folder else ""
    chosen = [
        item
        for path, item in items.items()
        if path.startswith(prefix)
        and (call.request.flag("recursive") or "/" not in path.removeprefix(prefix))
    ]
    limit = min(call.state.page_size, _EXPANDED_PAGE) if expand else call.state.page_size
    return paged(call, chosen, limit)


def post_paths_info(call: Call) -> Response:
    """The entries of the paths asked for; a path that is not there is left out."""
    repo = call.repo()
    form = call.request.form()
    expand = form.get("expand", [""])[0].lower() == "true"
    items = tree_items(repo, _commit(call, repo), expand=expand)
    return json_response([items[path] for path in form.get("paths", []) if path in items])


def get_refs(call: Call) -> Response:
    """Branches, tags and, when asked for, pull requests."""
    repo = call.repo()

    def under(prefix: str) -> list[Json]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in sorted(repo.refs.items())
            if ref.startswith(prefix)
        ]

    refs: Json = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if call.request.flag("include_prs"):
        refs["pullRequests"] = under("refs/pr/")
    return json_response(refs)


def get_commits(call: Call) -> Response:
    """The history of a revision, newest first."""
    repo = call.repo()
    history = repo.history(_commit(call, repo))
    return paged(call, [commit_item(commit) for commit in history], call.state.page_size)


def get_list(call: Call) -> Response:
    """The repositories of one type that the user may see and the filters let through."""
    request = call.request
    kind: Kind = "dataset" if call.parts["kind"] == "dataset" else "model"
    author, search = request.param("author"), request.param("search").lower()
    wanted_tags = set(request.params("filter")) | set(request.params("pipeline_tag"))
    listed: list[Json] = []
    for repo in call.state.repos.values():
        if repo.kind != kind or not repo.readable_by(call.user):
            continue
        if (author and repo.id.partition("/")[0] != author) or search not in repo.id.lower():
            continue
        item = repo_info(repo, repo.main) if request.flag("full") else repo_summary(repo, repo.main)
        if request.flag("cardData"):
            item["cardData"] = repo_info(repo, repo.main)["cardData"]
        gate = request.param("gated")
        if gate and request.flag("gated") != bool(repo.gated):
            continue
        if wanted_tags <= set(item["tags"]):
            listed.append(item)
    sort = request.param("sort")
    if sort in ("lastModified", "createdAt"):
        listed.sort(key=lambda item: str(item[sort]), reverse=True)
    return paged(call, listed, call.state.page_size)


def resolve(call: Call) -> Response:
    """A file's bytes, or for LFS the signed address that has them."""
    repo = call.open_repo()
    commit = _commit(call, repo)
    path = call.parts["path"]
    blob = commit.tree.get(path)
    if blob is None:
        raise _entry_not_found(path, commit)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "ETag": f'"{blob.etag}"'}
    if blob.lfs:
        return _to_cdn(call, repo, path, blob, headers)
    return _content(call, repo, path, blob, headers)


def get_cdn(call: Call) -> Response:
    """An LFS file's bytes. The signature is the permission: no token comes along."""
    if call.request.param("Signature") != _signature(call.parts["signed"]):
        raise HubError(403, "Invalid signature")
    repo = call.state.repos[call.kind, call.parts["repo"]]
    blob = repo.lfs[call.parts["sha256"]]
    name = call.parts["path"].rpartition("/")[2]
    headers = {
        "ETag": f'"{blob.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quoted(name)}",
    }
    return _content(call, repo, call.parts["path"], blob, headers)


def _to_cdn(call: Call, repo: Repo, path: str, blob: Blob, headers: dict[str, str]) -> Response:
    signed = f"{repo.kind}s/{repo.id}/{blob.sha256}/{path}"
    query = urlencode({"Expires": 3600, "Signature": _signature(signed)})
    address = f"http://{_CDN_HOST}:{call.request.port}/cdn/{quoted(signed)}?{query}"
    headers |= {
        "X-Linked-Size": str(repo.declared_size(path, blob)),
        "X-Linked-ETag": f'"{blob.sha256}"',
        "Location": address,
        "Content-Type": "text/plain; charset=utf-8",
    }
    return Response(302, f"Found. Redirecting to {address}".encode(), headers)


def _content(call: Call, repo: Repo, path: str, blob: Blob, headers: dict[str, str]) -> Response:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    if not blob.lfs and not kind.startswith("image/"):
        # As on the Hub: no file of a repository is ever run as a page of the site.
        kind = "text/plain; charset=utf-8"
    full = Response(200, repo.served(path, blob), {**headers, "Content-Type": kind})
    if call.request.method == "HEAD":
        return Response(200, full.body, full.headers, length=repo.declared_size(path, blob))
    return ranged(full, call.request.headers.get("range"))


def _commit(call: Call, repo: Repo) -> Commit:
    return repo.resolve(call.parts.get("rev", "main"))


def _entry_not_found(path: str, commit: Commit) -> HubError:
    headers = {"X-Repo-Commit": commit.sha}
    return HubError(404, f"Entry not found: {path}", "EntryNotFound", headers=headers)


def _signature(signed: str) -> str:
    return hashlib.sha256(f"double:{signed}".encode()).hexdigest()[:32]


ROUTES = (
    route("GET", r"/api/whoami-v2", get_whoami),
    route("GET", r"/api/(?P<kind>model|dataset)s", get_list),
    route("GET", API, get_info),
    route("GET", API + r"/revision/(?P<rev>[^/]+)", get_info),
    route("GET", API + r"/auth-check", auth_check),
    route("GET", API + r"/auth-check/write", auth_check_write),
    route("GET", API + r"/scan", get_scan),
    route("GET", API + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", get_tree),
    route("POST", API + r"/paths-info/(?P<rev>[^/]+)", post_paths_info),
    route("GET", API + r"/refs", get_refs),
    route("GET", API + r"/commits/(?P<rev>[^/]+)", get_commits),
    route("GET", SITE + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    route(
        "GET",
        r"/cdn/(?P<signed>(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
        r"/(?P<sha256>[0-9a-f]{64})/(?P<path>.+))",
        get_cdn,
    ),
)
