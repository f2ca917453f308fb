"""Git objects with git's own hashes: blobs (regular or LFS), trees, commits, merges, diffs."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

LFS_THRESHOLD = 10_000_000
"""Bytes from which on the Hub stores a file of any name as LFS."""

# fmt: off
_LFS_SUFFIXES = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".pkl", ".pickle",
    ".npy", ".npz", ".model", ".parquet",
}
# fmt: on


@dataclass(frozen=True)
class Blob:
    """One file's content. `oid` is the git sha1 of the content, or of the pointer for LFS."""

    data: bytes = field(repr=False)
    lfs: bool
    oid: str
    sha256: str
    pointer_size: int

    @property
    def size(self) -> int:
        """Bytes of the content, not of the pointer."""
        return len(self.data)

    @property
    def etag(self) -> str:
        """What the Hub sends as ETag, and preupload as oid: sha256 for LFS, else git sha1."""
        return self.sha256 if self.lfs else self.oid


Tree = Mapping[str, Blob]
"""Path to blob, directories implied."""


@dataclass(frozen=True)
class Commit:
    """A commit and the complete tree at it."""

    sha: str
    parents: tuple[str, ...]
    tree: Tree = field(repr=False)
    title: str
    message: str
    author: str
    date: str


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores this file as LFS; empty files never are."""
    return size > 0 and (size > LFS_THRESHOLD or PurePosixPath(path).suffix in _LFS_SUFFIXES)


def make_blob(data: bytes, *, lfs: bool) -> Blob:
    """Hash `data` as a regular or an LFS file."""
    sha256 = hashlib.sha256(data).hexdigest()
    stored = _pointer(sha256, len(data)) if lfs else data
    return Blob(data, lfs, _git_hash("blob", stored), sha256, len(stored) if lfs else 0)


def make_tree(files: Mapping[str, bytes]) -> dict[str, Blob]:
    """Blobs for plain files, LFS where the Hub would choose LFS."""
    return {path: make_blob(data, lfs=is_lfs(path, len(data))) for path, data in files.items()}


def make_commit(
    tree: Tree, *, parents: tuple[str, ...], title: str, message: str, author: str, date: str
) -> Commit:
    """Address a commit by its tree, parents, author, date and message."""
    lines = [f"tree {directories(tree)['']}", *(f"parent {sha}" for sha in parents)]
    lines += [f"author {author} {date}", "", title, message]
    sha = _git_hash("commit", "\n".join(lines).encode())
    return Commit(sha, parents, dict(tree), title, message, author, date)


def directories(tree: Tree) -> dict[str, str]:
    """Every directory's path and git tree sha1; the root is the empty path."""
    children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob in tree.items():
        parent, _, name = path.rpartition("/")
        children.setdefault(parent, {})[name] = ("100644", blob.oid)
        while parent and parent.rpartition("/")[0] not in children:
            parent = parent.rpartition("/")[0]
            children[parent] = {}
    shas: dict[str, str] = {}
    # Deepest first: a directory's hash needs those of the directories in it.
    for directory in sorted(children, key=lambda path: (-path.count("/"), path == "", path)):
        shas[directory] = _tree_hash(children[directory])
        if directory:
            parent, _, name = directory.rpartition("/")
            children[parent][name] = ("40000", shas[directory])
    return shas


def merge_trees(base: Tree, ours: Tree, theirs: Tree) -> tuple[dict[str, Blob], list[str]]:
    """Bring the changes base -> theirs onto ours; returns the merged tree and the conflicts."""
    merged, conflicts = dict(ours), []
    for path in sorted({*base, *theirs}):
        before, wanted, current = base.get(path), theirs.get(path), ours.get(path)
        if wanted in (before, current):
            continue
        if current != before:
            conflicts.append(path)
        elif wanted is None:
            del merged[path]
        else:
            merged[path] = wanted
    return merged, conflicts


def unified_diff(old: Tree, new: Tree) -> str:
    """The change from old to new in git's format; an LFS file shows as its pointer."""
    parts = []
    for path in sorted({*old, *new}):
        before, after = old.get(path), new.get(path)
        if before != after:
            parts.append(_file_diff(path, before, after))
    return "".join(parts)


def _file_diff(path: str, before: Blob | None, after: Blob | None) -> str:
    head = f"diff --git a/{path} b/{path}\n"
    head += "new file mode 100644\n" if before is None else ""
    head += "deleted file mode 100644\n" if after is None else ""
    old_oid, new_oid = ((blob.oid[:7] if blob else "0" * 7) for blob in (before, after))
    head += f"index {old_oid}..{new_oid}\n"
    old_lines, new_lines = _diff_lines(before), _diff_lines(after)
    if old_lines is None or new_lines is None:
        return head + f"Binary files a/{path} and b/{path} differ\n"
    old_name = f"a/{path}" if before else "/dev/null"
    new_name = f"b/{path}" if after else "/dev/null"
    lines = difflib.unified_diff(old_lines, new_lines, old_name, new_name)
    return head + "".join(
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines
    )


def _diff_lines(blob: Blob | None) -> list[str] | None:
    if blob is None:
        return []
    data = _pointer(blob.sha256, blob.size) if blob.lfs else blob.data
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    # Not splitlines(): git breaks lines at \n only, and a card may hold \r\n or form feeds.
    return None if "\0" in text else re.findall(r"[^\n]*\n|[^\n]+", text)


def _pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


def _tree_hash(entries: Mapping[str, tuple[str, str]]) -> str:
    # Git sorts a directory as if its name ended in a slash.
    names = sorted(entries, key=lambda n: n + "/" if entries[n][0] == "40000" else n)
    body = b"".join(
        f"{entries[name][0]} {name}".encode() + b"\0" + bytes.fromhex(entries[name][1])
        for name in names
    )
    return _git_hash("tree", body)


def _git_hash(kind: str, body: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(body)}".encode() + b"\0" + body).hexdigest()
