"""safetensors headers and JSON files, read strictly and without any tensor library.

A header is checked before anything is downloaded or allocated: what passes here is a file whose
tensors lie one behind the other, without overlap or gap, up to its last byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.files import TensorInfo

MAX_HEADER_BYTES = 25_000_000
"""Longest header that is read; huggingface_hub has the same limit."""

_PREFIX_BYTES = 8
_FIRST_READ = 64
"""Bytes that hold the length of a header and tell any other format."""
_OTHER_FORMATS = {
    b"pk\x03\x04": "a zip archive, as torch.save writes it: a pickle that can run code",
    b"\x80": "a pickle, which can run code",
    b"version https://git-lfs": "a Git LFS pointer without its content",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"gguf": "a GGUF file",
    b"\x89hdf": "an HDF5 file",
}
"""What is found under the name of a safetensors file, by its first bytes in lower case."""
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 2**63
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "C64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


def parse_header(head: bytes, file_size: int, name: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, from its first bytes; raises as `parse_head`."""
    return parse_head(head, file_size, name)[0]


def parse_head(
    head: bytes, file_size: int, name: str
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, from its first bytes.

    Args:
        head: start of the file; must hold the whole header, may hold more.
        file_size: bytes of the whole file.
        name: file name for messages.

    Raises:
        MalformedFileError: the header does not parse, or does not describe a file of this size.
    """
    end = header_end(head, file_size, name)
    if len(head) < end:
        raise _malformed(name, f"it ends after {len(head)} bytes, inside its header")
    if head[_PREFIX_BYTES : _PREFIX_BYTES + 1] != b"{":
        raise _malformed(name, "its header is not a JSON object")
    entries = parse_json(head[_PREFIX_BYTES:end], name)
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise _malformed(name, "its __metadata__ is not an object of strings")

    tensors = {}
    spans = []
    for tensor, entry in entries.items():
        tensors[tensor] = info = _parse_entry(tensor, entry, end, name)
        spans.append((*info.span, tensor))
    _check_tiling(spans, end, file_size, name)
    return tensors, metadata


def header_end(head: bytes, file_size: int, name: str) -> int:
    """Where the header ends and the tensors begin, from the first eight bytes of the file.

    Raises:
        MalformedFileError: no header of an acceptable length fits into the file.
    """
    if file_size < _PREFIX_BYTES or len(head) < _PREFIX_BYTES:
        raise _malformed(name, "it is too short to be a safetensors file")
    length = int.from_bytes(head[:_PREFIX_BYTES], "little")
    # Only where the length makes no sense: a length can begin like any of these.
    if length > min(MAX_HEADER_BYTES, file_size) and (kind := _other_format(head)):
        raise _malformed(name, f"it is {kind}, not a safetensors file")
    if length > MAX_HEADER_BYTES:
        raise _malformed(name, f"its header claims {length} bytes, limit {MAX_HEADER_BYTES}")
    if length > file_size - _PREFIX_BYTES:
        raise _malformed(name, f"its header claims {length} bytes, the file has {file_size}")
    return _PREFIX_BYTES + length


def _other_format(head: bytes) -> str | None:
    begin = head.lstrip().lower()
    return next((kind for start, kind in _OTHER_FORMATS.items() if begin.startswith(start)), None)


def read_header(path: Path, name: str) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file on this disk.

    Raises:
        MalformedFileError: as for `parse_header`.
    """
    with path.open("rb") as stream:
        file_size = path.stat().st_size
        head = stream.read(_FIRST_READ)
        head += stream.read(max(0, header_end(head, file_size, name) - len(head)))
    return parse_header(head, file_size, name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object in UTF-8 without duplicate keys, NaN or Infinity.

    Duplicate keys are refused because readers disagree on which of the two counts.

    Raises:
        MalformedFileError: anything else.
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except RecursionError:
        raise _malformed(name, "its JSON is nested too deeply") from None
    except ValueError as error:
        raise _malformed(name, f"its JSON does not parse ({error})") from error
    if not isinstance(value, dict):
        raise _malformed(name, "it holds no JSON object")
    return value


def shown(value: object) -> str:
    """Untrusted text for a message: quoted, ASCII only (no terminal escapes), not too long."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parse_entry(tensor: str, entry: Any, start: int, name: str) -> TensorInfo:
    fault = f"tensor {shown(tensor)}: "
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(name, fault + "needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _malformed(name, fault + f"dtype {shown(dtype)} is not known")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _malformed(name, fault + f"shape {shown(shape)} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _malformed(name, fault + f"data_offsets {shown(offsets)} are not two positions")

    size = _ITEM_BYTES[dtype]
    for dimension in shape:
        size *= dimension
        if size >= _MAX_ELEMENTS:
            raise _malformed(name, fault + f"shape {shown(shape)} is too large")
    begin, end = offsets
    if end - begin != size:
        raise _malformed(name, fault + f"needs {size} bytes, its data_offsets are {shown(offsets)}")
    return TensorInfo(dtype, tuple(shape), (start + begin, start + end))


def _are_sizes(value: Any) -> bool:
    # `type`, not `isinstance`: JSON's true and false are ints to Python.
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < _MAX_ELEMENTS for item in value
    )


def _check_tiling(
    spans: Iterable[tuple[int, int, str]], start: int, file_size: int, name: str
) -> None:
    position = start
    for begin, end, tensor in sorted(spans):
        if begin != position:
            kind = "overlaps another" if begin < position else "leaves a gap before it"
            raise _malformed(name, f"tensor {shown(tensor)} {kind}, at byte {begin - start}")
        position = end
    if position != file_size:
        raise _malformed(
            name,
            f"its tensors take {position - start} bytes, the file has {file_size - start} for them",
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        key.encode()  # A lone surrogate is no text: UnicodeEncodeError, a ValueError.
        if key in result:
            raise ValueError(f"key {shown(key)} stands twice")
        result[key] = value
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _malformed(name: str, fault: str) -> MalformedFileError:
    return MalformedFileError(f"{name} is malformed: {fault}.")
