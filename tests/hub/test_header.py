from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.files import TensorInfo
from hf_amdet.hub.header import MAX_HEADER_BYTES, parse_header, parse_json, read_header, shown

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LAYOUTS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter("__metadata__".__ne__),
    st.tuples(st.sampled_from(sorted(_DTYPES)), st.lists(st.integers(0, 4), max_size=4)),
    max_size=5,
)


def _arrays(layout: dict[str, tuple[str, list[int]]]) -> dict[str, Any]:
    """Arrays that differ in their bytes, where they have enough of them."""
    return {
        name: (np.arange(int(np.prod(shape))) + 7 * number).reshape(shape).astype(_DTYPES[dtype])
        for number, (name, (dtype, shape)) in enumerate(layout.items())
    }


def _file(header: Any, data_size: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_size)


def _entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _parse(data: bytes) -> dict[str, TensorInfo]:
    return parse_header(data, len(data), "model.safetensors")


def _seen(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Of each tensor what `parse_header` says, with the bytes that its span points at."""
    return {
        name: (info.dtype, info.shape, data[slice(*info.span)])
        for name, info in _parse(data).items()
    }


@given(_LAYOUTS)
def test_what_safetensors_writes_is_read_back(layout: dict[str, tuple[str, list[int]]]) -> None:
    arrays = _arrays(layout)
    data = save(arrays)
    assert _seen(data) == {
        name: (dtype, tuple(shape), arrays[name].tobytes())
        for name, (dtype, shape) in layout.items()
    }
    for info in _parse(data).values():
        assert info.size == info.span[1] - info.span[0]


@given(layout=_LAYOUTS, choice=st.data())
def test_a_changed_byte_gives_what_safetensors_sees_too_or_malformed_file(
    layout: dict[str, tuple[str, list[int]]], choice: st.DataObject
) -> None:
    data = bytearray(save(_arrays(layout), {"format": "pt"}))
    # The tensors' own bytes are not the header's business.
    header_size = 8 + int.from_bytes(data[:8], "little")
    for _ in range(choice.draw(st.integers(1, 3))):
        position = choice.draw(st.integers(0, header_size - 1))
        data[position] = choice.draw(st.integers(0, 255) | st.sampled_from(b'{}[]",:0129 \\'))
    try:
        found = _seen(bytes(data))
    except MalformedFileError:
        return
    # Nothing passes that the loader would refuse or understand otherwise.
    loaded = {
        name: (item["dtype"], tuple(item["shape"]), bytes(item["data"]))
        for name, item in safetensors.deserialize(bytes(data))  # type: ignore[no-untyped-call]
    }
    assert found == loaded


@given(layout=_LAYOUTS, choice=st.data())
def test_a_cut_or_extended_file_is_malformed(
    layout: dict[str, tuple[str, list[int]]], choice: st.DataObject
) -> None:
    data = save(_arrays(layout))
    with pytest.raises(MalformedFileError):
        _parse(data[: choice.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(MalformedFileError):
        _parse(data + b"\0")


@given(st.binary(max_size=64), st.integers(0, 100))
def test_noise_is_malformed_and_nothing_else(head: bytes, file_size: int) -> None:
    try:
        parse_header(head, file_size, "noise")
    except MalformedFileError as error:
        assert str(error).startswith("noise is malformed: ")


@pytest.mark.parametrize(
    ("header", "data_size", "fault"),
    [
        ([], 0, "not a JSON object"),
        (b"{} x", 0, "does not parse"),
        (b" {}", 0, "not a JSON object"),
        (b'{"a": NaN}', 0, "NaN is not JSON"),
        (b'{"\\ud800": 1}', 0, "does not parse"),
        (b'{"\xff": 1}', 0, "does not parse"),
        (b'{"a":' * 100_000, 0, "nested too deeply"),
        (b'{"a":' + b"9" * 10_000 + b"}", 0, "does not parse"),
        (b'{"a": 1, "a": 1}', 0, "'a' stands twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', 0, "'dtype' stands twice"),
        ({"__metadata__": {"format": 1}}, 0, "__metadata__"),
        ({"__metadata__": []}, 0, "__metadata__"),
        ({"a": 1}, 0, "needs dtype"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 0, "needs dtype"),
        ({"a": {**_entry(), "more": 1}}, 4, "nothing else"),
        ({"a": _entry(dtype="F7")}, 4, "dtype 'F7'"),
        ({"a": _entry(dtype=["F32"])}, 4, "dtype"),
        ({"a": _entry(shape=1)}, 4, "shape"),
        ({"a": _entry(shape=[True])}, 4, "shape"),
        ({"a": _entry(shape=[1.0])}, 4, "shape"),
        ({"a": _entry(shape=[-1])}, 4, "shape"),
        ({"a": _entry(shape=[1] * 65)}, 4, "shape"),
        ({"a": _entry(shape=[2**62, 2**62])}, 4, "too large"),
        ({"a": _entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}, 0, "too large"),
        ({"a": _entry(offsets=[0])}, 4, "data_offsets"),
        ({"a": _entry(offsets=[0, 4, 8])}, 4, "data_offsets"),
        ({"a": _entry(offsets=[-4, 0])}, 4, "data_offsets"),
        ({"a": _entry(offsets=[4, 0])}, 4, "needs 4 bytes"),
        ({"a": _entry(shape=[2])}, 4, "needs 8 bytes"),
        ({"a": _entry(offsets=[4, 8])}, 8, "gap"),
        ({"a": _entry(), "b": _entry(offsets=[8, 12])}, 12, "gap"),
        ({"a": _entry(), "b": _entry()}, 4, "overlaps"),
        ({"a": _entry(), "b": _entry(offsets=[2, 6])}, 6, "overlaps"),
        ({"a": _entry()}, 5, "the file has 5"),
        ({"a": _entry()}, 3, "the file has 3"),
    ],
)
def test_each_lie_is_named(header: Any, data_size: int, fault: str) -> None:
    with pytest.raises(MalformedFileError, match=fault):
        _parse(_file(header, data_size))


def test_a_header_longer_than_the_file_or_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(MalformedFileError, match="the file has 10"):
        parse_header((100).to_bytes(8, "little"), 10, "x")
    with pytest.raises(MalformedFileError, match="limit"):
        parse_header((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 2**40, "x")


def test_only_the_start_of_a_file_is_needed() -> None:
    data = _file({"a": _entry(shape=[1000], offsets=[0, 4000])})
    span = (len(data), len(data) + 4000)
    assert parse_header(data, len(data) + 4000, "x") == {"a": TensorInfo("F32", (1000,), span)}


def test_a_file_on_disk_is_read_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = save({"a": np.zeros((2, 3), np.float16)})
    path.write_bytes(data)
    assert read_header(path, path.name) == _parse(data)


def test_spans_point_at_the_bytes_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.int16), "c": np.ones(0)}
    path.write_bytes(save(arrays, {"format": "pt"}))
    with path.open("rb") as stream:
        for name, info in read_header(path, path.name).items():
            stream.seek(info.span[0])
            assert stream.read(info.size) == arrays[name].tobytes(), name


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 123\n" % (b"0" * 64)


def _torch_saved(*, zipped: bool) -> bytes:
    written = io.BytesIO()
    weights = {"a": torch.zeros(3)}
    torch.save(weights, written, _use_new_zipfile_serialization=zipped)
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_torch_saved(zipped=True), "zip archive, as torch.save writes it"),
        (_torch_saved(zipped=False), "pickle, which can run code"),
        (pickle.dumps({"a": 1}), "pickle, which can run code"),
        (_LFS, "Git LFS pointer"),
        (b"<!DOCTYPE html><html><head></head></html>", "HTML page"),
        (b"\n\n  <!doctype html>\n<html></html>", "HTML page"),
        (b"<HTML><body>not found</body></HTML>", "HTML page"),
        (b"GGUF\x03\0\0\0" + b"\x01" * 24, "GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(24), "HDF5 file"),
    ],
    ids=["torch", "old torch", "pickle", "LFS", "HTML", "spaced HTML", "tag", "GGUF", "HDF5"],
)
def test_another_format_under_this_name_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    """Whether its start comes over the network or from this disk."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MalformedFileError, match=kind) as caught:
        read_header(path, path.name)
    with pytest.raises(MalformedFileError, match=kind):
        parse_header(content[:100_000], len(content), path.name)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("first", [0x80, 0x50, 0x3C, 0x47, 0x76, 0x89, 0x0A, 0x20], ids=hex)
@pytest.mark.parametrize("second", [0x02, 0x04, 0x4B, 0x21], ids=hex)
def test_a_length_that_begins_like_another_format_is_a_length(
    tmp_path: Path, first: int, second: int
) -> None:
    """A header of 640 bytes begins like a pickle: 0x80 0x02."""
    entry = json.dumps({"a": _entry()}).encode()
    header = entry.ljust(first + 256 * second)
    path = tmp_path / "model.safetensors"
    path.write_bytes(_file(header, 4))
    assert path.read_bytes()[:2] == bytes([first, second])
    assert read_header(path, path.name) == _parse(path.read_bytes())
    assert _parse(path.read_bytes())["a"].span == (8 + len(header), 12 + len(header))


def test_messages_hold_no_terminal_escapes_and_stay_short() -> None:
    with pytest.raises(MalformedFileError) as caught:
        _parse(_file({"\x1b[2J\u202e" * 1000: 1}))
    assert str(caught.value).isascii() and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert len(shown("a" * 1000)) == 80


def test_json_with_a_duplicate_key_anywhere_is_refused() -> None:
    assert parse_json(b'{"a": [1.5, null, {"b": "c"}]}', "x") == {"a": [1.5, None, {"b": "c"}]}
    with pytest.raises(MalformedFileError, match=r"x is malformed.*'b' stands twice"):
        parse_json(b'{"a": [{"b": 1, "b": 2}]}', "x")
