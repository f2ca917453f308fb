"""Put a report into the repo that it is about: as one commit, or as one pull request.

Card and report go together in one commit, made from the card as it stands at that moment. Whatever
gets in between, another commit or a busy Hub, the whole attempt is made again from the start, so
that an answer lost on its way leads to no second pull request.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_amdet.errors import (
    CardError,
    ForbiddenError,
    HashMismatchError,
    HubError,
    HubUnavailableError,
    PublishError,
    UnknownRevisionError,
    UsageError,
)
from hf_amdet.hub import card as cards
from hf_amdet.hub.card import CardChange, CardMetadata
from hf_amdet.hub.client import DEFAULT_HUB, Hub, get_start, hub_errors
from hf_amdet.hub.files import RepoFile
from hf_amdet.hub.patience import MovedError, patiently, response_of
from hf_amdet.report import files, markdown
from hf_amdet.report.schema import Report, Verdict

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, Discussion

Mode = Literal["commit", "pr"]

TITLE = "hf-amdet safety report"
"""What the title of every pull request of ours starts with."""
REPORT_PATH = "amdet/report.json"

_README = "README.md"
_SHOWN = 300


@dataclass(frozen=True)
class Publication:
    """Where the report stands now."""

    url: str
    kind: Mode
    number: int | None
    """Number of the pull request."""
    changed: bool
    """False where the same result stood there before, or its owner has turned it down."""


@dataclass(frozen=True)
class _Job:
    report: Report
    repo_id: str
    mode: Mode
    hub: Hub
    metadata: CardMetadata


def publish(
    report: Report,
    *,
    mode: Mode,
    hub: Hub = DEFAULT_HUB,
    publish_flagged: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Publication:
    """Write the report and its section of the card into the repo that was scanned.

    Nothing is written where the same verdict of the same version of hf-amdet about the same commit,
    or about the same files, stands already.

    Args:
        report: the report of a repo on the Hub.
        mode: "commit" onto main, or "pr": one pull request, updated by later reports.
        hub: the Hub, and the token to publish with.
        publish_flagged: publish `flagged` about a repo that belongs to somebody else.
        sleep: called with seconds to wait for a busy Hub.

    Raises:
        UsageError: the report is about a local folder.
        PublishError: the owner opted out, or must be told first.
        CardError: the card cannot be edited, or the Hub refuses its metadata.
        ForbiddenError: no token, or one that may not write there.
        ConflictError: the branch moved on at every attempt.
        HubUnavailableError: the Hub stayed busy or out of reach.
        HubError: any other refusal, as `hub_errors` says.
    """
    job = _job(report, mode, hub)
    _require_token(hub)
    account: dict[str, Any] = {}
    if mode == "pr" or report.verdict is Verdict.FLAGGED:
        account = patiently(lambda: _whoami(job), job.repo_id, sleep)
    if report.verdict is Verdict.FLAGGED and not publish_flagged:
        _refuse_strangers(job.repo_id, account)
    return patiently(lambda: _attempt(job, account), job.repo_id, sleep)


def preview(
    report: Report,
    *,
    revision: str = "main",
    hub: Hub = DEFAULT_HUB,
    sleep: Callable[[float], None] = time.sleep,
) -> CardChange:
    """What `publish` would make of the card as it stands now; nothing is sent.

    Args:
        report: the report of a repo on the Hub.
        revision: whose card; refs/pr/N for that of a pull request that `publish` would update.
        hub: the Hub, and the token to read with.
        sleep: called with seconds to wait for a busy Hub.

    Raises:
        UsageError, PublishError, CardError, HubError: as `publish`, but for what is about writing.
    """
    job = _job(report, "commit", hub)

    def attempt() -> CardChange:
        head = _head(job, revision)
        _refuse_other_weights(job, head)
        return cards.change(_download_card(job, head), report, job.metadata, job.repo_id)

    return patiently(attempt, job.repo_id, sleep)


def _job(report: Report, mode: Mode, hub: Hub) -> _Job:
    if report.repo_id is None or report.commit_sha is None:
        raise UsageError(
            f"{report.target} is no repo on the Hub, so there is nowhere to publish its report: "
            "scan it by its repo id, or do not ask to publish"
        )
    return _Job(report, report.repo_id, mode, hub, cards.metadata_of(report, REPORT_PATH))


def _require_token(hub: Hub) -> None:
    from huggingface_hub import get_token

    if hub.token is None and get_token() is None:
        raise ForbiddenError(
            "Publishing needs a token: log in with `hf auth login`, set HF_TOKEN or pass --token"
        )


def _whoami(job: _Job) -> dict[str, Any]:
    with _writing(job):
        account: dict[str, Any] = job.hub.api().whoami()
    return account


def _refuse_strangers(repo_id: str, account: dict[str, Any]) -> None:
    """Owner first: only they may make a `flagged` about their repo public without being asked."""
    namespace = repo_id.rpartition("/")[0]
    own = [account.get("name"), *(org.get("name") for org in account.get("orgs", ()))]
    if namespace not in own:
        raise PublishError(
            f"{repo_id} is flagged and belongs to somebody else, who is to be told first: nothing "
            "was published, and the report is kept. Send it to the owner in private; once they "
            "know, publish with --publish-flagged"
        )


def _attempt(job: _Job, account: dict[str, Any]) -> Publication:
    """Read what stands there and write what is missing."""
    head = _head(job, "main")
    _refuse_other_weights(job, head)
    card, stands = _read(job, head)
    if stands:
        return Publication(f"{job.hub.url}/{job.repo_id}", job.mode, None, changed=False)
    if job.mode == "commit":
        commit = _commit(job, card, head, revision="main")
        return Publication(commit.commit_url, "commit", None, changed=True)
    pull = _our_pull_request(job, str(account.get("name")))
    if pull is not None:
        updated = _update(job, pull)
        if updated is not None:
            return updated
    opened = _commit(job, card, head, create_pr=True)
    return Publication(str(opened.pr_url), "pr", opened.pr_num, changed=True)


def _refuse_other_weights(job: _Job, head: str) -> None:
    """A verdict about an older commit must not stand in the card beside other weights."""
    scanned = {file.path: file.sha256 for tower in job.report.towers for file in tower.files}
    with hub_errors(job.repo_id, head, hub=job.hub):
        found = job.hub.api().get_paths_info(job.repo_id, sorted(scanned), revision=head)
    for entry in found:
        lfs = getattr(entry, "lfs", None)
        if lfs is not None and lfs.sha256 != scanned[entry.path]:
            raise PublishError(
                f"{entry.path} of {job.repo_id} is another file by now than the one that was "
                f"scanned at {job.report.commit_sha}: nothing was published, and the report is "
                "kept. Scan the newest commit"
            )


def _update(job: _Job, pull: Discussion) -> Publication | None:
    """Bring a pull request of ours up to date; None for a closed one about something else."""
    revision = f"refs/pr/{pull.num}"
    is_open = pull.status in ("open", "draft")
    try:
        head = _head(job, revision)
        card, stands = _read(job, head)
    except UnknownRevisionError:
        if is_open:
            raise
        return None
    if stands:
        return Publication(pull.url, "pr", pull.num, changed=False)
    if not is_open:
        return None
    api, title = job.hub.api(), _title(job)
    if pull.title != title:
        # Before the commit: once that stands, a later run has nothing more to do here.
        with _writing(job):
            api.rename_discussion(job.repo_id, pull.num, title)
    _commit(job, card, head, revision=revision)
    # The report is there by now; a comment that fails is no reason to say that it is not.
    with suppress(HubError), _writing(job):
        api.comment_discussion(job.repo_id, pull.num, _body(job))
    return Publication(pull.url, "pr", pull.num, changed=True)


def _our_pull_request(job: _Job, author: str) -> Discussion | None:
    """The newest pull request of ours that was not merged; an open one before a closed one."""
    with hub_errors(job.repo_id, hub=job.hub):
        found = [
            thread
            for thread in job.hub.api().get_repo_discussions(
                job.repo_id, author=author, discussion_type="pull_request"
            )
            if thread.is_pull_request
            and thread.author == author
            and thread.title.startswith(TITLE)
            and thread.status != "merged"
        ]
    return max(found, key=lambda thread: (thread.status != "closed", thread.num), default=None)


def _head(job: _Job, revision: str) -> str:
    with hub_errors(job.repo_id, revision, hub=job.hub):
        return str(job.hub.api().model_info(job.repo_id, revision=revision).sha)


def _read(job: _Job, sha: str) -> tuple[bytes | None, bool]:
    """The card at a commit, None without one, and whether our result stands in it already.

    Raises:
        PublishError: the owner opted out.
        CardError: too large, or its metadata does not parse.
    """
    card = _download_card(job, sha)
    return card, cards.says_already(card, job.metadata, job.repo_id)


def _download_card(job: _Job, sha: str) -> bytes | None:
    with hub_errors(job.repo_id, sha, hub=job.hub):
        found = job.hub.api().get_paths_info(job.repo_id, [_README], revision=sha)
    if not found:
        return None
    entry = found[0]
    size = int(getattr(entry, "size", 0))
    if size > cards.MAX_BYTES:
        raise CardError(f"{job.repo_id}: README.md is larger than {cards.MAX_BYTES} bytes")
    damaged = HubUnavailableError(
        f"README.md of {job.repo_id} did not arrive as the Hub declares it: nothing was published; "
        "try again later"
    )
    try:
        card = get_start(job.repo_id, sha, RepoFile(_README, size), size, hub=job.hub)
    except HashMismatchError as error:
        raise damaged from error
    # What a cache on the way made of it would go back to the owner as their own text.
    git_object = b"blob %d\0" % len(card) + card
    blob_id = hashlib.sha1(git_object, usedforsecurity=False).hexdigest()
    if not getattr(entry, "lfs", None) and getattr(entry, "blob_id", None) != blob_id:
        raise damaged
    return card


def _commit(
    job: _Job,
    card: bytes | None,
    parent: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Card and report as one commit on `parent`."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import BadRequestError

    report = files.to_json(job.report)
    files.validate(json.loads(report))
    readme = cards.with_report(card, job.report, job.metadata, job.repo_id)
    with _writing(job):
        try:
            return job.hub.api().create_commit(
                job.repo_id,
                [
                    CommitOperationAdd(_README, readme),
                    CommitOperationAdd(REPORT_PATH, report.encode()),
                ],
                commit_message=_title(job),
                commit_description=_body(job),
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent,
            )
        except ValueError as error:
            if not isinstance(error.__cause__, BadRequestError):
                raise
            said = "".join(filter(str.isprintable, " ".join(str(error).split())))
            raise CardError(
                f"the card's existing metadata is refused by the Hub: {said[:_SHOWN]}; mend it in "
                f"README.md of {job.repo_id} first"
            ) from error


@contextmanager
def _writing(job: _Job) -> Iterator[None]:
    """`hub_errors`, for requests where a refusal is about writing."""
    try:
        with hub_errors(job.repo_id, hub=job.hub):
            yield
    except HubError as error:
        response = response_of(error)
        status = response.status_code if response is not None else None
        if status == 412:
            raise MovedError from error
        if status in (401, 403):
            raise ForbiddenError(_way_out(job, status)) from error
        raise


def _way_out(job: _Job, status: int) -> str:
    refused = f"{job.hub.url} does not let this token write to {job.repo_id} (HTTP {status})"
    if status == 401:
        return f"{refused}: it is not valid or has expired; log in with `hf auth login`"
    if job.mode == "commit":
        return (
            f"{refused}: use a token of an owner with the role `write`, or offer the report as a "
            "pull request with --publish pr"
        )
    return (
        f"{refused}: use a token with the role `write`, or a fine-grained one that may take part "
        "in discussions; the owner may also have turned pull requests off"
    )


def _title(job: _Job) -> str:
    verdict = job.metadata.verdict.replace("_", " ")
    return f"{TITLE}: {verdict} at {job.metadata.commit[:12]}"


def _body(job: _Job) -> str:
    return (
        f"hf-amdet scanned the text encoders of commit {job.metadata.commit}.\n\n"
        f"**{markdown.sentence(job.report.verdict)}**\n\n"
        f"This adds a section to the model card and the full report as `{REPORT_PATH}`; nothing "
        "else is changed. Later scans update the same pull request.\n\n"
        "If you think that the result is wrong, please say so here. If you want no such reports, "
        "close this and put `amdet: {opt_out: true}` into the metadata of the card."
    )
