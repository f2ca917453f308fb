from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from hf_amdet.hub import resolve as resolve_module
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import OutOfScope, ResolvedRepo, UnreadableTower
from hf_amdet.hub.resolve import parse_target, resolve
from tests.hub import CONFIG, SHARDS, sharded_tower, tower, weights, write
from tests.hub_double import HubDouble

INDEX = "model.safetensors.index.json"


@pytest.fixture
def at(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The double as `resolve` is told of it, without a token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return Hub(hub.endpoint, cache_dir=tmp_path / "cache")


def _unreadable(repo: ResolvedRepo) -> UnreadableTower:
    assert repo.towers == () and repo.out_of_scope == ()
    (tower,) = repo.unreadable
    return tower


def _out_of_scope(repo: ResolvedRepo) -> OutOfScope:
    assert repo.towers == () and repo.unreadable == ()
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


# Targets


@pytest.mark.parametrize(
    ("target", "revision", "expected"),
    [
        ("org/model", None, ("org/model", None)),
        ("gpt2", None, ("gpt2", None)),
        ("org/model@v1", None, ("org/model", "v1")),
        ("org/model@refs/pr/1", None, ("org/model", "refs/pr/1")),
        ("org/model@a@b", None, ("org/model", "a@b")),
        ("org/model", "dev/x", ("org/model", "dev/x")),
        ("org/model@v1", "v1", ("org/model", "v1")),
    ],
)
def test_a_target_splits_into_repo_and_revision(
    target: str, revision: str | None, expected: tuple[str, str | None]
) -> None:
    assert parse_target(target, revision) == expected


@pytest.mark.parametrize(
    ("target", "revision"),
    [("", None), ("@v1", None), ("org/model@", None), ("org/model", ""), ("org/model@v1", "v2")],
)
def test_a_contradicting_or_empty_target_is_wrong_usage(target: str, revision: str | None) -> None:
    with pytest.raises(UsageError):
        parse_target(target, revision)


@pytest.mark.parametrize("target", ["./missing", "../missing/x", "~/missing", "/missing/x"])
def test_a_path_that_is_not_there_is_wrong_usage(target: str) -> None:
    with pytest.raises(UsageError, match="no directory"):
        resolve(target)


@pytest.mark.parametrize("target", ["a/b/c", "org/mo del", "org--x/model", "..org/x", "x" * 5000])
def test_what_is_no_repo_id_is_wrong_usage(target: str) -> None:
    with pytest.raises(UsageError):
        resolve(target)


def test_a_directory_with_a_config_wins_over_a_repo_of_its_name(
    hub: HubDouble, at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/model", tower())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/model").mkdir(parents=True)
    assert resolve("org/model", at).repo_id == "org/model"
    write(tower(), tmp_path / "org/model")
    assert resolve("org/model", at).directory == (tmp_path / "org/model").resolve()


def test_a_local_directory_has_no_revision(tmp_path: Path) -> None:
    write(tower(), tmp_path)
    with pytest.raises(UsageError, match="no revision"):
        resolve(str(tmp_path), revision="main")


# What is in a folder


def test_a_local_tower_is_found_with_its_files_and_no_others(tmp_path: Path) -> None:
    files = tower(pytorch_model__bin=b"x", tokenization_evil__py=b"x", model__fp16__safetensors=b"")
    (tmp_path / "tower" / "text_encoder").mkdir(parents=True)
    repo = resolve(str(write(files, tmp_path / "tower")))
    assert (repo.target, repo.repo_id, repo.commit_sha) == ("tower", None, None)
    (found,) = repo.towers
    assert (found.path, found.architecture, found.config) == ("", "CLIPTextModel", CONFIG)
    assert [(file.path, file.size) for file in found.weights] == [
        ("model.safetensors", len(files["model.safetensors"]))
    ]
    assert [file.path for file in found.support] == [
        "config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    ]
    assert found.weight_map is None


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel"),
        ({"model_type": "clip", "architectures": ["CLIPTextModel"]}, "CLIPTextModel"),
        ({"model_type": "clip"}, "CLIPModel"),
        ({"model_type": "clip", "architectures": None}, "CLIPModel"),
        ({"model_type": "clip_text_model", "architectures": []}, "CLIPTextModel"),
        (
            {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]},
            "CLIPTextModelWithProjection",
        ),
    ],
)
def test_the_architecture_is_read_or_inferred(
    config: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    (found,) = resolve(str(write(tower(config), tmp_path))).towers
    assert found.architecture == architecture


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "'BertModel'"),
        ({"model_type": "clip", "architectures": ["CLIPVisionModel"]}, "'CLIPVisionModel'"),
        ({"model_type": "t5"}, "'t5'"),
        ({"model_type": "\x1b[2J"}, r"'\x1b[2J'"),
        ({"model_type": ["clip"]}, "['clip']"),
        ({}, "without architecture"),
    ],
)
def test_other_architectures_are_named_and_out_of_scope(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    assert named in _out_of_scope(resolve(str(write(tower(config), tmp_path)))).message


def test_a_folder_without_config_is_out_of_scope(tmp_path: Path) -> None:
    repo = resolve(str(write(tower(config__json=None), tmp_path)))
    assert "config.json" in _out_of_scope(repo).message


@pytest.mark.parametrize(
    ("changes", "code", "fault"),
    [
        ({"config__json": b"{"}, MalformedFileError.code, "does not parse"),
        ({"config__json": b"[]"}, MalformedFileError.code, "no JSON object"),
        (
            {"config__json": b'{"model_type": "clip", "model_type": "bert"}'},
            MalformedFileError.code,
            "stands twice",
        ),
        ({"config__json": b" " * (1024**2 + 1)}, MalformedFileError.code, "1048577 bytes"),
        (
            {"config__json": b'{"model_type": "clip", "architectures": "CLIPModel"}'},
            MalformedFileError.code,
            "no list of names",
        ),
        (
            {"config__json": b'{"model_type": "bert", "architectures": ["CLIPModel"]}'},
            MalformedFileError.code,
            "contradicts itself",
        ),
        (
            {"config__json": b'{"model_type": "clip_text_model", "architectures": ["CLIPModel"]}'},
            MalformedFileError.code,
            "contradicts itself",
        ),
        ({"vocab__json": bytes(32 * 1024**2 + 1)}, MalformedFileError.code, "vocab.json"),
        ({"model__safetensors": None}, NoTextTowerError.code, "neither"),
        (
            {"model__safetensors": None, "pytorch_model__bin": b"x"},
            PickleOnlyError.code,
            "spaces/safetensors/convert",
        ),
        (
            {"model__safetensors": None, "flax_model__msgpack": b"x"},
            PickleOnlyError.code,
            "flax_model.msgpack",
        ),
    ],
)
def test_a_tower_that_cannot_be_read_says_why(
    changes: dict[str, bytes | None], code: str, fault: str, tmp_path: Path
) -> None:
    found = _unreadable(resolve(str(write(tower(**changes), tmp_path))))
    assert found.code == code
    assert fault in found.message


def test_weights_above_the_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve_module, "MAX_WEIGHT_BYTES", 100)
    found = _unreadable(resolve(str(write(tower(), tmp_path))))
    assert (found.code, found.architecture) == (MalformedFileError.code, "CLIPTextModel")


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    (found,) = resolve(str(write(sharded_tower(), tmp_path))).towers
    assert tuple(file.path for file in found.weights) == SHARDS
    assert found.weight_map == {"a": SHARDS[0], "b": SHARDS[1]}
    assert found.support[-1].path == INDEX


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    files = {**sharded_tower(), "model.safetensors": weights()}
    (found,) = resolve(str(write(files, tmp_path))).towers
    assert [file.path for file in found.weights] == ["model.safetensors"]
    assert found.weight_map is None


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "..",
        ".hidden.safetensors",
        "config.json",
        "model.safetensors\n",
        "x\0.safetensors",
        "",
        "not-there.safetensors",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_path_tricks_in_shard_names_are_malformed(shard: Any, tmp_path: Path) -> None:
    write({"secret.safetensors": weights("a")}, tmp_path)
    write({"model.safetensors": weights("a")}, tmp_path / "tower" / "sub")
    found = _unreadable(resolve(str(write(sharded_tower({"a": shard}), tmp_path / "tower"))))
    assert found.code == MalformedFileError.code


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": []}'])
def test_an_index_without_weights_is_malformed(index: bytes, tmp_path: Path) -> None:
    found = _unreadable(resolve(str(write({**sharded_tower(), INDEX: index}, tmp_path))))
    assert found.code == MalformedFileError.code


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_a_link_that_leaves_the_directory_is_not_followed(name: str, tmp_path: Path) -> None:
    write(tower(), tmp_path / "outside")
    inside = write(tower(), tmp_path / "tower")
    (inside / name).unlink()
    (inside / name).symlink_to(tmp_path / "outside" / name)
    found = _unreadable(resolve(str(inside)))
    assert found.code == MalformedFileError.code
    assert "leaves its folder" in found.message


