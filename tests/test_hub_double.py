"""The double against the real client, and its answers against models of the Hub's own API."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
)
from huggingface_hub.community import DiscussionComment
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from pydantic import TypeAdapter
from pyhfapi import types
from pyhfapi.types import api as shapes
from pyhfapi.types.api import discussion_retrieve_response

from tests.hub_double import HubDouble
from tests.hub_double.objects import directories, make_blob, make_tree

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
REPO = "org/model"
OWNER, STRANGER, READER, ANONYMOUS = "hf_owner", "hf_stranger", "hf_reader", None
CARD = (
    b"---\nlicense: mit\ntags: [clip]\nlanguage: no\npipeline_tag: feature-extraction\n---\n# M\n"
)
ROOT = Path(__file__).resolve().parents[1]


def safetensors(tensors: int = 1) -> bytes:
    """A safetensors file whose header grows with the number of tensors."""
    header = {
        f"layer.{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
        for n in range(tensors)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\1\2\3\4" * tensors


WEIGHTS = safetensors()
FILES = {
    "README.md": CARD,
    "config.json": b"{}\n",
    "model.safetensors": WEIGHTS,
    "text_encoder/config.json": b'{"a": 1}\n',
    "text_encoder/deep/model.safetensors": b"deep",
}


@pytest.fixture
def hub(hub: HubDouble) -> HubDouble:
    """A hub with one public repository and three people."""
    populate(hub)
    return hub


def populate(hub: HubDouble) -> str:
    hub.add_user(OWNER, "alice", orgs=["org"])
    hub.add_user(STRANGER, "bob")
    hub.add_user(READER, "carol", role="read")
    return hub.add_repo(REPO, FILES)


def client(hub: HubDouble, token: str | None = OWNER) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token or False)


def commit(
    hub: HubDouble,
    files: Mapping[str, bytes],
    title: str = "A",
    *,
    token: str | None = OWNER,
    repo: str = REPO,
    **options: Any,
) -> CommitInfo:
    """Commit files with the client; options as for `HfApi.create_commit`."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    done: CommitInfo = client(hub, token).create_commit(
        repo, operations, commit_message=title, **options
    )
    return done


