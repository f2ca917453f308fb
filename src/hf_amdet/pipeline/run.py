"""The composition root: a target in, a report out."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from hf_amdet.detection.calibration import NullDistribution, settings_digest
from hf_amdet.detection.config import PROFILES, Profile
from hf_amdet.detection.detect import Detection, detect
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import DType, Runtime
from hf_amdet.detection.significance import weigh
from hf_amdet.encoders.anchors import identical, tokenizer_of
from hf_amdet.encoders.fingerprint import encoder_digest, fingerprint
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import NoTextTowerError, TowerError, UsageError
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.resolve import resolve
from hf_amdet.pipeline import reasons
from hf_amdet.pipeline.anchors import AnchorChooser, Choice
from hf_amdet.pipeline.nulls import read_null
from hf_amdet.pipeline.towers import Loaded, Loader, Suspect, all_suspects
from hf_amdet.prompts import load_prompts
from hf_amdet.report import build
from hf_amdet.report.limits import NOT_COVERED
from hf_amdet.report.schema import (
    AnchorRecord,
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
        anchor: the clean tower to compare with, a target like the suspect; None for the nearest
            of those that hf-amdet knows. Without one a scan is `inconclusive`.
        profile: "default", or "paper" for the published objective and gates.
        prompts: see `hf_amdet.prompts.load_prompts`; None for the embedded set.
        restarts: inversions of each objective; None for the profile's own number.
        calibrations: files that `hf-amdet calibrate` wrote; each serves the towers whose anchor it
            was made from.
        prevalence: assumed share of backdoored towers, for predictive values.
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
    calibrations: tuple[str, ...] = ()
    prevalence: float = 0.01
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
        if not 0 < self.prevalence < 1:
            raise UsageError(f"prevalence must lie between 0 and 1, not {self.prevalence:g}.")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be 0 to 2^32 - 1, not {self.seed}.")


@dataclass(frozen=True)
class ScannedTower:
    """The tensors behind a tower's report: for pictures and the recovered embedding."""

    path: str
    family: str
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
        target: ``org/model[@revision]`` on the Hub, a local directory or a safetensors file.

    Raises:
        UsageError: wrong settings, an anchor that does not fit, unreadable prompts.
        HubError: the Hub refused or did not answer.
        OutputError: the disk is full.
    """
    return run(target, config or ScanConfig(), observer=observer).report


def run(target: str, config: ScanConfig, *, observer: Observer | None = None) -> ScanResult:
    """`scan`, with the recovered triggers and surfaces beside the report; raises the same."""
    return _Scan(config, observer or Observer()).run(target)


class _Scan:
    def __init__(self, config: ScanConfig, observer: Observer) -> None:
        self._config, self._observer = config, observer
        self._watch = Stopwatch()
        self._prompts = load_prompts(config.prompts)
        # The published method runs in fp32.
        paper = config.profile == "paper" and config.dtype == "auto"
        self._runtime = Runtime(config.device, "fp32" if paper else config.dtype)
        self._profile = _with_restarts(PROFILES[config.profile], config.restarts)
        self._nulls = [read_null(file) for file in config.calibrations]
        self._loader = Loader(config.hub, self._runtime.device, self._watch, observer)
        self._scanned: list[ScannedTower] = []
        self._known: dict[str, tuple[TowerReport, object]] = {}
        """The entries of towers that were looked at, by fingerprint, with their tokenizers."""

    def run(self, target: str) -> ScanResult:
        with self._watch.measure("resolve"):
            self._observer.stage("resolve", 1)
            repo = resolve(target, self._config.hub, self._config.revision)
            # A mistyped anchor must not cost the suspect's download.
            self._anchors = AnchorChooser(self._config.anchor, self._config.hub, self._loader)
            self._anchors.refuse_misfit(repo.towers)
        entries = [_not_scanned(u.path, u.architecture, u.code, u.message) for u in repo.unreadable]
        suspects = []
        for found in all_suspects(repo, self._config.hub):
            if isinstance(found, Suspect):
                suspects.append(found)
            else:
                path, error = found
                entries.append(_not_scanned(path, None, error.code, str(error)))
        self._several = len(suspects) > 1
        entries += [self._scan_tower(repo, suspect) for suspect in suspects]
        report = self._report(repo, tuple(entries))
        return ScanResult(report, tuple(self._scanned))

    def _scan_tower(self, repo: ResolvedRepo, suspect: Suspect) -> TowerReport:
        architecture = suspect.files.architecture
        try:
            loaded = self._loader.load(suspect)
            # A tower with an adapter merged in stands for itself: its base has to be looked at.
            comparable = self._several and loaded.base is None
            if comparable:
                mark, tokenizer = fingerprint(loaded.tower), tokenizer_of(loaded.tower)
                known = self._known.get(mark)
                if known is not None and tokenizer in (None, known[1]):
                    return build.as_another(_place(suspect, loaded), known[0])
            entry = self._compare(repo, suspect, loaded)
        except TowerError as error:
            return _not_scanned(suspect.path, architecture, error.code, str(error))
        if comparable:
            self._known.setdefault(mark, (entry, tokenizer))
        return entry

    def _compare(self, repo: ResolvedRepo, suspect: Suspect, loaded: Loaded) -> TowerReport:
        """The entry of a tower that is in memory.

        Raises:
            MalformedFileError: it has no tokenizer, and the anchor none that fits.
        """
        choice = self._anchors.choose(suspect, loaded, repo)
        place = _place(suspect, loaded)
        if choice.anchor is None or choice.record is None:
            reason = Reason(code="no_anchor", message=reasons.why_no_anchor(choice))
            return build.without_detection(place, Verdict.INCONCLUSIVE, reason)
        tower, anchor = loaded.tower, choice.anchor
        notes: tuple[Reason, ...] = ()
        if not tower.has_tokenizer:
            tower.borrow_tokenizer(anchor)
            notes = (reasons.BORROWED,)
        doubt = None
        if not anchor.has_tokenizer:
            # On a copy: the next tower brings its own.
            anchor = copy(anchor)
            anchor.borrow_tokenizer(tower)
            doubt = reasons.no_tokenizer_to_compare(choice.record.name)
        if identical(tower, anchor):
            entry = _identical(place, choice)
        else:
            entry = self._searched(place, choice.record, tower, anchor, notes)
        if doubt is not None:
            entry = _withheld(entry, doubt)
        if not choice.vouched:
            return _withheld(entry, reasons.not_vouched(choice.record))
        if loaded.base is not None and loaded.base_weights != encoder_digest(
            anchor.model.state_dict()
        ):
            return _withheld(entry, reasons.other_base(loaded.base.repo_id, choice.record.name))
        return entry

    def _searched(
        self,
        place: build.Place,
        record: AnchorRecord,
        tower: ModelTower,
        anchor: ModelTower,
        notes: tuple[Reason, ...],
    ) -> TowerReport:
        """The entry of a tower that differs from its anchor.

        Raises:
            PromptsError: too few prompts.
        """
        detection = self._detect(tower, anchor)
        significance = None
        null = self._null_of(anchor)
        if null is not None:
            conclusion, significance = weigh(detection.conclusion, null, self._config.prevalence)
            detection = replace(detection, conclusion=conclusion)
        elif self._nulls:
            notes = (*notes, reasons.not_calibrated(record.name))
        k = detection.decisive.trigger.shape[0]
        rows = [tower.position(k + i) for i in range(k)]
        position = tuple(value for row in rows for value in row.tolist())
        self._scanned.append(ScannedTower(place.path, tower.family, detection, position))
        return build.scanned(place, record, detection, significance, notes)

    def _null_of(self, anchor: ModelTower) -> NullDistribution | None:
        """The calibration that was made from `anchor`, as this scan would have made it."""
        mine = (
            encoder_digest(anchor.model.state_dict()),
            settings_digest(self._profile),
            self._prompts.sha256,
            self._runtime.dtype,
        )
        for null in self._nulls:
            if (null.anchor_digest, null.settings_sha256, null.prompts_sha256, null.dtype) == mine:
                return null
        return None

    def _detect(self, suspect: ModelTower, anchor: ModelTower) -> Detection:
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
                anchor=None if self._anchors.given is None else _pinned(self._anchors.given),
                settings=build.settings(self._profile),
            ),
            timings={stage: round(s, 3) for stage, s in self._watch.seconds.items()},
            not_covered=NOT_COVERED,
        )


def _pinned(repo: ResolvedRepo) -> str:
    """A target that means the same tomorrow."""
    return repo.target if repo.commit_sha is None else f"{repo.repo_id}@{repo.commit_sha}"


def _with_restarts(profile: Profile, restarts: int | None) -> Profile:
    if restarts is None:
        return profile
    inversions = tuple(replace(i, restarts=restarts) for i in profile.inversions)
    return replace(profile, inversions=inversions)


def _place(suspect: Suspect, loaded: Loaded) -> build.Place:
    return build.Place(suspect.path, suspect.files.architecture, loaded.files, loaded.base)


def _not_scanned(path: str, architecture: str | None, code: str, message: str) -> TowerReport:
    reason = Reason(code=code, message=message)
    return build.without_detection(build.Place(path, architecture), Verdict.NOT_SCANNED, reason)


def _identical(place: build.Place, choice: Choice) -> TowerReport:
    """The entry of a tower that is its own anchor: nothing was searched."""
    assert choice.record is not None
    official = choice.record.chosen_by == "registry" and choice.vouched
    name = choice.record.name
    message = (
        f"Weights and tokenizer are those of {name}, tensor for tensor: this is a copy of a model "
        "that hf-amdet takes as clean, and there was nothing to search."
        if official
        else "Weights and tokenizer are those of the anchor, tensor for tensor, so there was "
        f"nothing to search: it is as clean as {name}."
    )
    return build.without_detection(
        place,
        Verdict.NO_EVIDENCE if official else Verdict.INCONCLUSIVE,
        Reason(code="identical_to_anchor", message=message),
        choice.record,
    )


def _withheld(entry: TowerReport, reason: Reason) -> TowerReport:
    """The entry with a clean answer taken back."""
    if entry.verdict not in (Verdict.NO_EVIDENCE, Verdict.NATURAL):
        return entry
    reasons = (*entry.reasons, reason)
    return entry.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reasons": reasons})
