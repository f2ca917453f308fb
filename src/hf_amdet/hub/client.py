"""The one place that speaks through huggingface_hub: how to reach a Hub, and what its errors mean.

huggingface_hub itself is imported when it is first needed, to keep the start of the program fast.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_amdet._version import __version__
from hf_amdet.errors import (
    AmdetError,
    GatedRepoError,
    HashMismatchError,
    HubError,
    HubUnavailableError,
    OutputError,
    UnknownRepoError,
    UnknownRevisionError,
    UsageError,
)
from hf_amdet.hub.files import RepoFile

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub import HfApi

_LIBRARY = "hf-amdet"
_CHUNK_BYTES = 64 * 1024
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_NOTHING_READ = "Nothing was read, not even from a cache, where it could be out of date."
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Hub:
    """Which Hub, as whom, and where downloads are kept.

    None means what it means to the `hf` command: HF_ENDPOINT, HF_TOKEN or the stored login,
    HF_HUB_CACHE or HF_HOME. HF_HUB_OFFLINE counts for every Hub.
    """

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None

    @property
    def url(self) -> str:
        """The endpoint, without a trailing slash."""
        from huggingface_hub import constants

        return constants.ENDPOINT if self.endpoint is None else self.endpoint.rstrip("/")

    @property
    def cache(self) -> Path:
        """The folder that downloads are kept in."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()

    def assets(self, repo_id: str, commit_sha: str) -> Path:
        """The folder for what hf-amdet makes of a commit's files; it exists.

        Raises:
            OSError: it cannot be made.
        """
        from huggingface_hub import cached_assets_path

        beside = None if self.cache_dir is None else self.cache.parent / "assets"
        try:
            return cached_assets_path("hf-amdet", repo_id, commit_sha, assets_dir=beside)
        except ValueError as error:  # Where a file is in the way.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error

    def api(self) -> HfApi:
        """A client that names hf-amdet to the Hub."""
        from huggingface_hub import HfApi

        return HfApi(
            endpoint=self.url,
            token=self.token,
            library_name=_LIBRARY,
            library_version=__version__,
        )


