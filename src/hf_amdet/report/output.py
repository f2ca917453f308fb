"""The results of a scan as a folder: report, pages, pictures and recovered trigger embeddings."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from hf_amdet.errors import OutputError, ReportError
from hf_amdet.report import plots
from hf_amdet.report.files import load, write_atomically, write_report
from hf_amdet.report.html import to_html
from hf_amdet.report.markdown import page
from hf_amdet.report.plots import Drawing
from hf_amdet.report.schema import Report

if TYPE_CHECKING:  # the pipeline builds on this package, not this package on the pipeline
    from hf_amdet.pipeline import ScannedTower, ScanResult

REPORT = "report.json"
PAGE = "report.md"
HTML_PAGE = "report.html"
LANDSCAPE = "loss_landscape.png"
SPECTRUM = "hessian_spectrum.png"
INVERSION = "inversion.png"
TRIGGER = "trigger_embedding.safetensors"
TEXTUAL_INVERSION = "textual_inversion.safetensors"

TRIGGER_WORD = "<amdet-trigger>"
"""What stands for the trigger in a prompt once diffusers has loaded `TEXTUAL_INVERSION`."""

_OF_A_TOWER = (LANDSCAPE, SPECTRUM, INVERSION, TRIGGER, TEXTUAL_INVERSION)
_OURS = frozenset({REPORT, PAGE, HTML_PAGE, *_OF_A_TOWER})
_REFUSED = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME, _DEEPEST = 64, 8

_TRIGGER_NOTE = (
    "Recovered by inversion; [k, D] in embedding-layer space, with the position embeddings of the "
    "k places behind the first k tokens (behind BOS for CLIP)."
)
_TEXTUAL_INVERSION_NOTE = (
    "For load_textual_inversion of diffusers; a token embedding, without the position embeddings "
    "of the k places behind BOS: write the token at the very beginning of the prompt."
)


def write_results(result: ScanResult, directory: Path) -> tuple[Path, ...]:
    """Put everything that a scan found into `directory`, which is made where it is missing.

    A tower at the root of the repo has its files in `directory` itself, any other below it. All
    files are complete before the first is put in place. What an older scan left in `directory`
    goes, so that no picture stands beside a report that it does not belong to.

    Returns:
        The files that were written, the report first.

    Raises:
        ReportError: the report does not validate; nothing is written.
        OutputError: disk full, no permission, or a folder where a file should go; what stood in
            `directory` is untouched.
    """
    report = result.report
    folders = _folders(report)
    drawings = {tower.path: _drawings(tower, report) for tower in result.towers}
    contents = {
        folders[tower.path] / name: data
        for tower in result.towers
        for name, data in {
            **{name: drawing.png for name, drawing in drawings[tower.path].items()},
            **_triggers(tower, report),
        }.items()
    }
    pictures = {path: list(drawn.values()) for path, drawn in drawings.items()}
    contents[PurePosixPath(PAGE)] = page(report).encode()
    contents[PurePosixPath(HTML_PAGE)] = to_html(report, pictures).encode()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Within `directory`, since a rename is atomic within one file system only.
        with tempfile.TemporaryDirectory(prefix=".amdet-", dir=directory) as name:
            staging = Path(name)
            for path, data in contents.items():
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(staging / path, data)
            write_report(report, staging / REPORT)
            _put_in_place(staging, directory, [*contents, PurePosixPath(REPORT)], folders.values())
    except OSError as error:
        raise OutputError(
            f"cannot write to {directory}: {error.strerror or error}; free space or choose "
            "another folder"
        ) from error
    return (directory / REPORT, *(directory / path for path in contents))


def _put_in_place(
    staging: Path,
    directory: Path,
    paths: Iterable[PurePosixPath],
    folders: Iterable[PurePosixPath],
) -> None:
    """Rename the staged files, the report last: where it is new, so is everything else."""
    targets = {directory / path: staging / path for path in paths}
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OutputError(f"{target} is a folder; remove it or choose another folder")
    for folder in {*folders, *_older_folders(directory)}:
        for name in _OF_A_TOWER:
            stale = directory / folder / name
            if stale not in targets and (stale.is_file() or stale.is_symlink()):
                stale.unlink()
    for target, source in targets.items():
        source.replace(target)


def _older_folders(directory: Path) -> list[PurePosixPath]:
    """Where the report that stands in `directory` says that towers' files are."""
    try:
        older = load(directory / REPORT)
    except ReportError:  # none, or not one of ours
        return [PurePosixPath()]
    return [PurePosixPath(), *_folders(older).values()]


