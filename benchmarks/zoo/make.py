"""The zoo of one size, made on all cores at once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers.utils import logging

from benchmarks.zoo.bases import BASES
from benchmarks.zoo.build import build, described
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.plan import Entry, Size, entries
from hf_amdet import demo


def make(size: Size, zoo: Path, workers: int) -> Iterator[tuple[Entry, Path]]:
    """Make what is missing of the zoo of `size`; yields towers with their folders, as they come.

    A tower is made whole or not at all, and by one process at a time, so that an interrupted
    command is just given again, and two may run at once. One whose recipe has changed is made
    anew.

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
    with ProcessPoolExecutor(workers, context, _prepare, (workers,)) as pool:
        # The bases with most to wait for them first; clip-a is only copied.
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
    if failed:
        reasons = "; ".join(f"{folder} ({error!r})" for folder, error in failed.items())
        unmade = sum(map(len, waiting.values()))
        raise RuntimeError(f"Not made: {reasons}; {unmade} towers wait for them.")


def anchor_of(entry: Entry) -> str:
    """The anchor's folder in the zoo."""
    if entry.anchor is None:
        return f"bases/{entry.base}"
    return f"towers/{entry.base}/{entry.anchor}"


def _prepare(workers: int) -> None:
    """A worker's settings: towers come out the same however many there are."""
    if workers > 1:
        torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()


def _make_base(zoo: Path, name: str) -> None:
    folder = zoo / "bases" / name
    with _sole(zoo, folder):
        if (folder / "manifest.json").exists():
            return
        if name == "clip-a":
            # What its recipe gives in fifteen minutes comes with the package.
            part = folder.with_suffix(".tmp")
            shutil.copytree(demo.ANCHOR, part, dirs_exist_ok=True)
            part.replace(folder)
        else:
            BASES[name].build(folder, zoo / "work")


def _make_tower(zoo: Path, entry: Entry) -> None:
    folder = zoo / "towers" / entry.name
    with _sole(zoo, folder):
        if _stands(folder, entry):
            return
        grammar = GRAMMARS[BASES[entry.base].grammar]
        build(entry.recipe, zoo / anchor_of(entry), folder, zoo / "work", grammar, _facts(entry))


def _stands(folder: Path, entry: Entry) -> bool:
    """Whether the tower was finished, and by the recipe that the plan has now."""
    file = folder / "manifest.json"
    if not file.exists():
        return False
    recipe = json.loads(json.dumps(described(entry.recipe)))
    return bool(json.loads(file.read_text(encoding="utf-8"))["recipe"] == recipe)


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