def ask(
    hub: HubDouble,
    path: str,
    body: object = None,
    token: str | None = OWNER,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """A plain HTTP request, for what the client does not show."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    sent = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(hub.endpoint + path, data, sent, method=method)
    try:
        with closing(urllib.request.urlopen(request, timeout=10)) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with closing(error):
            return error.code, dict(error.headers), error.read()


def fits(shape: Any, hub: HubDouble, path: str, body: object = None) -> Any:
    """The answer, checked strictly against a model of the Hub's API."""
    status, _, answer = ask(hub, path, body)
    assert status == 200, answer
    return TypeAdapter(shape).validate_json(answer, strict=True)


@contextmanager
def refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> Iterator[None]:
    """The client raises this very class for this status."""
    with pytest.raises(kind) as error:
        yield
    assert (type(error.value), error.value.response.status_code) == (kind, status)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client wanted to wait before a retry; it does not wait."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


# Objects


def test_hashes_are_gits() -> None:
    assert make_blob(b"hello\n", lfs=False).oid == git_hash(b"hello\n")
    assert directories({})[""] == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    tree = make_tree({"a.txt": b"hello\n", "a/b/c.txt": b"hello\n", "a.d": b""})
    # From `git write-tree` on the same files.
    assert directories(tree) == {
        "": "af119e4595893cb8a0c8406491968646c50682a6",
        "a": "91942592790b66ae4bec319bf951d1c7692c5e85",
        "a/b": "2bcada35da78a7011b5497fcf851bb11e2353a39",
    }


def test_same_calls_give_the_same_commits() -> None:
    shas = {populate(HubDouble()) for _ in range(2)}
    assert len(shas) == 1


def test_large_and_weight_files_are_lfs() -> None:
    tree = make_tree({"big.txt": b"x" * 10_000_001, "a.bin": b"x", "b.bin": b"", "c.txt": b"x"})
    assert {path: blob.lfs for path, blob in tree.items()} == {
        "big.txt": True,
        "a.bin": True,
        "b.bin": False,
        "c.txt": False,
    }


# Users and repositories


def test_whoami(hub: HubDouble) -> None:
    me = client(hub).whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("alice", ["org"])
    assert me["auth"]["accessToken"]["role"] == "write"
    fits(types.APIGetUserInfoResponse, hub, "/api/whoami-v2")


def test_unknown_token_is_unauthorized(hub: HubDouble) -> None:
    with refused(401):
        client(hub, "hf_nobody").whoami()
    with refused(401):
        client(hub, "hf_nobody").model_info(REPO)


def test_create_repo(hub: HubDouble) -> None:
    url = client(hub).create_repo("org/new", private=True)
    assert url == f"{hub.endpoint}/org/new"
    assert client(hub).model_info("org/new").private is True
    assert list(hub.files("org/new")) == [".gitattributes"]
    data = client(hub).create_repo("alice/results", repo_type="dataset")
    assert (data.repo_id, data.repo_type) == ("alice/results", "dataset")
    assert hub.history("alice/results", repo_type="dataset")[0].author == "alice"
    fits(shapes.RepoCreateResponse, hub, "/api/repos/create", {"name": "third"})


def test_create_repo_that_exists(hub: HubDouble) -> None:
    with refused(409):
        client(hub).create_repo(REPO)
    assert client(hub).create_repo(REPO, exist_ok=True) == f"{hub.endpoint}/{REPO}"


@pytest.mark.parametrize("token", [STRANGER, READER])
def test_create_repo_in_a_foreign_namespace(hub: HubDouble, token: str) -> None:
    with refused(403):
        client(hub, token).create_repo("org/other")


def test_auth_check(hub: HubDouble) -> None:
    client(hub, ANONYMOUS).auth_check(REPO)
    client(hub).auth_check(REPO, write=True)
    with refused(403):
        client(hub, STRANGER).auth_check(REPO, write=True)


def test_model_info(hub: HubDouble) -> None:
    info = client(hub).model_info(REPO, files_metadata=True)
    assert info.sha == hub.history(REPO)[0].sha
    assert info.card_data is not None
    assert info.card_data.get("language") == "no"
    assert info.tags is not None
    assert {"clip", "license:mit", "feature-extraction"} <= set(info.tags)
    assert (info.private, info.gated, info.author) == (False, False, "org")
    assert info.last_modified is not None
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert {name: sibling.size for name, sibling in siblings.items()} == {
        name: len(data) for name, data in FILES.items()
    }
    assert siblings["config.json"].blob_id == git_hash(b"{}\n")
    assert siblings["config.json"].lfs is None
    lfs = siblings["model.safetensors"].lfs
    assert lfs is not None
    assert lfs.sha256 == make_blob(WEIGHTS, lfs=True).sha256
    plain = client(hub).model_info(REPO)
    assert all(sibling.size is None for sibling in plain.siblings or [])


def test_model_info_of_a_revision(hub: HubDouble) -> None:
    first = hub.history(REPO)[0].sha
    second = hub.commit(REPO, {"new.txt": b"new"}, "Somebody else's", delete=["config.json"])
    hub.set_ref(REPO, "refs/tags/v1", first)
    api = client(hub)
    assert api.model_info(REPO).sha == second
    for revision in ("v1", first, first[:8]):
        assert api.model_info(REPO, revision=revision).sha == first
    assert "new.txt" in hub.files(REPO)
    assert "config.json" not in hub.files(REPO)
    assert [commit.title for commit in hub.history(REPO)] == ["Somebody else's", "initial commit"]


def test_model_info_with_security_status_and_expand(hub: HubDouble) -> None:
    hub.set_security(REPO, "model.safetensors", "unsafe")
    status = client(hub).model_info(REPO, securityStatus=True).security_repo_status
    assert status == {
        "scansDone": True,
        "filesWithIssues": [{"path": "model.safetensors", "level": "unsafe"}],
    }
    fits(shapes.ModelGetSecurityStatusResponse, hub, f"/api/models/{REPO}/scan")
    info = client(hub).model_info(REPO, expand=["sha", "gated"])
    assert info.sha is not None
    assert info.siblings is None


@pytest.mark.parametrize("page_size", [1000, 2])
def test_list_repo_tree(page_size: int) -> None:
    hub = HubDouble(page_size=page_size)
    populate(hub)
    with hub.serve():
        entries = list(client(hub).list_repo_tree(REPO, recursive=True))
        folder = list(client(hub).list_repo_tree(REPO, "text_encoder/deep"))
        top = list(client(hub).list_repo_tree(REPO))
        path = f"/api/models/{REPO}/tree/main?recursive=true&expand=true"
        fits(shapes.ModelListTreeContentResponse, hub, path)
    assert [entry.path for entry in entries] == sorted(
        [*FILES, "text_encoder", "text_encoder/deep"]
    )
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    lfs = files["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256) == (len(WEIGHTS), make_blob(WEIGHTS, lfs=True).sha256)
    assert [entry.path for entry in folder] == ["text_encoder/deep/model.safetensors"]
    assert len(top) == 4
    pages = [item for item in hub.requests if "recursive=true" in item.path.lower()]
    assert len(pages) == (2 if page_size == 1000 else 5)


def test_expanded_tree_names_the_last_change(hub: HubDouble) -> None:
    sha = hub.commit(REPO, {"config.json": b"{ }\n"}, "Change the config")
    hub.commit(REPO, {"other.txt": b"x"})
    (entry,) = client(hub).get_paths_info(REPO, ["config.json"], expand=True)
    assert isinstance(entry, RepoFile)
    assert entry.last_commit is not None
    assert (entry.last_commit.oid, entry.last_commit.title) == (sha, "Change the config")
    assert entry.security is not None
    assert entry.security.safe


def test_get_paths_info_omits_what_is_missing(hub: HubDouble) -> None:
    found = client(hub).get_paths_info(REPO, ["config.json", "text_encoder", "missing"])
    assert [entry.path for entry in found] == ["config.json", "text_encoder"]
    form = b"paths=config.json&paths=model.safetensors&expand=true"
    path = f"/api/models/{REPO}/paths-info/main"
    assert len(fits(shapes.ModelListPathsInfoResponse, hub, path, form)) == 2


def test_list_repo_refs(hub: HubDouble) -> None:
    sha = hub.history(REPO)[0].sha
    hub.set_ref(REPO, "refs/tags/v1")
    commit(hub, {"a.txt": b"a"}, create_pr=True)
    refs = client(hub).list_repo_refs(REPO, include_pull_requests=True)
    assert [(ref.name, ref.target_commit) for ref in refs.branches] == [("main", sha)]
    assert [ref.name for ref in refs.tags] == ["v1"]
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
    assert client(hub).list_repo_refs(REPO).pull_requests is None
    fits(shapes.ModelListRefsResponse, hub, f"/api/models/{REPO}/refs?include_prs=1")


def test_list_repo_commits(hub: HubDouble) -> None:
    sha = hub.commit(REPO, {"a.txt": b"a"}, "Second", author="bob")
    commits = client(hub).list_repo_commits(REPO)
    assert [commit.title for commit in commits] == ["Second", "initial commit"]
    assert (commits[0].commit_id, commits[0].authors) == (sha, ["bob"])
    fits(shapes.ModelListCommitsResponse, hub, f"/api/models/{REPO}/commits/main")


def test_list_models() -> None:
    hub = HubDouble(page_size=2)
    populate(hub)
    hub.add_repo("org/second", {"README.md": b"---\ntags: [other]\n---\n"})
    hub.add_repo("org/secret", private=True)
    hub.add_repo("bob/third", gated=True)
    hub.add_repo("org/data", repo_type="dataset")
    with hub.serve():
        everyone, owner = client(hub, ANONYMOUS), client(hub)

        def ids(**filters: Any) -> list[str]:
            return [info.id for info in everyone.list_models(**filters)]

        assert ids() == [REPO, "org/second", "bob/third"]
        assert len([item for item in hub.requests if item.path.startswith("/api/models")]) == 2
        assert len(list(owner.list_models(author="org"))) == 3
        assert ids(author="org", filter="clip") == [REPO]
        assert ids(sort="created_at")[0] == "bob/third"
        assert ids(gated=True) == ["bob/third"]
        assert ids(search="SECOND", limit=1) == ["org/second"]
        (full,) = everyone.list_models(filter="clip", full=True, cardData=True)
        assert (full.sha, full.siblings is not None) == (hub.history(REPO)[0].sha, True)
        assert full.card_data is not None
        assert [info.id for info in everyone.list_datasets()] == ["org/data"]


# Downloads


@pytest.mark.parametrize("path", ["config.json", "text_encoder/deep/model.safetensors"])
def test_download(hub: HubDouble, tmp_path: Path, path: str) -> None:
    sha = hub.history(REPO)[0].sha
    local = Path(client(hub).hf_hub_download(REPO, path, cache_dir=tmp_path))
    assert local.read_bytes() == FILES[path]
    assert local.relative_to(tmp_path).parts[2] == sha
    assert local.resolve().name == make_tree(FILES)[path].etag
    assert hub.bytes_sent(path) == len(FILES[path])


def test_download_from_a_quoted_ref_and_a_name_with_spaces(hub: HubDouble, tmp_path: Path) -> None:
    name = "a folder/naïve #1.safetensors"
    commit(hub, {name: b"x"}, create_pr=True)
    local = client(hub).hf_hub_download(REPO, name, revision="refs/pr/1", cache_dir=tmp_path)
    assert Path(local).read_bytes() == b"x"


def test_lfs_files_come_from_another_host_without_the_token(hub: HubDouble) -> None:
    path = f"/{REPO}/resolve/main/model.safetensors"
    url = hub.endpoint + path
    token = {"Authorization": f"Bearer {OWNER}"}
    head = httpx2.head(url, headers=token)
    assert head.status_code == 302
    assert head.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert head.headers["X-Repo-Commit"] == hub.history(REPO)[0].sha
    location = head.headers["Location"]
    assert httpx2.URL(location).host != httpx2.URL(url).host
    assert httpx2.get(location).content == WEIGHTS
    assert httpx2.get(location[:-1] + "?").status_code == 403


@pytest.mark.parametrize(
    ("wanted", "status", "body"),
    [
        ("bytes=0-1", 206, b"{}"),
        ("bytes=1-", 206, b"}\n"),
        ("bytes=-1", 206, b"\n"),
        ("bytes=0-999", 206, b"{}\n"),
        ("bytes=9-", 416, b""),
        ("lines=1-2", 200, b"{}\n"),
    ],
)
def test_ranges(hub: HubDouble, wanted: str, status: int, body: bytes) -> None:
    path = f"/{REPO}/resolve/main/config.json"
    got = ask(hub, path, headers={"Range": wanted})
    assert (got[0], got[2]) == (status, body)
    logged = hub.requests[-1]
    assert (logged.method, logged.path, logged.range) == ("GET", path, wanted)
    assert (logged.status, logged.bytes_sent) == (status, len(body))


def test_snapshot_download(hub: HubDouble, tmp_path: Path) -> None:
    sha = hub.history(REPO)[0].sha
    pattern = "text_encoder/*"
    api = client(hub)
    folder = api.snapshot_download(REPO, allow_patterns=pattern, cache_dir=tmp_path, max_workers=2)
    assert Path(folder).name == sha
    assert {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    } == {path: data for path, data in FILES.items() if path.startswith("text_encoder/")}
    assert hub.bytes_sent("^/org/model/resolve/.*README") == 0


@pytest.mark.parametrize("tensors", [1, 2000])
def test_safetensors_header_is_read_by_ranges(hub: HubDouble, tensors: int) -> None:
    header = safetensors(tensors)
    hub.commit(REPO, {"te/model.safetensors": header + b"\0" * 400_000})
    found = client(hub).parse_safetensors_file_metadata(REPO, "te/model.safetensors")
    assert len(found.tensors) == tensors
    reads = [item for item in hub.requests if item.status == 206]
    assert len(reads) == (1 if tensors == 1 else 2)
    assert sum(item.bytes_sent for item in reads) < len(header) + 100_001


# Access


def test_private_repo_exists_only_for_its_owners(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("org/secret", {"model.safetensors": WEIGHTS}, private=True)
    for token, status in [(ANONYMOUS, 401), (STRANGER, 404)]:
        for repo in ("org/secret", "org/missing"):
            with refused(status, RepositoryNotFoundError):
                client(hub, token).model_info(repo)
        with pytest.raises(RepositoryNotFoundError):
            client(hub, token).hf_hub_download(
                "org/secret", "model.safetensors", cache_dir=tmp_path
            )
    local = client(hub).hf_hub_download("org/secret", "model.safetensors", cache_dir=tmp_path)
    assert Path(local).read_bytes() == WEIGHTS
    with pytest.raises(RepositoryNotFoundError):
        commit(hub, {"a": b"a"}, token=STRANGER, repo="org/secret", create_pr=True)


def test_gated_repo_shows_its_metadata_but_not_its_files(hub: HubDouble, tmp_path: Path) -> None:
    hub.add_repo("org/gated", FILES, gated="manual")
    for token, status in [(ANONYMOUS, 401), (STRANGER, 403)]:
        api = client(hub, token)
        assert api.model_info("org/gated").gated == "manual"
        with refused(status, GatedRepoError):
            api.hf_hub_download("org/gated", "config.json", cache_dir=tmp_path)
        with pytest.raises(GatedRepoError):
            api.parse_safetensors_file_metadata("org/gated", "model.safetensors")
        with pytest.raises(GatedRepoError):
            api.auth_check("org/gated")
    hub.grant("org/gated", "bob")
    client(hub, STRANGER).auth_check("org/gated")
    client(hub, OWNER).hf_hub_download("org/gated", "config.json", cache_dir=tmp_path)


def test_missing_revision_and_entry(hub: HubDouble, tmp_path: Path) -> None:
    api = client(hub)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nope")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="f" * 40, cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "nope.json", cache_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nope"))
    assert not api.file_exists(REPO, "nope.json")
    hub.remove_repo(REPO)
    assert not api.repo_exists(REPO)


# Commits


def test_commit_on_main(hub: HubDouble) -> None:
    files = {"README.md": CARD + b"more\n", "new.safetensors": b"new weights"}
    done = commit(hub, files, "Add a report", commit_description="All of it")
    assert done.pr_url is None
    newest = hub.history(REPO)[0]
    assert (newest.sha, newest.title, newest.message) == (done.oid, "Add a report", "All of it")
    assert newest.author == "alice"
    assert newest.tree["new.safetensors"].lfs
    assert hub.files(REPO)["README.md"] == CARD + b"more\n"
    assert hub.files(REPO)["config.json"] == FILES["config.json"]
    assert done.commit_url == f"{hub.endpoint}/{REPO}/commit/{done.oid}"


def test_lfs_content_is_sent_once(hub: HubDouble) -> None:
    for name in ("one.bin", "two.bin"):
        commit(hub, {name: b"same content"})
    puts = [item for item in hub.requests if item.method == "PUT"]
    assert [(item.body_size, item.status) for item in puts] == [(12, 200)]
    assert hub.files(REPO)["two.bin"] == b"same content"


def test_lfs_upload_from_a_file(hub: HubDouble, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(300_000))
    operation = CommitOperationAdd("big.bin", path)
    client(hub).create_commit(REPO, [operation], commit_message="Big")
    assert hub.files(REPO)["big.bin"] == bytes(300_000)


def test_corrupt_lfs_upload_is_refused(hub: HubDouble) -> None:
    wanted = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 3}]}
    _, _, answer = ask(hub, f"/{REPO}.git/info/lfs/objects/batch", wanted)
    href = json.loads(answer)["objects"][0]["actions"]["upload"]["href"]
    assert ask(hub, href.removeprefix(hub.endpoint), b"abc", None, method="PUT")[0] == 400
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64}}
    assert ask(hub, f"/api/models/{REPO}/commit/main", line)[0] == 400


