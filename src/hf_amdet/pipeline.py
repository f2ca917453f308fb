"""The pipeline, put together in one place: resolve -> fetch -> load -> detect -> report."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from hf_amdet.detection.config import PROFILES, Profile
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import DType, Runtime
from hf_amdet.encoders.anchors import check_fit, distance, identical
from hf_amdet.encoders.clip import ClipTower
from hf_amdet.encoders.loading import check_shapes, expected_shapes, load_tower
from hf_amdet.errors import AnchorError, NoTextTowerError, TowerError, UsageError
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import fetch, read_tensors
from hf_amdet.hub.files import ResolvedRepo, TowerFiles
from hf_amdet.hub.resolve import resolve
from hf_amdet.prompts import load_prompts
from hf_amdet.report import build
from hf_amdet.report.schema import (
    AnchorRecord,
    FileRecord,
    Reason,
    Report,
    RunConfig,
    TowerReport,
    Verdict,
    worst,
)


@dataclass(frozen=True)
class ScanConfig:
    """What a scan depends on besides its target.

    Attributes:
        revision: branch, tag, commit sha or refs/pr/N; also as ``org/model@revision``.
        anchor: the clean tower to compare with, a target like the suspect. Without one a scan
            is `inconclusive`.
        profile: "default", or "paper" for the published objective and gates.
        prompts: see `hf_amdet.prompts.load_prompts`; None for the embedded set.
        restarts: inversions of each objective; None for the profile's own number.
        device: a torch device; None for the one that accelerate picks.
        dtype: "auto" is bf16 where the hardware has it.
        hub: which Hub, and the token; None everywhere means what it means to the `hf` command.
    """

    revision: str | None = None
    anchor: str | None = None
    profile: Literal["default", "paper"] = "default"
    prompts: str | None = None
    seed: int = 0
    restarts: int | None = None
    device: str | None = None
    dtype: DType = "auto"
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(f"No profile {self.profile!r}; choose {' or '.join(PROFILES)}.")
        if self.dtype not in get_args(DType):
            raise UsageError(f"No dtype {self.dtype!r}; choose {' or '.join(get_args(DType))}.")
        if self.restarts is not None and not 1 <= self.restarts <= 64:
            raise UsageError(f"restarts must be 1 to 64, not {self.restarts}.")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be 0 to 2^32 - 1, not {self.seed}.")


@dataclass(frozen=True)
class ScannedTower:
    """The tensors behind a tower's report: for pictures and the recovered embedding."""

    path: str
    detection: Detection
    position: tuple[float, ...]
    """Position embeddings of the trigger's places, flattened `[k D]`."""


@dataclass(frozen=True)
class ScanResult:
    """A report and what it was made from."""

    report: Report
    towers: tuple[ScannedTower, ...]


def scan(
    target: str, config: ScanConfig | None = None, *, observer: Observer | None = None
) -> Report:
    """Scan every text tower of `target` and report.

    Args:
        target: ``org/model[@revision]`` on the Hub, or a local directory.

    Raises:
        UsageError: wrong settings, an anchor that does not fit, unreadable prompts.
        HubError: the Hub refused or did not answer.
        OutputError: the disk is full.
    """
    return run(target, config or ScanConfig(), observer=observer).report


def run(target: str, config: ScanConfig, *, observer: Observer | None = None) -> ScanResult:
    """`scan`, with the recovered triggers and surfaces beside the report; raises the same."""
    return _Scan(config, observer or Observer()).run(target)


@dataclass(frozen=True)
class _Loaded:
    """A tower in memory and what it was read from."""

    tower: ClipTower
    files: tuple[FileRecord, ...]


