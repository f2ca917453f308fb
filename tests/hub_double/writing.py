"""Routes that write files: create a repository, preupload, LFS, commit, validate a card."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping

from .cards import validate
from .community import open_thread
from .objects import Blob, Commit, is_lfs, make_blob
from .payloads import event
from .state import MAIN, OPEN, HubError, Json, Kind, Repo, Thread, User, hex_id
from .web import API, SITE, Call, Response, json_response, quoted, route

_GIT_ATTRIBUTES = b"".join(
    b"*.%s filter=lfs diff=lfs merge=lfs -text\n" % suffix
    for suffix in (b"safetensors", b"bin", b"pt", b"msgpack")
)
_STALE_PARENT = "A commit has happened since. Please refresh and try again."


def create_repo(call: Call) -> Response:
    """Create a repository in the user's own namespace or one of their organisations."""
    user, body = call.writer(), call.request.json()
    namespace = body.get("organization") or user.name
    kind: Kind = body.get("type") or "model"
    repo_id = f"{namespace}/{body['name']}"
    if not user.owns(namespace):
        message = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise HubError(403, message)
    existing = call.state.repos.get((kind, repo_id))
    if existing is not None:
        url = f"{call.request.base_url}/{existing.page}"
        raise HubError(409, f"You already created this {kind} repo", body={"url": url})
    call.state.add_repo(
        kind,
        repo_id,
        {".gitattributes": make_blob(_GIT_ATTRIBUTES, lfs=False)},
        private=bool(body.get("private")) or body.get("visibility") == "private",
    )
    url = f"{call.request.base_url}/{call.state.repo(kind, repo_id).page}"
    return json_response({"url": url, "name": repo_id, "id": hex_id(kind, repo_id)})


def validate_yaml(call: Call) -> Response:
    """Check the front matter of a card."""
    errors, warnings = validate(str(call.request.json().get("content", "")))
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return json_response(answer, 400 if errors else 200)


def preupload(call: Call) -> Response:
    """How each file is to be sent, and the oid of what is there under its name."""
    repo, revision = call.repo(), call.parts["rev"]
    _require_push(call, repo, revision, create_pr=call.request.flag("create_pr"))
    commit = repo.resolve(revision)
    files = []
    for wanted in call.request.json()["files"]:
        mode = "lfs" if is_lfs(wanted["path"], wanted["size"]) else "regular"
        answer: Json = {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False}
        present = commit.tree.get(wanted["path"])
        if present is not None:
            answer["oid"] = present.etag
        files.append(answer)
    return json_response({"commitOid": commit.sha, "files": files})