def test_a_link_inside_the_directory_is_followed(tmp_path: Path) -> None:
    write(tower(model__safetensors=None), tmp_path)
    write({"weights": weights()}, tmp_path)
    (tmp_path / "model.safetensors").symlink_to("weights")
    assert len(resolve(str(tmp_path)).towers) == 1


def test_what_is_no_regular_file_is_not_there(tmp_path: Path) -> None:
    write(tower(model__safetensors=None), tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    assert _unreadable(resolve(str(tmp_path))).code == NoTextTowerError.code


# The Hub


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
    assert _unreadable(resolve("org/model", at)).code == PickleOnlyError.code


def test_files_in_subfolders_are_not_taken_for_the_towers(hub: HubDouble, at: Hub) -> None:
    files = {"sub/pytorch_model.bin": b"x", "sub/model.safetensors": weights()}
    hub.add_repo("org/model", {**tower(model__safetensors=None), **files})
    assert _unreadable(resolve("org/model", at)).code == NoTextTowerError.code
    hub.add_repo("org/other", {"text_encoder/config.json": b"{}"})
    assert "config.json" in _out_of_scope(resolve("org/other", at)).message


@pytest.mark.parametrize("shard", ["../x.safetensors", "unet/model.safetensors", "/x.safetensors"])
def test_path_tricks_of_a_hub_index_are_malformed(shard: str, hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", {**sharded_tower({"a": shard}), "unet/model.safetensors": weights()})
    assert _unreadable(resolve("org/model", at)).code == MalformedFileError.code


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
    assert _unreadable(resolve("org/model", at)).code == HashMismatchError.code


def test_a_config_of_another_size_than_declared_is_not_read(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", tower())
    for size in (10, 1000):
        hub.lie_size("org/model", "config.json", size)
        assert _unreadable(resolve("org/model", at)).code == HashMismatchError.code


# Offline


def test_offline_a_pinned_commit_is_read_from_the_cache(
    hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", sharded_tower())
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    online = resolve("org/model", at)
    hub.forget_requests()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(f"org/model@{sha}", at) == online
    assert hub.requests == []


@pytest.mark.parametrize("revision", [None, "main", "v1", "short"])
def test_offline_a_name_that_may_have_moved_is_refused(
    revision: str | None, hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match=r"may have moved.*full commit sha"):
        resolve("org/model", at, sha[:12] if revision == "short" else revision)


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "vocab.json", "merges.txt", None]
)
def test_offline_an_incomplete_commit_is_refused(
    missing: str | None, hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    for name in tower() if missing else ():
        if name != missing:
            HfApi(hub.endpoint).hf_hub_download("org/model", name, revision=sha, cache_dir=at.cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match=r"not complete.*hf download org/model"):
        resolve(f"org/model@{sha}", at)


def test_offline_a_tokenizer_file_that_the_commit_is_known_to_have_is_missed(
    hub: HubDouble, at: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add_repo("org/model", tower())
    snapshot = HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    (Path(snapshot) / "tokenizer_config.json").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="not complete"):
        resolve(f"org/model@{sha}", at)


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