DEFAULT_HUB = Hub()
"""The Hub that the user's environment names."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every request."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def get_start(
    repo_id: str, commit_sha: str, file: RepoFile, limit: int, *, hub: Hub = DEFAULT_HUB
) -> bytes:
    """The first `limit` bytes of a file on the Hub, or all of it if it is shorter.

    Never reads more than `limit`, whatever the server sends, and leaves the cache alone.

    Raises:
        HubError: as `hub_errors` says.
        HashMismatchError: the server holds another number of bytes than it declared.
    """
    wanted = min(limit, file.size)
    if wanted == 0:
        return b""
    data = bytearray()
    for chunk in _stream(repo_id, commit_sha, file, (0, wanted), hub):
        data += chunk
    if len(data) < wanted:
        raise size_mismatch(file, len(data))
    return bytes(data)


def get_range(
    repo_id: str, commit_sha: str, file: RepoFile, span: tuple[int, int], *, hub: Hub = DEFAULT_HUB
) -> Iterator[bytes]:
    """The bytes from `span[0]` up to, not including, `span[1]`, in pieces; may end early.

    Raises:
        RangeIgnoredError: the server does not send parts of files.
        HubError, HashMismatchError: as for `get_start`.
    """
    return _stream(repo_id, commit_sha, file, span, hub)


class RangeIgnoredError(Exception):
    """A server that answers a request for a part of a file with the whole."""


def _stream(
    repo_id: str, commit_sha: str, file: RepoFile, span: tuple[int, int], hub: Hub
) -> Iterator[bytes]:
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    begin, end = span
    with hub_errors(repo_id, commit_sha, hub=hub):
        url = hf_hub_url(repo_id, file.path, revision=commit_sha, endpoint=hub.url)
        headers = build_hf_headers(
            token=hub.token, library_name=_LIBRARY, library_version=__version__
        )
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            hf_raise_for_status(response)
            _check_total(response, file)
            if begin and not response.headers.get("Content-Range", "").startswith(
                f"bytes {begin}-"
            ):
                raise RangeIgnoredError
            left = end - begin
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    break


def size_mismatch(file: RepoFile, found: int) -> HashMismatchError:
    """The error for a file that has not the number of bytes that was declared."""
    return HashMismatchError(
        f"{file.path} has {found} bytes, not the {file.size} that were declared. Try again; if it"
        " stays so, the Hub, a proxy, or whoever is writing the file is at fault."
    )


@contextmanager
def hub_errors(
    repo_id: str, revision: str | None = None, *, hub: Hub = DEFAULT_HUB
) -> Iterator[None]:
    """Turn what huggingface_hub raises about a repo into our errors.

    No message repeats what the server or the HTTP library said: that may hold a token or a signed
    address.

    Raises:
        UsageError: no valid repo id, token or endpoint.
        UnknownRepoError: no such repo, or a private one that the token does not open.
        UnknownRevisionError: no such branch, tag or commit.
        GatedRepoError: access must be asked for first.
        HubUnavailableError: offline, no connection, timeout, 429 or 5xx, or no Hub at all.
        HubError: any other refusal.
        OutputError: the download does not fit into, or may not be written to, the cache.
    """
    try:
        yield
    except Exception as error:
        ours = _translate(error, repo_id, revision, hub)
        if ours is None:
            raise
        # The HTTP library quotes a header that it cannot send, hence the token.
        raise ours from (None if isinstance(ours, UsageError) else error)


def _translate(error: Exception, repo_id: str, revision: str | None, hub: Hub) -> AmdetError | None:
    """Our error for one of theirs, None for one that is not about the Hub.

    Subclasses stand before their bases: GatedRepoError is a RepositoryNotFoundError, and many are
    both an OSError and a ValueError.
    """
    from huggingface_hub import errors as theirs

    url = hub.url
    where = f"{repo_id} at {revision}" if revision else repo_id
    match error:
        case AmdetError():
            return None
        case theirs.GatedRepoError():
            return GatedRepoError(
                f"{repo_id} is gated: ask for access at {url}/{repo_id}, then {_LOG_IN} as the"
                " account that it was granted to."
            )
        case theirs.RepositoryNotFoundError():
            return UnknownRepoError(
                f"There is no repo {repo_id} on {url}, or it is private and no token that was sent"
                f" opens it. Check the spelling; for a private repo, {_LOG_IN}."
            )
        case theirs.RevisionNotFoundError():
            return UnknownRevisionError(
                f"{repo_id} has no branch, tag or commit {revision or 'main'}. Its revisions are"
                f" listed at {url}/{repo_id}/commits."
            )
        case theirs.LocalEntryNotFoundError(__cause__=Exception() as cause):
            return _translate(cause, repo_id, revision, hub)
        case theirs.LocalEntryNotFoundError() | theirs.OfflineModeIsEnabled():
            return HubUnavailableError(
                f"Offline mode is on (HF_HUB_OFFLINE) and {where} is not complete in {hub.cache}."
                f" Download it first: `hf download {repo_id} --revision {revision or 'COMMIT'}`."
            )
        case theirs.HfHubHTTPError():
            return _refused(error.response.status_code, where, url)
        case theirs.HFValidationError():
            return UsageError(
                f"{repo_id!r} is neither a repo id such as org/model nor a local directory."
            )
    return _from_transport(error, where, hub)


def _from_transport(error: Exception, where: str, hub: Hub) -> AmdetError | None:
    """Our error for one of what carries requests and files; None for any other."""
    import httpx2

    match error:
        case httpx2.LocalProtocolError() | UnicodeEncodeError():
            return UsageError(
                "The token cannot be sent: it holds a line break or another character that no"
                f" token has. To replace it, {_LOG_IN}."
            )
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return UsageError(f"The Hub's address {hub.url!r} is not valid. Check HF_ENDPOINT.")
        case httpx2.HTTPError() | ConnectionError() | TimeoutError():
            kind = type(error).__name__
            return HubUnavailableError(
                f"{hub.url} could not be reached for {where} ({kind}). {_NOTHING_READ} Check the"
                " connection and try again."
            )
        case OSError():
            return _from_os(error, where, hub)
        case ValueError():
            return HubUnavailableError(
                f"{hub.url} did not answer as a Hub does about {where}. Check HF_ENDPOINT, proxy"
                f" and firewall. {_NOTHING_READ}"
            )
        case RuntimeError() if type(error) is RuntimeError:  # What hf_xet raises.
            if "No space left" in str(error):
                return _disk_full(where, hub)
            return HubUnavailableError(
                f"The transfer of {where} from Xet storage failed. Try again, or set"
                " HF_HUB_DISABLE_XET=1."
            )
    return None


def _refused(status: int, where: str, url: str) -> HubError:
    if status in (408, 429) or status >= 500:
        cause = "too many requests" if status == 429 else "a fault on its side"
        return HubUnavailableError(
            f"{url} answered HTTP {status} ({cause}) for {where}. {_NOTHING_READ} Try again later."
        )
    if status == 401:
        return HubError(
            f"{url} refused the token (HTTP 401) for {where}: it is not valid or has expired. To"
            f" replace it, {_LOG_IN}."
        )
    return HubError(
        f"{url} refused the request for {where} (HTTP {status}). Check in a browser whether the"
        " repo is open to you, and whether the token may read it."
    )


def _from_os(error: OSError, where: str, hub: Hub) -> AmdetError:
    if error.errno in _DISK_FULL:
        return _disk_full(where, hub)
    if error.errno is None:  # huggingface_hub's own, such as a failed consistency check.
        return HubUnavailableError(
            f"The transfer of {where} from {hub.url} broke off. {_NOTHING_READ} Try again."
        )
    return OutputError(
        f"{where} cannot be kept in the cache {hub.cache}: {error.strerror}. Set HF_HUB_CACHE to a"
        " folder that can be written."
    )


def _disk_full(where: str, hub: Hub) -> OutputError:
    return OutputError(
        f"The disk of the cache {hub.cache} is full; {where} was not downloaded. Free space (`hf"
        " cache prune`), or set HF_HUB_CACHE to a folder on a larger disk."
    )


def _check_total(response: Response, file: RepoFile) -> None:
    """Compare the size in Content-Range, where there is one, with the declared size."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdecimal() and int(total) != file.size:
        raise size_mismatch(file, int(total))
