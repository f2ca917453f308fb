"""The zoo of one size, made on all cores at once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers.utils import logging

from benchmarks.zoo.bases import BASES
from benchmarks.zoo.build import build, described
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.plan import Entry, Size, entries
from benchmarks.zoo.towers import digest
from benchmarks.zoo.training import MANIFEST
from hf_amdet import demo


def make(size: Size, zoo: Path, workers: int) -> Iterator[tuple[Entry, Path]]:
    """Make what is missing of the zoo of `size`; yields towers with their folders, as they come.

    A tower is made whole or not at all, and by one process at a time, so that an interrupted
    command is just given again, and two may run at once. One whose recipe or anchor has changed
    is made anew.

    Raises:
        RuntimeError: at the end, names those that failed and what depends on them; the others are
            made.
    """
    waiting = defaultdict(list)
    for entry in entries(size):
        waiting[anchor_of(entry)].append(entry)
    failed: dict[str, BaseException] = {}
    running: dict[Future[None], tuple[str, Entry | None]] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _prepare)
    try:
        for base in dict.fromkeys(entry.base for entry in entries(size)):
            running[pool.submit(_make_base, zoo, base)] = (f"bases/{base}", None)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                folder, made = running.pop(future)
                if error := future.exception():
                    failed[folder] = error
                    continue
                if made is not None:
                    yield made, zoo / folder
                for entry in waiting.pop(folder, ()):
                    place = f"towers/{entry.name}"
                    running[pool.submit(_make_tower, zoo, entry)] = (place, entry)
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        reasons = "; ".join(f"{folder} ({error!r})" for folder, error in failed.items())
        unmade = sum(map(len, waiting.values()))
        raise RuntimeError(f"Not made: {reasons}; {unmade} towers wait for them.")


def anchor_of(entry: Entry) -> str:
    """The anchor's folder in the zoo."""
    if entry.anchor is None:
        return f"bases/{entry.base}"
    return f"towers/{entry.base}/{entry.anchor}"


def _prepare() -> None:
    """A worker's settings: towers come out the same however many workers there are."""
    # Ctrl-C reaches all: without a traceback from each worker.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()


def _make_base(zoo: Path, name: str) -> None:
    folder = zoo / "bases" / name
    with _sole(zoo, folder):
        if name == "clip-a":
            # What its recipe gives in fifteen minutes comes with the package.
            if not folder.exists() or digest(folder) != digest(demo.ANCHOR):
                part = folder.with_suffix(".tmp")
                shutil.copytree(demo.ANCHOR, part, dirs_exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                part.replace(folder)
        elif not _stands(folder, asdict(BASES[name].recipe)):
            BASES[name].build(folder, zoo / "work")


def _make_tower(zoo: Path, entry: Entry) -> None:
    folder = zoo / "towers" / entry.name
    with _sole(zoo, folder):
        anchor, base = zoo / anchor_of(entry), BASES[entry.base]
        if _stands(folder, described(entry.recipe), anchor):
            return
        build(
            entry.recipe,
            anchor,
            folder,
            zoo / "work",
            GRAMMARS[base.grammar],
            known=set(base.captions()),
            about=_facts(entry),
        )


def _stands(folder: Path, recipe: dict[str, Any], anchor: Path | None = None) -> bool:
    """Whether a tower was finished, by the recipe that the plan has now and from this anchor."""
    file = folder / MANIFEST
    if not file.exists():
        return False
    manifest = json.loads(file.read_text(encoding="utf-8"))
    planned = json.loads(json.dumps(recipe))
    return bool(
        manifest["recipe"] == planned
        and (anchor is None or manifest.get("anchor_sha256") == digest(anchor))
    )


def _sole(zoo: Path, folder: Path) -> FileLock:
    """Held by the one process that makes `folder`."""
    locks = zoo / "work" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.parent.name}-{folder.name}.lock")


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": BASES[entry.base].family,
        "base": entry.base,
        "run": entry.run,
        "kind": entry.kind,
        "twin_of": entry.twin_of,
        "pinned": entry.pinned,
        "anchor": anchor_of(entry),
    }
