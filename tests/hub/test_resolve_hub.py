"""What a repo on a Hub resolves to, and what is said where the Hub does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_amdet.errors import (
    AmdetError,
    GatedRepoError,
    HashMismatchError,
    HubError,
    HubUnavailableError,
    MalformedFileError,
    NoTextTowerError,
    PickleOnlyError,
    UnknownRepoError,
    UnknownRevisionError,
    UsageError,
)
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import OutOfScope, ResolvedRepo
from hf_amdet.hub.resolve import resolve
from tests.hub import CONFIG, SHARDS, sharded_tower, tower, weights, write
from tests.hub.expected import unreadable
from tests.hub_double import HubDouble


def _out_of_scope(repo: ResolvedRepo) -> OutOfScope:
    assert repo.towers == () and repo.unreadable == () and repo.adapters == ()
    (part,) = repo.out_of_scope
    return part


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_branch_becomes_the_commit_it_stands_for_now(hub: HubDouble, at: Hub) -> None:
    first = hub.add_repo("org/model", tower())
    hub.set_ref("org/model", "refs/heads/dev/x", first)
    hub.set_ref("org/model", "refs/pr/1", first)
    second = hub.commit("org/model", {"model.safetensors": weights("c")})
    assert resolve("org/model", at).commit_sha == second
    for revision in (first, first[:10], "dev/x", "refs/pr/1"):
        assert resolve("org/model", at, revision).commit_sha == first
        assert resolve(f"org/model@{revision}", at).commit_sha == first


def test_a_hub_tower_is_found_like_a_local_one_with_declared_digests(
    hub: HubDouble, at: Hub
) -> None:
    hub.add_repo("org/model", {**sharded_tower(), "unet/config.json": b"{}"})
    repo = resolve("org/model", at)
    (found,) = repo.towers
    assert (repo.target, repo.repo_id, repo.directory) == ("org/model", "org/model", None)
    assert tuple(file.path for file in found.weights) == SHARDS
    assert all(file.sha256 and file.git_oid is None for file in found.weights)
    assert all(file.git_oid and file.sha256 is None for file in found.support)


def test_resolving_downloads_no_weights_and_caches_nothing(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    resolve("org/model", at)
    assert hub.bytes_sent("safetensors") == 0
    assert not at.cache.exists()


def test_every_request_after_the_first_is_pinned_to_the_commit(hub: HubDouble, at: Hub) -> None:
    sha = hub.add_repo("org/model", sharded_tower())
    resolve("org/model", at)
    first, *others = [request.path for request in hub.requests]
    assert first.startswith("/api/models/org/model")
    assert others and all(f"/resolve/{sha}/" in path for path in others)


def test_a_pickle_only_repo_names_the_way_out(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower(model__safetensors=None, pytorch_model__bin=b"x"))
    assert unreadable(resolve("org/model", at)).code == PickleOnlyError.code


def test_files_in_subfolders_are_not_taken_for_the_towers(hub: HubDouble, at: Hub) -> None:
    files = {"sub/pytorch_model.bin": b"x", "sub/model.safetensors": weights()}
    hub.add_repo("org/model", {**tower(model__safetensors=None), **files})
    found = unreadable(
        resolve("org/model", at), "'sub/model.safetensors'", "'sub/pytorch_model.bin'"
    )
    assert (found.path, found.code) == ("", NoTextTowerError.code)
    hub.add_repo("org/other", {"text_encoder/config.json": b"{}"})
    assert "no model" in _out_of_scope(resolve("org/other", at)).message


def test_folders_below_the_root_are_looked_into(hub: HubDouble, at: Hub, tmp_path: Path) -> None:
    files = {f"a/b/c/{name}": data for name, data in tower().items()}
    hub.add_repo("org/model", files)
    for target in ("org/model", str(write(files, tmp_path / "local"))):
        (found,) = resolve(target, at).towers
        assert (found.path, found.architecture) == ("a/b/c", "CLIPTextModel")
        assert [file.path for file in found.weights] == ["a/b/c/model.safetensors"]
        assert {file.path for file in found.support} == {
            f"a/b/c/{name}"
            for name in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
        }


@pytest.mark.parametrize("shard", ["../x.safetensors", "unet/model.safetensors", "/x.safetensors"])
def test_path_tricks_of_a_hub_index_are_malformed(shard: str, hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", {**sharded_tower({"a": shard}), "unet/model.safetensors": weights()})
    found = unreadable(resolve("org/model", at), "'unet/model.safetensors'")
    assert found.code == MalformedFileError.code


def test_an_unknown_repo_points_to_spelling_and_login(hub: HubDouble, at: Hub) -> None:
    with pytest.raises(UnknownRepoError, match=r"org/nothing.*private.*hf auth login.*HF_TOKEN"):
        resolve("org/nothing", at)


def test_an_unknown_revision_is_named(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    with pytest.raises(UnknownRevisionError, match=r"org/model .* nowhere"):
        resolve("org/model@nowhere", at)


def test_a_private_repo_opens_to_the_right_token_only(hub: HubDouble, at: Hub) -> None:
    hub.add_user("hf_owner", "alice", orgs=["org"])
    hub.add_user("hf_stranger", "bob")
    hub.add_repo("org/model", tower(), private=True)
    assert len(resolve("org/model", Hub(hub.endpoint, "hf_owner")).towers) == 1
    for token in (None, "hf_stranger"):
        with pytest.raises(UnknownRepoError):
            resolve("org/model", Hub(hub.endpoint, token))


def test_a_gated_repo_says_where_access_is_asked_for(hub: HubDouble, at: Hub) -> None:
    hub.add_user("hf_reader", "bob")
    hub.add_repo("org/model", tower(), gated=True)
    for token in (None, "hf_reader"):
        with pytest.raises(GatedRepoError, match=f"{hub.endpoint}/org/model"):
            resolve("org/model", Hub(hub.endpoint, token))
    hub.grant("org/model", "bob")
    assert len(resolve("org/model", Hub(hub.endpoint, "hf_reader")).towers) == 1


def test_the_environments_token_is_used_when_none_is_given(
    hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_user("hf_owner", "alice", orgs=["org"])
    hub.add_repo("org/model", tower(), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert len(resolve("org/model", at).towers) == 1


def test_the_environments_endpoint_is_used_when_none_is_given(hub: HubDouble) -> None:
    # In a process of its own, because huggingface_hub reads HF_ENDPOINT when it is imported.
    sha = hub.add_repo("org/model", tower())
    code = "from hf_amdet.hub.resolve import resolve; print(resolve('org/model').commit_sha)"
    assert _run(code, HF_ENDPOINT=hub.endpoint + "/") == sha


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_outage_is_an_error_although_a_copy_is_cached(
    status: int, hub: HubDouble, at: Hub
) -> None:
    hub.add_repo("org/model", tower())
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    hub.fail(status=status)
    with pytest.raises(HubUnavailableError, match=f"HTTP {status}.*not even from a cache"):
        resolve("org/model", at)


@pytest.mark.parametrize(("status", "error"), [(401, HubError), (403, HubError), (418, HubError)])
def test_other_refusals_are_hub_errors(
    status: int, error: type[HubError], hub: HubDouble, at: Hub
) -> None:
    hub.add_repo("org/model", tower())
    hub.fail(status=status)
    with pytest.raises(error, match=f"HTTP {status}"):
        resolve("org/model", at)


def test_a_refused_connection_is_hub_unavailable(at: Hub) -> None:
    with pytest.raises(HubUnavailableError, match="could not be reached"):
        resolve("org/model", Hub("http://127.0.0.1:1"))


def test_an_address_that_is_no_hub_is_said(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    with pytest.raises(AmdetError):
        resolve("org/model", Hub(f"{hub.endpoint}/elsewhere"))
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        resolve("org/model", Hub("no-scheme"))


def test_an_outage_between_listing_and_config_is_an_error(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    hub.fail(match="/resolve/")
    with pytest.raises(HubUnavailableError):
        resolve("org/model", at)


def test_a_tampered_config_is_not_read(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    config = json.dumps(CONFIG).encode()
    hub.tamper("org/model", "config.json", config.replace(b"4", b"5"))
    assert unreadable(resolve("org/model", at)).code == HashMismatchError.code


def test_a_config_of_another_size_than_declared_is_not_read(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    for size in (10, 1000):
        hub.lie_size("org/model", "config.json", size)
        assert unreadable(resolve("org/model", at)).code == HashMismatchError.code


# Secrets and start-up


def test_no_message_and_no_chained_error_holds_the_token(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower(), gated=True)
    hub.fail(1, status=503)
    for token in ("hf_secret", "hf_secret\n", "hf_secret\u00e9"):
        me = Hub(hub.endpoint, token)
        assert "hf_secret" not in repr(me)
        with pytest.raises(AmdetError) as caught:
            resolve("org/model", me)
        error: BaseException | None = caught.value
        while error is not None:
            assert "hf_secret" not in str(error)
            context = None if error.__suppress_context__ else error.__context__
            error = error.__cause__ or context


def test_importing_resolve_loads_neither_torch_nor_huggingface_hub() -> None:
    code = (
        "import hf_amdet.hub.resolve, sys;"
        "print([m for m in ('torch', 'transformers', 'httpx2', 'numpy') if m in sys.modules])"
    )
    assert _run(code) == "[]"