class _Scan:
    def __init__(self, config: ScanConfig, observer: Observer) -> None:
        self._config, self._observer = config, observer
        self._watch = Stopwatch()
        self._prompts = load_prompts(config.prompts)
        # The published method runs in fp32.
        paper = config.profile == "paper" and config.dtype == "auto"
        self._runtime = Runtime(config.device, "fp32" if paper else config.dtype)
        self._profile = _with_restarts(PROFILES[config.profile], config.restarts)
        self._anchor_repo: ResolvedRepo | None = None
        self._anchor: _Loaded | None = None
        self._scanned: list[ScannedTower] = []

    def run(self, target: str) -> ScanResult:
        with self._watch.measure("resolve"):
            self._observer.stage("resolve", 1)
            repo = resolve(target, self._config.hub, self._config.revision)
            if self._config.anchor is not None:
                # A mistyped anchor must not cost the suspect's download.
                self._anchor_repo = resolve(self._config.anchor, self._config.hub)
        entries = [
            build.without_detection(
                u.path,
                u.architecture,
                Verdict.NOT_SCANNED,
                Reason(code=u.code, message=u.message),
            )
            for u in repo.unreadable
        ]
        entries += [self._scan_tower(repo, tower) for tower in repo.towers]
        report = self._report(repo, tuple(entries))
        return ScanResult(report, tuple(self._scanned))

    def _scan_tower(self, repo: ResolvedRepo, files: TowerFiles) -> TowerReport:
        try:
            suspect = self._load(repo, files)
        except TowerError as error:
            return build.without_detection(
                files.path, files.architecture, Verdict.NOT_SCANNED, build.failure(error)
            )
        if self._anchor_repo is None:
            return build.without_detection(
                files.path,
                files.architecture,
                Verdict.INCONCLUSIVE,
                Reason(
                    code="no_anchor",
                    message="There is no clean tower to compare with. Pass --anchor with the "
                    "model that this one was fine-tuned from.",
                ),
                suspect.files,
            )
        anchor, record = self._fit_anchor(self._anchor_repo, suspect)
        if identical(suspect.tower, anchor):
            return build.without_detection(
                files.path,
                files.architecture,
                Verdict.INCONCLUSIVE,
                Reason(
                    code="identical_to_anchor",
                    message="Weights and tokenizer are those of the anchor that was given, tensor "
                    "for tensor, so there was nothing to search: it is as clean as that anchor.",
                ),
                suspect.files,
                record,
            )
        detection = self._detect(suspect.tower, anchor)
        k = detection.decisive.trigger.shape[0]
        place = [suspect.tower.position(1 + i) for i in range(k)]
        position = tuple(value for row in place for value in row.tolist())
        self._scanned.append(ScannedTower(files.path, detection, position))
        return build.scanned(files.path, files.architecture, suspect.files, record, detection)

    def _detect(self, suspect: ClipTower, anchor: ClipTower) -> Detection:
        detection = detect(
            suspect,
            anchor,
            self._prompts.prompts,
            self._profile,
            seed=self._config.seed,
            runtime=self._runtime,
            observer=self._observer,
        )
        for stage, seconds in detection.timings.items():
            self._watch.seconds[stage] = self._watch.seconds.get(stage, 0.0) + seconds
        return detection

    def _load(self, repo: ResolvedRepo, files: TowerFiles) -> _Loaded:
        hub = self._config.hub
        with self._watch.measure("download"):
            # Header against config first: a misfit costs no download.
            tensors = read_tensors(repo, files, hub)
            shapes = {name: info.shape for name, info in tensors.items()}
            check_shapes(shapes, expected_shapes(files.config, files.architecture))
        with tempfile.TemporaryDirectory(prefix="hf-amdet-") as folder:
            with self._watch.measure("download"):
                self._observer.stage("download", 0)
                fetched = fetch(repo, files, Path(folder) / "tower", hub, self._observer.update)
            with self._watch.measure("load"):
                self._observer.stage("load", 1)
                tower = load_tower(
                    fetched.directory,
                    fetched.weights,
                    files.config,
                    files.architecture,
                    self._runtime.device,
                )
        return _Loaded(tower, fetched.files)

    def _fit_anchor(self, repo: ResolvedRepo, suspect: _Loaded) -> tuple[ClipTower, AnchorRecord]:
        """The anchor, loaded once a scan, and its record for this suspect."""
        if self._anchor is None:
            self._anchor = self._load_anchor(repo)
        anchor = self._anchor
        check_fit(suspect.tower, anchor.tower, repo.target)
        record = AnchorRecord(
            name=repo.target,
            repo_id=repo.repo_id,
            commit_sha=repo.commit_sha,
            chosen_by="given",
            distance=distance(suspect.tower, anchor.tower),
            files=anchor.files,
        )
        return anchor.tower, record

    def _load_anchor(self, repo: ResolvedRepo) -> _Loaded:
        """
        Raises:
            AnchorError: it holds no text tower, or one that cannot be read.
        """
        try:
            if not repo.towers:
                raise NoTextTowerError(
                    repo.unreadable[0].message if repo.unreadable else "It holds no text tower."
                )
            return self._load(repo, repo.towers[0])
        except TowerError as error:
            raise AnchorError(f"The anchor {repo.target} cannot be used. {error}") from error

    def _report(self, repo: ResolvedRepo, towers: tuple[TowerReport, ...]) -> Report:
        reasons: tuple[Reason, ...] = ()
        if not towers:
            reasons = (
                Reason(
                    code=NoTextTowerError.code,
                    message=f"{repo.target} holds no text tower that hf-amdet can scan.",
                ),
            )
        config = self._config
        return Report(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            target=repo.target,
            repo_id=repo.repo_id,
            commit_sha=repo.commit_sha,
            verdict=worst([tower.verdict for tower in towers]),
            reasons=reasons,
            towers=towers,
            out_of_scope=tuple(
                Reason(code="out_of_scope", message=part.message) for part in repo.out_of_scope
            ),
            environment=build.environment(self._runtime),
            config=RunConfig(
                profile=self._profile.name,
                seed=config.seed,
                restarts=self._profile.inversions[0].restarts,
                prompts=self._prompts.source,
                prompts_sha256=self._prompts.sha256,
                anchor=None if self._anchor_repo is None else _pinned(self._anchor_repo),
                settings=build.settings(self._profile),
            ),
            timings={stage: round(s, 3) for stage, s in self._watch.seconds.items()},
            not_covered=build.NOT_COVERED,
        )


def _pinned(repo: ResolvedRepo) -> str:
    """A target that means the same tomorrow."""
    return repo.target if repo.commit_sha is None else f"{repo.repo_id}@{repo.commit_sha}"


def _with_restarts(profile: Profile, restarts: int | None) -> Profile:
    if restarts is None:
        return profile
    inversions = tuple(replace(i, restarts=restarts) for i in profile.inversions)
    return replace(profile, inversions=inversions)
