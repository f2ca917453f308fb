"""Every exception that hf-amdet raises on purpose.

::

    AmdetError                     what happened, to which repo or file, and the way out
    ├── UsageError                 the request itself is wrong
    │   ├── PromptsError           a prompt source that cannot be read or is too small
    │   └── AnchorError            the anchor does not fit the suspect, or cannot be had
    ├── HubError                   the Hub said no, or did not answer
    │   ├── UnknownRepoError       no such repo, or a private one the token does not open
    │   ├── UnknownRevisionError   no such branch, tag or commit
    │   ├── GatedRepoError         access must be asked for on the Hub first
    │   ├── HubUnavailableError    no network, offline mode, 429, 5xx: nothing was read
    │   └── PublishError           nothing was published; the report is kept
    │       ├── ConflictError      the branch moved on while we wrote
    │       ├── ForbiddenError     the token may not write there
    │       └── CardError          the model card cannot be edited without losing something
    ├── TowerError                 a text tower that cannot be scanned: verdict ``not_scanned``
    │   ├── NoTextTowerError       nothing in the repo is a text tower that we know
    │   ├── NoBaseError            an adapter without the model that it belongs to
    │   ├── TooManyError           more files than are looked into
    │   ├── PickleOnlyError        weights only in formats that execute code on load
    │   ├── MalformedFileError     a header, config or tokenizer that lies or does not parse
    │   ├── HashMismatchError      the bytes are not those that the Hub declared
    │   ├── WeightsMismatchError   tensors missing, unexpected or of the wrong shape
    │   └── CorruptWeightsError    NaN, infinite or constant weights
    ├── ReportError                a report file that does not parse or validate
    └── OutputError                results could not be written (disk full, no permission)

``UsageError``, ``HubError``, ``ReportError`` and ``OutputError`` end a scan (exit code 2).
A ``TowerError`` does not: the tower is reported as ``not_scanned`` with the reason (exit code 3),
because a failed scan is never a verdict.
"""

from __future__ import annotations

from typing import ClassVar


class AmdetError(Exception):
    """Base of all errors; ``str()`` is a message fit for users.

    Attributes:
        code: short stable name for machines, as it stands in reports.
    """

    code: ClassVar[str] = "error"


class UsageError(AmdetError):
    code = "usage"


class PromptsError(UsageError):
    code = "prompts"


class AnchorError(UsageError):
    code = "anchor"


class HubError(AmdetError):
    code = "hub"


class UnknownRepoError(HubError):
    code = "unknown_repo"


class UnknownRevisionError(HubError):
    code = "unknown_revision"


class GatedRepoError(HubError):
    code = "gated_repo"


class HubUnavailableError(HubError):
    code = "hub_unavailable"


class PublishError(HubError):
    code = "publish"


class ConflictError(PublishError):
    code = "conflict"


class ForbiddenError(PublishError):
    code = "forbidden"


class CardError(PublishError):
    code = "card"


class TowerError(AmdetError):
    code = "tower"


class NoTextTowerError(TowerError):
    code = "no_text_tower"


class NoBaseError(TowerError):
    code = "no_base"


class TooManyError(TowerError):
    code = "too_many"


class PickleOnlyError(TowerError):
    code = "pickle_only"


class MalformedFileError(TowerError):
    code = "malformed_file"


class HashMismatchError(TowerError):
    code = "hash_mismatch"


class WeightsMismatchError(TowerError):
    code = "weights_mismatch"


class CorruptWeightsError(TowerError):
    code = "corrupt_weights"


class ReportError(AmdetError):
    code = "report"


class OutputError(AmdetError):
    code = "output"