def test_unchanged_files_are_not_sent(hub: HubDouble) -> None:
    before = hub.history(REPO)[0].sha
    done = commit(hub, {"README.md": CARD, "model.safetensors": WEIGHTS}, create_pr=True)
    assert (done.oid, done.pr_url) == (before, None)
    assert hub.pull_requests(REPO) == []
    assert not [item for item in hub.requests if "/commit/" in item.path]


def test_empty_commit_is_a_commit(hub: HubDouble) -> None:
    line = {"key": "header", "value": {"summary": "Empty", "description": ""}}
    path = f"/api/models/{REPO}/commit/main"
    answer = fits(shapes.ModelCommitResponse, hub, path, line)
    newest, older = hub.history(REPO)
    assert (newest.sha, newest.tree) == (answer.commit_oid, older.tree)


def test_delete_and_copy(hub: HubDouble) -> None:
    operations: list[CommitOperation] = [
        CommitOperationDelete("text_encoder/", is_folder=True),
        CommitOperationDelete("config.json"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
    ]
    client(hub).create_commit(REPO, operations, commit_message="Tidy up")
    assert hub.files(REPO) == {
        "README.md": CARD,
        "model.safetensors": WEIGHTS,
        "copy.safetensors": WEIGHTS,
    }
    with pytest.raises(RemoteEntryNotFoundError):
        client(hub).delete_file("nope", REPO)


def test_preupload_contract(hub: HubDouble) -> None:
    files = [
        {"path": "config.json", "sample": "", "size": 3},
        {"path": "model.safetensors", "sample": "", "size": 3},
        {"path": "new.txt", "sample": "", "size": 10_000_001},
    ]
    path = f"/api/models/{REPO}/preupload/main"
    answer = fits(shapes.ModelCheckPreuploadResponse, hub, path, {"files": files})
    tree = hub.history(REPO)[0].tree
    assert [(file.upload_mode, file.oid) for file in answer.files] == [
        ("regular", tree["config.json"].oid),
        ("lfs", tree["model.safetensors"].sha256),
        ("lfs", None),
    ]


def test_stale_parent_is_refused_without_a_pull_request(hub: HubDouble) -> None:
    parent = hub.history(REPO)[0].sha
    newer = hub.commit(REPO, {"other.txt": b"other"})
    with refused(412):
        commit(hub, {"a.txt": b"a"}, parent_commit=parent)
    done = commit(hub, {"a.txt": b"a"}, parent_commit=newer[:7])
    assert hub.history(REPO)[0].sha == done.oid


def test_pull_request_starts_from_its_parent_commit(hub: HubDouble) -> None:
    parent = hub.history(REPO)[0].sha
    newer = hub.commit(REPO, {"other.txt": b"other"})
    done = commit(
        hub,
        {"amdet/report.json": b"{}", "extra.bin": b"lfs"},
        "Add a report",
        token=STRANGER,
        commit_description="What was found",
        parent_commit=parent,
        create_pr=True,
    )
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert done.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    (pull,) = hub.pull_requests(REPO)
    assert (pull.number, pull.title, pull.description) == (1, "Add a report", "What was found")
    assert (pull.status, pull.author, pull.ref) == ("open", "bob", "refs/pr/1")
    assert (pull.base, pull.head, pull.comments) == (parent, done.oid, ())
    assert hub.history(REPO)[0].sha == newer
    assert hub.history(REPO, "refs/pr/1")[1].sha == parent
    assert "other.txt" not in hub.files(REPO, "refs/pr/1")


def test_pull_request_lacks_what_main_has_in_the_meantime(hub: HubDouble) -> None:
    # The trap that callers have to know: preupload compares with main, not with the parent.
    parent = hub.history(REPO)[0].sha
    hub.commit(REPO, {"report.json": b"{}"})
    files = {"report.json": b"{}", "other.json": b"{}"}
    commit(hub, files, parent_commit=parent, create_pr=True)
    assert "report.json" not in hub.files(REPO, "refs/pr/1")
    assert "other.json" in hub.files(REPO, "refs/pr/1")


def test_pull_request_is_updated_in_place(hub: HubDouble) -> None:
    opened = commit(hub, {"a": b"1"}, "First", token=STRANGER, create_pr=True)
    onto: dict[str, Any] = {"token": STRANGER, "revision": "refs/pr/1"}
    update = commit(hub, {"a": b"2", "b.bin": b"b"}, "Second", parent_commit=opened.oid, **onto)
    (pull,) = hub.pull_requests(REPO)
    assert (pull.title, pull.head) == ("First", update.oid)
    assert hub.files(REPO, "refs/pr/1")["a"] == b"2"
    assert client(hub).model_info(REPO, revision="refs/pr/1").sha == update.oid
    again = commit(hub, {"a": b"2"}, **onto)
    assert again.oid == update.oid
    with refused(412):
        commit(hub, {"a": b"3"}, parent_commit=opened.oid, **onto)


def test_who_may_write(hub: HubDouble) -> None:
    hub.add_user("hf_dave", "dave")
    commit(hub, {"a": b"a"}, token=STRANGER, create_pr=True)
    onto: dict[str, Any] = {"revision": "refs/pr/1"}
    attempts: list[tuple[int, str | None, dict[str, Any]]] = [
        (403, STRANGER, {}),
        (403, READER, {"create_pr": True}),
        (403, "hf_dave", onto),
    ]
    for status, token, options in attempts:
        with refused(status):
            commit(hub, {"x": b"x"}, token=token, **options)
    with refused(401, RepositoryNotFoundError):
        commit(hub, {"x": b"x"}, token=ANONYMOUS)
    with refused(404, RevisionNotFoundError):
        commit(hub, {"x": b"x"}, revision="nope")
    assert commit(hub, {"x": b"x"}, **onto).oid == hub.pull_requests(REPO)[0].head
    hub.close(REPO, 1)
    with refused(403):
        commit(hub, {"x": b"y"}, token=STRANGER, **onto)


@pytest.mark.parametrize(
    ("front_matter", "message"),
    [
        ("license: [", "parsing"),
        ("license: my-own", "license"),
        ("tags: clip", "tags"),
        ("- a list", "object"),
        ("amdet: 1\namdet: 2", "duplicated"),
    ],
)
def test_invalid_card_is_refused(hub: HubDouble, front_matter: str, message: str) -> None:
    card = f"---\n{front_matter}\n---\n# M\n".encode()
    with pytest.raises(ValueError, match=message):
        commit(hub, {"README.md": card}, create_pr=True)
    hub.commit(REPO, {"README.md": card}, "An old card that nobody checked")
    assert client(hub).model_info(REPO).sha == hub.history(REPO)[0].sha


def test_invalid_card_is_refused_by_the_commit_too(hub: HubDouble) -> None:
    value = {"path": "README.md", "content": "---\nlicense: [\n---\n", "encoding": "utf-8"}
    path = f"/api/models/{REPO}/commit/main"
    assert ask(hub, path, {"key": "file", "value": value})[0] == 400


def test_card_without_metadata_is_a_warning(hub: HubDouble) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(hub, {"README.md": b"# M\n"})


def test_concurrent_publishing(hub: HubDouble) -> None:
    def publish(n: int) -> int | None:
        return commit(hub, {f"{n}.txt": b"x"}, f"Report {n}", create_pr=True).pr_num

    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(publish, range(12)))
    assert sorted(number or 0 for number in numbers) == list(range(1, 13))
    for pull in hub.pull_requests(REPO):
        added = set(hub.files(REPO, pull.ref or "")) - set(FILES)
        assert added == {f"{pull.title.removeprefix('Report ')}.txt"}