def lfs_batch(call: Call) -> Response:
    """Addresses to upload objects to; none for an object that the repository has already."""
    repo, body, base_url = call.repo(), call.request.json(), call.request.base_url
    ref = (body.get("ref") or {}).get("name")
    # A pull request's objects come without a ref: anyone with a write token may send them.
    _require_push(call, repo, ref or "main", create_pr=ref is None)
    objects: list[Json] = []
    for wanted in body["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer: Json = {"oid": oid, "size": size}
        if oid not in repo.lfs:
            ticket = hex_id(repo.kind, repo.id, oid, size, length=40)
            call.state.uploads[ticket] = (repo, oid, size)
            verify = f"{base_url}/{quoted(repo.page)}.git/info/lfs/objects/verify"
            answer["actions"] = {
                "upload": {"href": f"{base_url}/lfs-upload/{ticket}"},
                "verify": {"href": verify},
            }
        objects.append(answer)
    media = {"Content-Type": "application/vnd.git-lfs+json"}
    return json_response({"transfer": "basic", "objects": objects}, headers=media)


def lfs_put(call: Call) -> Response:
    """Receive an object; the address is the permission."""
    try:
        repo, oid, size = call.state.uploads[call.parts["ticket"]]
    except KeyError:
        raise HubError(403, "Invalid upload address") from None
    data = call.request.body
    if len(data) != size or hashlib.sha256(data).hexdigest() != oid:
        raise HubError(400, "Content does not match its oid and size")
    repo.lfs[oid] = make_blob(data, lfs=True)
    return Response(200, headers={"ETag": f'"{oid}"'})


def lfs_verify(call: Call) -> Response:
    """Confirm that an object arrived whole."""
    repo, wanted = call.repo(), call.request.json()
    blob = repo.lfs.get(wanted["oid"])
    if blob is None or blob.size != wanted["size"]:
        raise HubError(404, "Object not found")
    return json_response({})


def post_commit(call: Call) -> Response:
    """Commit onto a branch or a pull request's ref, or open a pull request with the commit."""
    repo, revision = call.repo(), call.parts["rev"]
    create_pr = call.request.flag("create_pr")
    user = _require_push(call, repo, revision, create_pr=create_pr)
    lines = list(_ndjson(call.request.body))
    header: Json = next((value for key, value in lines if key == "header"), {})
    title, message = header.get("summary", ""), header.get("description", "")
    parent = _parent(repo, revision, header.get("parentCommit"), create_pr=create_pr)
    tree = _apply(repo, parent.tree, lines)
    thread: Thread | None = None
    if create_pr:
        thread = open_thread(call.state, repo, user.name, title, message, base=parent.sha)
    else:
        thread = repo.thread_of(repo.full_ref(revision))
    ref = (thread.ref if thread else repo.full_ref(revision)) or MAIN
    commit = call.state.add_commit(
        repo, ref, tree, title=title, message=message, author=user.name, parent=parent.sha
    )
    if thread is not None:
        data = {"oid": commit.sha, "subject": title}
        event(call.state, thread, user.name, "commit", data)
    site = f"{call.request.base_url}/{repo.page}"
    answer: Json = {"success": True, "commitOid": commit.sha, "hookOutput": ""}
    answer["commitUrl"] = f"{site}/commit/{commit.sha}"
    if create_pr and thread is not None:
        answer["pullRequestUrl"] = f"{site}/discussions/{thread.number}"
    return json_response(answer)


def _require_push(call: Call, repo: Repo, revision: str, *, create_pr: bool) -> User:
    user = call.writer()
    if create_pr:
        return user
    thread = repo.thread_of(repo.full_ref(revision))
    if thread is not None and thread.status not in OPEN:
        raise HubError(403, f"Forbidden: pull request {thread.number} is {thread.status}")
    if repo.writable_by(user) or (thread is not None and thread.author == user.name):
        return user
    message = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
    raise HubError(403, message)


def _parent(repo: Repo, revision: str, stated: str | None, *, create_pr: bool) -> Commit:
    ref = repo.full_ref(revision)
    if ref is None or ref.startswith("refs/tags/"):
        # A commit needs a branch to move: a sha or a tag will not do.
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if create_pr and ref != MAIN:
        raise HubError(400, "Pull requests can only be opened against main")
    head = repo.resolve(ref)
    if stated is None or head.sha.startswith(stated.lower()):
        return head
    if not create_pr:
        raise HubError(412, _STALE_PARENT)
    return repo.resolve(stated.lower())


def _ndjson(body: bytes) -> Iterator[tuple[str, Json]]:
    for line in body.split(b"\n"):
        if line.strip():
            try:
                item = json.loads(line)
                yield str(item["key"]), dict(item["value"])
            except (ValueError, KeyError, TypeError):
                raise HubError(400, "Malformed commit payload") from None


def _apply(
    repo: Repo, parent: Mapping[str, Blob], lines: list[tuple[str, Json]]
) -> dict[str, Blob]:
    tree = dict(parent)
    for key, value in lines:
        path = str(value.get("path", ""))
        if key == "file":
            tree[path] = make_blob(_decoded(value), lfs=False)
        elif key == "lfsFile":
            tree[path] = _uploaded(repo, path, str(value["oid"]))
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise _nothing_to_delete(path)
        elif key == "deletedFolder":
            inside = [name for name in tree if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise _nothing_to_delete(path)
            for name in inside:
                del tree[name]
        elif key != "header":
            raise HubError(400, f"Unknown operation {key}")
    _check_card(parent.get("README.md"), tree.get("README.md"))
    return tree


def _decoded(value: Json) -> bytes:
    if value.get("encoding") != "base64":
        return str(value["content"]).encode()
    try:
        return base64.b64decode(value["content"], validate=True)
    except binascii.Error:
        raise HubError(400, "Content is not valid base64") from None


def _uploaded(repo: Repo, path: str, oid: str) -> Blob:
    if oid not in repo.lfs:
        raise HubError(400, f"LFS pointer of {path} points to a file that does not exist")
    return repo.lfs[oid]


def _nothing_to_delete(path: str) -> HubError:
    # The client looks for these very words.
    return HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


def _check_card(before: Blob | None, after: Blob | None) -> None:
    if after is None or after == before:
        return
    errors, _ = validate(after.data.decode(errors="replace"))
    if errors:
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")


ROUTES = (
    route("POST", r"/api/repos/create", create_repo),
    route("POST", r"/api/validate-yaml", validate_yaml),
    route("POST", API + r"/preupload/(?P<rev>[^/]+)", preupload),
    route("POST", API + r"/commit/(?P<rev>[^/]+)", post_commit),
    route("POST", SITE + r"\.git/info/lfs/objects/batch", lfs_batch),
    route("POST", SITE + r"\.git/info/lfs/objects/verify", lfs_verify),
    route("PUT", r"/lfs-upload/(?P<ticket>[0-9a-f]{40})", lfs_put),
)
