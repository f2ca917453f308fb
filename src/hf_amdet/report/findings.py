"""What other tools are told of a report, whatever the format: findings, and plain strings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from hf_amdet.errors import ReportError
from hf_amdet.report.escaping import seen
from hf_amdet.report.markdown import sentence
from hf_amdet.report.schema import FileRecord, Reason, Report, TowerReport, Verdict

TOOL: Final = "hf-amdet"
HUB: Final = "https://huggingface.co"

ADVICE: Final = {
    Verdict.FLAGGED: "Do not use this text encoder. Read which trigger the report names, tell its "
    "owner, and go back to a commit or a model without this finding.",
    Verdict.INCONCLUSIVE: "Take the text encoder for one that nobody has checked. Read the "
    "reasons; a scan with --anchor and the clean model that it was made from may give an answer.",
    Verdict.NOT_SCANNED: "Take the text encoder for one that nobody has checked. The reasons say "
    "what stands in the way of a scan.",
    Verdict.NATURAL: "Nothing has to be done about the feature. Before you rely on the model, read "
    "what a scan does not cover.",
    Verdict.NO_EVIDENCE: "Before you rely on the model, read what a scan does not cover.",
}
"""What a reader can do about each verdict."""

_TAG = re.compile("<(?=[A-Za-z/!?])")


@dataclass(frozen=True)
class Finding:
    """What a report says of one tower, or of a repo that holds none.

    Attributes:
        path: of the tower inside the repo, as in the report; "" for the repo itself.
        tower: None where there is none.
    """

    verdict: Verdict
    path: str
    reasons: Sequence[Reason]
    files: Sequence[FileRecord]
    tower: TowerReport | None


def findings(report: Report) -> tuple[Finding, ...]:
    """One a tower; where there is none, one of the whole repo, so that it cannot pass for clean."""
    if not report.towers:
        return (Finding(report.verdict, "", report.reasons, (), None),)
    return tuple(
        Finding(tower.verdict, tower.path, tower.reasons, tower.files, tower)
        for tower in report.towers
    )


def files(report: Report) -> dict[str, FileRecord]:
    """Every file of the repo that was read, by path, with all tensors that any tower read of it."""
    found: dict[str, FileRecord] = {}
    for tower in report.towers:
        for file in tower.files:
            tensors = found.get(file.path, file).tensors | file.tensors
            found[file.path] = file.model_copy(update={"tensors": tensors})
    return found


def fingerprint(report: Report, finding: Finding) -> str:
    """What a dashboard knows a finding by: the repo, the tower and the content of its files.

    A rescan and a commit that leaves the files alone keep it. New weights are a new finding, so
    that nobody's "false positive" about the old ones is carried over; where no file was read, a
    new commit is.
    """
    content = sorted([file.path, file.sha256] for file in finding.files) or report.commit_sha
    identity = json.dumps([report.repo_id or report.target, finding.path, content])
    return hashlib.sha256(identity.encode()).hexdigest()


def explained(report: Report, finding: Finding) -> str:
    """The verdict, what it is about and its reasons in plain words, on one line."""
    at = f" at commit {report.commit_sha}" if report.commit_sha else ""
    place = plain(finding.path) or "at the root"
    what = f"Text encoder {place} of" if finding.tower else "Model"
    subject = f"{what} {plain(report.target)}{at}."
    return " ".join(
        [sentence(finding.verdict), subject, *(plain(r.message) for r in finding.reasons)]
    )


def plain(value: str) -> str:
    """A stranger's text on one line, with `\\x` escapes for what is not seen and for HTML tags."""
    return _TAG.sub(r"\\x3c", seen(value))


def bag(value: Any) -> Any:
    """A JSON value with every string and key of it made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(key): bag(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bag(item) for item in value]
    return value


def moment(report: Report) -> datetime:
    """When the report was made, in UTC.

    Raises:
        ReportError: `created_at` is no date.
    """
    try:
        made = datetime.fromisoformat(report.created_at)
        return (made if made.tzinfo else made.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ReportError(
            f"created_at of the report is {plain(report.created_at)!r}, which is no ISO 8601 date; "
            "write the date of the scan there, such as 2026-01-02T03:04:05Z"
        ) from error


def hub_url(repo_id: str) -> str:
    """The page of a repo on the Hub."""
    return f"{HUB}/{uri(repo_id)}"


def uri(path: str) -> str:
    """A path inside a repo as a relative reference that cannot lead out of it; "." for the root."""
    steps = (step for step in path.split("/") if step not in ("", ".", ".."))
    return "/".join(quote(step, safe="") for step in steps) or "."
