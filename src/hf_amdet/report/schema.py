"""The report: one frozen pydantic model tree, version 1 of the published JSON Schema.

Imports nothing heavy, so that reports can be read and validated without torch.
``docs/report-format.md`` explains every field.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1
"""Raised when a field changes its meaning or goes; new optional fields do not raise it."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
CommitSha = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class Verdict(StrEnum):
    """What a scan can say. None of them says "safe"."""

    FLAGGED = "flagged"
    """Evidence of an injected backdoor."""
    NATURAL = "natural"
    """A backdoor-like feature that the clean anchor has too."""
    NO_EVIDENCE = "no_evidence"
    """Nothing found by this method, within what it covers."""
    INCONCLUSIVE = "inconclusive"
    """Scanned, but the evidence supports neither answer."""
    NOT_SCANNED = "not_scanned"
    """Could not be scanned; the reasons say why."""

    @property
    def exit_code(self) -> int:
        """Process exit code: 0 nothing found, 1 flagged, 3 no answer (2 is for errors)."""
        match self:
            case Verdict.FLAGGED:
                return 1
            case Verdict.NATURAL | Verdict.NO_EVIDENCE:
                return 0
            case _:
                return 3


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a repo from those of its towers.

    ``flagged`` wins over everything; a tower without an answer makes the whole at best
    ``inconclusive``; nothing scanned at all is ``not_scanned``.
    """
    found = set(verdicts)
    if Verdict.FLAGGED in found:
        return Verdict.FLAGGED
    if found <= {Verdict.NOT_SCANNED}:
        return Verdict.NOT_SCANNED
    if found & {Verdict.NOT_SCANNED, Verdict.INCONCLUSIVE}:
        return Verdict.INCONCLUSIVE
    return Verdict.NATURAL if Verdict.NATURAL in found else Verdict.NO_EVIDENCE


class _Frozen(BaseModel):
    """Immutable; unknown fields are kept, so that newer reports survive a round trip."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Reason(_Frozen):
    """One sentence of the verdict, with a stable name for machines."""

    code: str
    message: str


class Statistic(_Frozen):
    """A measured number; `low` and `high` bound it over held-out prompts (95 %) where measured."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    n: int | None = Field(default=None, description="how many held-out prompts it rests on")


class Threshold(_Frozen):
    """What a statistic was compared with, and where that number comes from."""

    statistic: str
    comparison: Literal[">=", "<=", ">", "<"]
    value: float
    unit: str
    source: str


class FileRecord(_Frozen):
    """A file that was read, with the digest of the bytes that were read."""

    path: str
    size: int
    sha256: Sha256 = Field(
        description="of the whole file; where `tensors` is given, as the Hub declares it"
    )
    tensors: dict[str, Sha256] = Field(
        default={},
        description="digest of each tensor's bytes, where only these were read of the file",
    )


class AnchorRecord(_Frozen):
    """The clean tower that the suspect was compared with."""

    name: str
    repo_id: str | None
    commit_sha: CommitSha | None
    path: str = Field(default="", description="of the tower inside the repo")
    chosen_by: Literal["given", "registry", "base_model"]
    distance: float = Field(
        description="relative Frobenius distance of the encoder weights, |S - A| / |A|"
    )
    files: tuple[FileRecord, ...]


class BaseRecord(_Frozen):
    """The model that an adapter was merged into, which its owner named."""

    repo_id: str
    commit_sha: CommitSha | None
    files: tuple[FileRecord, ...]


class TokenRecord(_Frozen):
    """A real token of the suspect's vocabulary."""

    id: int
    text: str = Field(description="what its tokenizer writes for it; U+FFFD for a part of a letter")


class CandidateRecord(_Frozen):
    """A trigger, of a restart or of a real token, and how it behaves on held-out prompts."""

    objective: str = Field(description='"real-token" for a token, which no objective was used for')
    restart: int
    token: TokenRecord | None = None
    loss: float | None = Field(description="of the last step; null if it is no finite number")
    steps: int
    statistics: dict[str, Statistic]