# Discussions


def test_discussion(hub: HubDouble) -> None:
    api = client(hub, STRANGER)
    opened = api.create_discussion(REPO, "A question", description="Is it safe?")
    assert (opened.num, opened.status, opened.author) == (1, "open", "bob")
    assert not opened.is_pull_request
    comment = client(hub).comment_discussion(REPO, 1, "It is.")
    assert (comment.content, comment.author) == ("It is.", "alice")
    assert api.rename_discussion(REPO, 1, "An answer").new_title == "An answer"
    change = api.change_discussion_status(REPO, 1, "closed", comment="Thanks.")
    assert change.new_status == "closed"
    details = api.get_discussion_details(REPO, 1)
    assert (details.title, details.status) == ("An answer", "closed")
    texts = [event.content for event in details.events if isinstance(event, DiscussionComment)]
    assert texts == ["Is it safe?", "It is.", "Thanks."]
    (seen,) = hub.discussions(REPO)
    assert (seen.description, seen.comments) == ("Is it safe?", ("It is.", "Thanks."))
    hub.add_user("hf_dave", "dave")
    with refused(403):
        client(hub, "hf_dave").change_discussion_status(REPO, 1, "open")


def test_discussions_are_listed_by_page_and_filter() -> None:
    hub = HubDouble(page_size=2)
    populate(hub)
    with hub.serve():
        api = client(hub, STRANGER)
        for n in range(1, 4):
            api.create_discussion(REPO, f"Question {n}")
        client(hub).create_pull_request(REPO, "A draft")
        hub.close(REPO, 1)

        def numbers(**filters: Any) -> list[int]:
            return [found.num for found in api.get_repo_discussions(REPO, **filters)]

        assert numbers() == [4, 3, 2, 1]
        assert numbers(discussion_type="pull_request") == [4]
        assert numbers(discussion_type="discussion", discussion_status="open") == [3, 2]
        assert numbers(author="alice") == [4]
        assert hub.pull_requests(REPO)[0].status == "draft"
        fits(shapes.DiscussionListResponse, hub, f"/api/models/{REPO}/discussions?p=0")


