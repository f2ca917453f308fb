"""A few tensors of a large file arrive whole, alone, and at little more than their own cost."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from hf_amdet.hub import partial
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import read_tensors
from hf_amdet.hub.files import FetchedTower, RepoFile, ResolvedRepo
from hf_amdet.hub.header import parse_header
from hf_amdet.hub.resolve import resolve
from tests.hub import SHARDS, tower
from tests.hub.text_side import (
    TEXT,
    WEIGHTS,
    Arrays,
    arrays_of,
    fetch_text,
    kept,
    ranges,
    same,
    sha256,
)
from tests.hub_double import HubDouble

# What arrives, and what it costs


def test_the_text_side_costs_little_more_than_its_own_bytes(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    fetched = fetch_text(repo, tmp_path / "into", at)
    held = sum(clip[name].nbytes for name in TEXT)
    assert held <= hub.bytes_sent("safetensors") <= 1.05 * held
    (file,) = fetched.weights
    assert file == tmp_path / "into" / WEIGHTS
    found = load_file(file)
    assert found.keys() == set(TEXT)
    assert same(found, clip)
    assert not list(at.cache.glob("models--*/blobs/*" + sha256(save(clip))))


def test_the_record_has_the_declared_digest_and_that_of_every_tensors_bytes(
    repo: ResolvedRepo, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    fetched = fetch_text(repo, tmp_path / "into", at)
    (record,) = [record for record in fetched.files if record.path == WEIGHTS]
    assert (record.size, record.sha256) == (len(save(clip)), sha256(save(clip)))
    assert record.tensors == {name: sha256(clip[name].tobytes()) for name in TEXT}
    assert all(not other.tensors for other in fetched.files if other is not record)
    assert {
        name: (info.dtype, info.shape) for name, info in fetched.tensors.items()
    } == dict.fromkeys(TEXT, ("F32", (768, 256)))


def test_tensors_side_by_side_are_one_request_and_others_are_not(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    spans = {name: info.span for name, info in read_tensors(repo, repo.towers[0], at).items()}
    hub.forget_requests()
    fetch_text(repo, tmp_path / "one", at)
    assert ranges(hub) == [(spans[TEXT[0]][0], spans[TEXT[3]][1])]
    hub.forget_requests()
    fetch_text(repo, tmp_path / "two", at, (TEXT[0], TEXT[2], TEXT[3]))
    assert ranges(hub) == [spans[TEXT[0]], (spans[TEXT[2]][0], spans[TEXT[3]][1])]


def test_a_second_fetch_transfers_no_tensor(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    first = fetch_text(repo, tmp_path / "one", at)
    hub.forget_requests()
    second = fetch_text(repo, tmp_path / "two", at)
    assert ranges(hub) == []
    assert second.files == first.files
    assert (tmp_path / "two" / WEIGHTS).read_bytes() == (tmp_path / "one" / WEIGHTS).read_bytes()


def test_other_tensors_of_the_file_are_kept_apart(
    repo: ResolvedRepo, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    for number, wanted in enumerate((TEXT[:1], TEXT[:2], TEXT[1:2])):
        fetched = fetch_text(repo, tmp_path / str(number), at, wanted)
        found = load_file(fetched.weights[0])
        assert found.keys() == set(wanted)
        assert same(found, clip, wanted)


def test_progress_counts_what_comes(repo: ResolvedRepo, at: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch_text(repo, tmp_path / "into", at, progress=lambda done, total: seen.append((done, total)))
    total = 4 * 768 * 1024 + sum(file.size for file in repo.towers[0].support)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 10


def test_shards_without_a_wanted_tensor_are_not_fetched(
    hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    text, others = arrays_of("text", "more"), arrays_of("vision")
    index = {"weight_map": {"text": SHARDS[0], "more": SHARDS[0], "vision": SHARDS[1]}}
    files = {
        **tower(model__safetensors=None),
        "model.safetensors.index.json": json.dumps(index).encode(),
        SHARDS[0]: save(text),
        SHARDS[1]: save(others),
    }
    hub.add_repo("org/model", files)
    fetched = fetch_text(resolve("org/model", at), tmp_path / "into", at, ("text",))
    assert fetched.weights == (tmp_path / "into" / SHARDS[0],)
    assert load_file(fetched.weights[0]).keys() <= text.keys()
    assert {record.path for record in fetched.files} >= {SHARDS[0], "config.json"}
    assert SHARDS[1] not in {record.path for record in fetched.files}
    assert hub.bytes_sent(SHARDS[1]) < 110_000


# Where the whole file is taken


def _whole(fetched: FetchedTower, data: bytes) -> bool:
    (record,) = [record for record in fetched.files if record.path == WEIGHTS]
    same = fetched.weights[0].read_bytes() == data
    return same and record.sha256 == sha256(data) and not record.tensors


def test_where_half_is_wanted_the_file_comes_whole(
    repo: ResolvedRepo, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    assert _whole(fetch_text(repo, tmp_path / "into", at, (*TEXT, "vision_model")), save(clip))
    assert kept(at) == []


def test_a_file_without_a_declared_sha256_comes_whole(
    hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hub_double.objects.is_lfs", lambda path, size: False)
    hub.add_repo("org/model", tower(model__safetensors=save(clip)))
    assert _whole(fetch_text(resolve("org/model", at), tmp_path / "into", at), save(clip))
    assert kept(at) == []


def test_a_whole_file_in_the_cache_is_used(
    repo: ResolvedRepo, hub: HubDouble, at: Hub, clip: Arrays, tmp_path: Path
) -> None:
    HfApi(hub.endpoint).snapshot_download("org/model", cache_dir=at.cache)
    hub.forget_requests()
    assert _whole(fetch_text(repo, tmp_path / "into", at), save(clip))
    assert ranges(hub) == [] and kept(at) == []


def test_a_server_that_sends_no_parts_sends_the_whole(
    repo: ResolvedRepo, at: Hub, clip: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hub_double.reading.ranged", lambda response, header: response)
    assert _whole(fetch_text(repo, tmp_path / "into", at), save(clip))
    assert kept(at) == []


# Any file, any tensors of it, any way of breaking off

DTYPES = (np.float32, np.float16, np.int8, np.int64)
TENSORS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    min_size=1,
    max_size=8,
)


@given(layout=TENSORS, choice=st.data())
@settings(max_examples=100, deadline=None)
def test_any_tensors_of_any_file_arrive_whole(layout: Any, choice: st.DataObject) -> None:
    random = np.random.default_rng(1)
    arrays = {
        name: random.integers(0, 100, shape).astype(dtype)
        for name, (dtype, shape) in layout.items()
    }
    data = save(arrays)
    header = parse_header(data, len(data), WEIGHTS)
    names = choice.draw(st.sets(st.sampled_from(sorted(arrays))))
    wanted = {name: header[name] for name in names}
    repo = ResolvedRepo("org/model", "org/model", "0" * 40, None, ())
    file = RepoFile(WEIGHTS, len(data), sha256=sha256(data))
    breaks = iter(choice.draw(st.lists(st.integers(0, 20), max_size=4)))

    def send(*_: Any, hub: Hub) -> Iterator[bytes]:
        begin, end = _[3]
        yield data[begin : min(end, begin + next(breaks, end))]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial, "get_range", send)
        patch.setattr("time.sleep", lambda seconds: None)
        at = Hub("http://hub", cache_dir=Path(folder) / "cache")
        received: list[int] = []
        kept, record = partial.fetch_tensors(repo, file, wanted, at, received.append)
        found = load_file(kept)
    assert found.keys() == names
    for name in names:
        assert found[name].dtype == arrays[name].dtype
        assert np.array_equal(found[name], arrays[name])
    assert record.tensors == {name: sha256(arrays[name].tobytes()) for name in names}
    assert (received or [0])[-1] == sum(arrays[name].nbytes for name in names)