def _folders(report: Report) -> dict[str, PurePosixPath]:
    """The folder of each tower's files, by its path in the repo; each has its own.

    The paths come from the repo, so two of them may come down to the same name, or differ in case
    only, which some file systems do not tell apart.
    """
    folders: dict[str, PurePosixPath] = {}
    taken: set[str] = set()
    for tower in report.towers:
        folder = plain = _folder(tower.path)
        number = 1
        while str(folder).casefold() in taken:
            number += 1
            folder = plain.with_name(f"{plain.name}-{number}")
        taken.add(str(folder).casefold())
        folders[tower.path] = folder
    return folders


def _folder(path: str) -> PurePosixPath:
    """`path` made harmless: below our folder, not hidden, of moderate length, no file of ours."""
    if not path:
        return PurePosixPath()
    names = []
    for part in path.split("/"):
        name = _REFUSED.sub("", part)[:_LONGEST_NAME].strip(".")
        if name:
            names.append(f"tower-{name}" if name.casefold() in _OURS else name)
    return PurePosixPath(*names[:_DEEPEST] or ["tower"])


def _drawings(tower: ScannedTower, report: Report) -> dict[str, Drawing]:
    """The pictures of one tower by the names of their files."""
    detection = tower.detection
    curves = {name: _array(curve) for name, curve in detection.curves.items()}
    drawn = {INVERSION: plots.inversion(curves)}
    landscape = detection.landscape
    if landscape is not None:
        drawn[LANDSCAPE] = plots.loss_landscape(_array(landscape.axis), _array(landscape.surfaces))
        threshold = report.config.settings["landscape.eigenvalue"]
        assert isinstance(threshold, float)
        drawn[SPECTRUM] = plots.hessian_spectrum(
            _array(landscape.eigenvalues), threshold, landscape.positive_share
        )
    return drawn


def _triggers(tower: ScannedTower, report: Report) -> dict[str, bytes]:
    """The files of the recovered trigger of one tower, by their names."""
    detection = tower.detection
    trigger = detection.decisive.trigger.detach().cpu().float()
    origin = {
        "repo_id": report.repo_id or "",
        "commit_sha": report.commit_sha or "",
        "tower": tower.path,
        "objective": detection.decisive.objective,
    }
    files = {TRIGGER: _safetensors("trigger", trigger, {**origin, "note": _TRIGGER_NOTE})}
    if tower.family == "clip":  # The only family that diffusers reads them for.
        files[TEXTUAL_INVERSION] = _safetensors(
            TRIGGER_WORD,
            _token_embedding(trigger, tower.position),
            {**origin, "note": _TEXTUAL_INVERSION_NOTE},
        )
    return files


def _token_embedding(trigger: Tensor, position: tuple[float, ...]) -> Tensor:
    """`trigger` `[k, D]` as rows of the token table: `[D]` for k = 1, else `[k, D]`.

    diffusers (`TextualInversionLoaderMixin`) reads a safetensors file that holds one tensor as its
    own format: the key is the new token. `[D]` and `[1, D]` make one row of the table, `[k, D]`
    makes k rows for the tokens KEY, KEY_1, ... KEY_(k-1), which it puts for KEY in a prompt. The
    text encoder adds the position embeddings to these rows, so they are taken off here.
    """
    rows = trigger - torch.tensor(position, dtype=trigger.dtype).reshape(trigger.shape)
    return rows[0] if len(rows) == 1 else rows


def _safetensors(name: str, tensor: Tensor, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of one tensor; equal input gives equal bytes.

    The library writes metadata in an order that changes from call to call: the header is written
    anew. It is a little-endian length, JSON, and blanks up to a multiple of eight.
    """
    # A lone surrogate, which a folder's name may hold, is no UTF-8.
    plain = {k: v.encode(errors="backslashreplace").decode() for k, v in metadata.items()}
    data = save({name: tensor.contiguous()}, plain)
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[start:]


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()