def test_discussion_contracts(hub: HubDouble) -> None:
    base = f"/api/models/{REPO}/discussions"
    body = {"title": "A question", "description": "Is it safe?", "pullRequest": False}
    assert fits(shapes.DiscussionCreateResponse, hub, base, body).num == 1
    commit(hub, {"a": b"a"}, commit_description="B", create_pr=True)
    fits(shapes.DiscussionAddCommentResponse, hub, f"{base}/2/comment", {"comment": "Hello"})
    fits(shapes.DiscussionChangeTitleResponse, hub, f"{base}/2/title", {"title": "New"})
    fits(shapes.DiscussionChangeStatusResponse, hub, f"{base}/2/status", {"status": "closed"})
    for number, shape in [
        (1, discussion_retrieve_response.UnionMember0),
        (2, discussion_retrieve_response.UnionMember1),
    ]:
        fits(shape, hub, f"{base}/{number}?diff=1")


def test_pull_request_details_and_merge(hub: HubDouble) -> None:
    api = client(hub, STRANGER)
    operations: list[CommitOperation] = [
        CommitOperationAdd("config.json", b'{"x": 1}\n'),
        CommitOperationDelete("text_encoder/config.json"),
    ]
    api.create_commit(REPO, operations, commit_message="Change", create_pr=True)
    hub.commit(REPO, {"other.txt": b"other"})
    details = api.get_discussion_details(REPO, 1)
    assert details.git_reference == "refs/pr/1"
    assert details.conflicting_files == []
    assert details.diff is not None
    assert "--- a/config.json\n+++ b/config.json\n@@ -1 +1 @@\n-{}\n+" in details.diff
    assert "+++ /dev/null" in details.diff
    with refused(403):
        api.merge_pull_request(REPO, 1)
    client(hub).merge_pull_request(REPO, 1)
    newest = hub.history(REPO)[0]
    assert newest.title == "Change (#1)"
    files = hub.files(REPO)
    assert (files["config.json"], files["other.txt"]) == (b'{"x": 1}\n', b"other")
    assert "text_encoder/config.json" not in files
    merged = api.get_discussion_details(REPO, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", newest.sha)


def test_conflicting_pull_request_cannot_be_merged(hub: HubDouble) -> None:
    api = client(hub)
    for n in (1, 2):
        commit(hub, {"config.json": b"%d\n" % n}, create_pr=True)
    assert hub.merge(REPO, 1) == hub.history(REPO)[0].sha
    assert api.get_discussion_details(REPO, 2).conflicting_files == ["config.json"]
    with refused(409):
        api.merge_pull_request(REPO, 2)
    hub.close(REPO, 2)
    assert [pull.status for pull in hub.pull_requests(REPO)] == ["merged", "closed"]


def test_datasets_take_commits_too(hub: HubDouble) -> None:
    hub.add_repo("org/results", {"README.md": b"---\nlicense: mit\n---\n"}, repo_type="dataset")
    where: dict[str, Any] = {"repo": "org/results", "repo_type": "dataset"}
    done = commit(hub, {"data/one.json": b"{}"}, token=STRANGER, create_pr=True, **where)
    assert done.repo_url.repo_type == "dataset"
    (pull,) = hub.pull_requests("org/results", repo_type="dataset")
    assert pull.head == done.oid
    assert not hub.pull_requests(REPO)


# Faults


def test_errors_are_raised_at_once_where_the_client_does_not_retry(hub: HubDouble) -> None:
    hub.fail(1, status=503, match=r"/api/models/org/model$")
    with refused(503):
        client(hub).model_info(REPO)
    assert client(hub).model_info(REPO).sha
    hub.fail(status=500, match="/commit/")
    for _ in range(2):
        with refused(500):
            commit(hub, {"a": b"a"})
    assert len(hub.history(REPO)) == 1
    hub.heal()
    commit(hub, {"a": b"a"})


def test_rate_limit_is_waited_out(hub: HubDouble, waits: list[float]) -> None:
    hub.fail(2, status=429, match="/tree/", headers={"Retry-After": "7"})
    assert list(client(hub).list_repo_tree(REPO))
    assert waits == [8, 8]
    assert [item.status for item in hub.requests] == [429, 429, 200]


@pytest.mark.parametrize(
    ("client_chunk", "second_read"),
    # The client keeps whole chunks only, of 10 MiB unless told: a smaller file starts again.
    [(50_000, ("bytes=100000-", 156_000)), (10 * 2**20, (None, 256_000))],
)
def test_truncated_download_goes_on(
    hub: HubDouble,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client_chunk: int,
    second_read: tuple[str | None, int],
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", client_chunk)
    data = bytes(range(256)) * 1000
    hub.commit(REPO, {"big.safetensors": data})
    hub.truncate(r"big\.safetensors", times=1, keep=120_000)
    local = client(hub).hf_hub_download(REPO, "big.safetensors", cache_dir=tmp_path)
    assert waits == [1]
    assert Path(local).read_bytes() == data
    reads = [(item.range, item.bytes_sent) for item in hub.requests if "/cdn/" in item.path]
    assert reads == [(None, 120_000), second_read]


def test_download_that_is_always_cut_fails(
    hub: HubDouble, waits: list[float], tmp_path: Path
) -> None:
    hub.truncate("model", keep=0)
    with pytest.raises(httpx2.RemoteProtocolError):
        client(hub).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path)
    assert waits


def test_tampered_bytes_keep_their_declared_hash(hub: HubDouble, tmp_path: Path) -> None:
    evil = WEIGHTS[::-1]
    hub.tamper(REPO, "model.safetensors", evil)
    local = Path(client(hub).hf_hub_download(REPO, "model.safetensors", cache_dir=tmp_path))
    # The client checks the size only: hashing is up to its caller.
    assert local.read_bytes() == evil
    assert local.resolve().name == make_blob(WEIGHTS, lfs=True).sha256
    (entry,) = client(hub).get_paths_info(REPO, ["model.safetensors"])
    assert isinstance(entry, RepoFile)
    assert entry.lfs is not None
    assert entry.lfs.sha256 == make_blob(WEIGHTS, lfs=True).sha256
    assert hub.files(REPO)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("size", [2, 10_000])
def test_lied_size_is_noticed(hub: HubDouble, tmp_path: Path, path: str, size: int) -> None:
    hub.lie_size(REPO, path, size)
    (entry,) = client(hub).get_paths_info(REPO, [path])
    assert isinstance(entry, RepoFile)
    assert entry.size == size
    with pytest.raises(OSError, match="Consistency check failed"):
        client(hub).hf_hub_download(REPO, path, cache_dir=tmp_path)
    hub.heal()
    client(hub).hf_hub_download(REPO, path, cache_dir=tmp_path)


def test_hub_that_went_away_is_really_away(tmp_path: Path) -> None:
    hub = HubDouble()
    sha = populate(hub)
    with hub.serve():
        api = client(hub)
        api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with pytest.raises(httpx2.ConnectError):
        api.model_info(REPO)
    # The trap that callers have to know: a branch name silently gives the cached file.
    assert sha in api.hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with pytest.raises(RuntimeError, match="not served"):
        _ = hub.endpoint


def test_hub_that_is_down_from_the_start(
    hub: HubDouble, waits: list[float], tmp_path: Path
) -> None:
    hub.fail(status=503)
    # The status is only in the cause: a Hub that is down looks like a missing file.
    with pytest.raises(LocalEntryNotFoundError):
        client(hub).hf_hub_download(REPO, "config.json", cache_dir=tmp_path)
    with pytest.raises(LocalEntryNotFoundError):
        client(hub).snapshot_download(REPO, cache_dir=tmp_path)


def test_unknown_address_is_an_error_that_says_so(hub: HubDouble) -> None:
    with pytest.raises(HfHubHTTPError, match="does not answer"):
        client(hub).get_user_overview("alice")


def test_pull_request_onto_a_pull_request_is_refused(hub: HubDouble) -> None:
    client(hub).create_pull_request(REPO, "A draft")
    with refused(400, BadRequestError):
        commit(hub, {"a": b"a"}, revision="refs/pr/1", create_pr=True)


# By hand


@pytest.fixture
def served_by_hand(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """`python -m tests.hub_double` in another process; yields a reader of its lines."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "README.md").write_text("# <Model>\n")
    (tmp_path / "sub" / "a.bin").write_bytes(b"a")
    command = [sys.executable, "-m", "tests.hub_double", "--owner", "alice", "--token", "hf_a"]
    with subprocess.Popen(
        [*command, f"{REPO}={tmp_path}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline
        process.terminate()
        assert process.wait(10) == 0


def test_serving_directories_by_hand(served_by_hand: Callable[[], str]) -> None:
    assert "initial commit" in served_by_hand()
    endpoint = served_by_hand().strip().removeprefix("HF_ENDPOINT=")
    api = HfApi(endpoint=endpoint, token="hf_a")
    assert sorted(api.list_repo_files(REPO)) == ["README.md", "sub/a.bin"]
    operation = CommitOperationAdd("new.txt", b"<b>\n")
    api.create_commit(REPO, [operation], commit_message="A & B", create_pr=True)
    lines = [served_by_hand() for _ in range(4)]
    assert any("pull request" in line and "A & B" in line for line in lines)
    page = httpx2.get(f"{endpoint}/{REPO}").text
    assert "# &lt;Model&gt;" in page
    page = httpx2.get(f"{endpoint}/{REPO}/discussions/1").text
    assert "A &amp; B #1" in page
    assert "+&lt;b&gt;" in page
    for path in ("/", f"/{REPO}/discussions"):
        assert REPO in httpx2.get(endpoint + path).text
