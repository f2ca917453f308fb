"""Show what a report would do to a model card, be it of a repo on the Hub or of a local folder."""

from __future__ import annotations

from pathlib import Path

from hf_amdet.errors import CardError, HashMismatchError, PublishError, UsageError
from hf_amdet.hub import publish
from hf_amdet.hub.card import MAX_BYTES, CardChange, change, metadata_of
from hf_amdet.hub.client import DEFAULT_HUB, Hub
from hf_amdet.hub.files import RepoFile, ResolvedRepo
from hf_amdet.hub.resolve import parse_target
from hf_amdet.hub.source import local_path, read_start, unreadable, verify
from hf_amdet.report.schema import FileRecord, Report

_README = "README.md"


def preview(
    target: str,
    report: Report,
    *,
    source: str,
    revision: str | None = None,
    hub: Hub = DEFAULT_HUB,
) -> CardChange:
    """What publishing `report` would make of the card of `target`; nothing is sent or written.

    Args:
        target: the repo that the report is about, also as org/model@revision, or its folder.
        source: names the report in messages.
        revision: whose card; None for main.

    Raises:
        UsageError: the report is about another target, or a folder has no revision.
        PublishError: the owner opted out, or other weights stand there by now.
        CardError: the card cannot be edited.
        MalformedFileError: a file of the folder that cannot be read, or a link that leaves it.
        HubError: as `hub_errors` says.
    """
    if report.repo_id is None:
        if revision is not None:
            raise UsageError(
                f"{source} is about the local {report.target!r}, which has no revision "
                f"{revision!r}."
            )
        return _of_folder(_folder(target, report, source), report)
    repo_id, revision = parse_target(target, revision)
    if repo_id != report.repo_id:
        raise UsageError(
            f"{source} is about {report.repo_id}, not about {target}: name that repo, or scan "
            f"{target}."
        )
    return publish.preview(report, revision=revision or "main", hub=hub)


def _folder(target: str, report: Report, source: str) -> Path:
    try:
        folder = Path(target).expanduser().resolve()
        is_there = folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{target!r} is no folder.") from error
    if not is_there or folder.name != report.target:
        what = "is another folder" if is_there else "is no folder"
        raise UsageError(
            f"{source} is about the local {report.target!r}, and {target} {what}: name that one, "
            f"or scan {target}."
        )
    return folder


def _of_folder(folder: Path, report: Report) -> CardChange:
    repo = ResolvedRepo(folder.name, None, None, folder, ())
    for tower in report.towers:
        for file in tower.files:
            _refuse_other_bytes(repo, file)
    return change(
        _read_card(repo, folder), report, metadata_of(report, publish.REPORT_PATH), str(folder)
    )


def _refuse_other_bytes(repo: ResolvedRepo, scanned: FileRecord) -> None:
    """What publishing asks of a repo: no verdict beside other weights than it is about."""
    file = RepoFile(scanned.path, scanned.size, sha256=scanned.sha256)
    try:
        with local_path(repo, file).open("rb") as stream:
            verify(file, stream)
    except OSError as error:
        raise unreadable(file, error) from error
    except HashMismatchError as error:
        raise PublishError(
            f"{scanned.path} of {repo.directory} is another file by now than the one that was "
            "scanned. Scan the folder again"
        ) from error


def _read_card(repo: ResolvedRepo, folder: Path) -> bytes | None:
    if not (folder / _README).exists():
        return None
    data = read_start(repo, RepoFile(_README, MAX_BYTES + 1), MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise CardError(f"{folder}: README.md is larger than {MAX_BYTES} bytes")
    return data