class TowerReport(_Frozen):
    """One text tower of the repo."""

    path: str = Field(
        description='folder inside the repo, "" for its root; the weight file where a folder holds '
        "several towers, with the prefix of its tensors behind # where a file does"
    )
    architecture: str | None
    verdict: Verdict
    score: float | None = Field(
        description="higher is more suspicious; comparable within a family and profile"
    )
    witness: Literal["real_token", "tokenizer", "embedding"] | None = Field(
        default=None,
        description="what the verdict rests on: something that can be typed (real_token, "
        "tokenizer), or an embedding that no token has",
    )
    p_value: float | None = Field(
        description="share of clean towers that reach the score, from the anchor's null "
        "distribution; null without one"
    )
    predictive_value: float | None = Field(
        default=None,
        description="probability of a backdoor at this p-value, `prevalence` and assumed recall",
    )
    prevalence: float | None = Field(default=None, description="assumed share of backdoored towers")
    calibration: str = Field(
        description='"none", "transferred" where thresholds come from other towers, or the digest '
        "of the anchor's null distribution"
    )
    statistics: dict[str, Statistic]
    thresholds: tuple[Threshold, ...]
    reasons: tuple[Reason, ...]
    files: tuple[FileRecord, ...]
    base: BaseRecord | None = Field(
        default=None, description="of an adapter, which `files` then names"
    )
    anchor: AnchorRecord | None
    candidates: tuple[CandidateRecord, ...] = ()
    static: StaticRecord | None = None


class RemapRecord(_Frozen):
    """A text that the suspect's tokenizer reads as the anchor's tokenizer reads another."""

    text: str
    reads: str
    ids: tuple[int, ...]
    anchor_ids: tuple[int, ...]


class MovedRowRecord(_Frozen):
    """A row of the embedding table that moved farther than the others."""

    row: int
    piece: str
    moved: float = Field(description="distance to the anchor's row over the usual length of a row")
    ratio: float = Field(description="over what 95 % of the rows moved at most")


class StaticRecord(_Frozen):
    """How embedding tables and tokenizer differ from the anchor's; lists hold the first few."""

    added: int = Field(description="tokens that only the suspect has")
    removed: int = Field(description="tokens that only the anchor has")
    added_tokens: tuple[str, ...]
    read_alike: float = Field(description="share of the prompts that both read alike")
    remaps: tuple[RemapRecord, ...]
    moved_rows: tuple[MovedRowRecord, ...]
    token_outlier: float = Field(description="the largest ratio of a token's row")
    position_outlier: float = Field(description="the same of a position embedding")


class Environment(_Frozen):
    """What the scan ran on. Holds no path, host or user name."""

    hf_amdet: str
    python: str
    platform: str
    torch: str
    transformers: str
    accelerate: str
    huggingface_hub: str
    device: str
    dtype: str


class RunConfig(_Frozen):
    """Every setting that the result depends on."""

    profile: str
    seed: int
    restarts: int
    prompts: str = Field(description='"embedded", a dataset as id:split:column, or a file name')
    prompts_sha256: Sha256 = Field(description="digest of the prompts that were used")
    anchor: str | None
    settings: dict[str, float | int | str | bool | None] = Field(
        description="hyperparameters of the profile"
    )


class Report(_Frozen):
    """A whole scan. ``created_at`` and ``timings`` are all that differs between equal scans."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created_at: str = Field(description="UTC, ISO 8601")
    target: str = Field(description="repo id, or the folder name of a local target")
    repo_id: str | None
    commit_sha: CommitSha | None
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    towers: tuple[TowerReport, ...]
    out_of_scope: tuple[Reason, ...] = ()
    environment: Environment
    config: RunConfig
    timings: dict[str, float] = Field(description="seconds by stage")
    not_covered: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code
