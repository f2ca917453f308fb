"""A null distribution of the scanner's score, from a clean model alone: `hf-amdet calibrate`."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

from hf_amdet._version import __version__
from hf_amdet.detection.calibration import (
    VERSION,
    NullDistribution,
    NullTower,
    dump,
    settings_digest,
    short,
)
from hf_amdet.detection.config import PROFILES
from hf_amdet.detection.detect import detect
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.encoders.fingerprint import encoder_digest
from hf_amdet.encoders.variants import drift, make_variant
from hf_amdet.errors import NoTextTowerError, OutputError, TowerError, UsageError
from hf_amdet.hub.files import ResolvedRepo, TowerFiles
from hf_amdet.hub.resolve import resolve
from hf_amdet.pipeline.nulls import read_null
from hf_amdet.pipeline.run import ScanConfig
from hf_amdet.pipeline.towers import Loader, Suspect
from hf_amdet.prompts import load_prompts
from hf_amdet.report.files import write_atomically

TOWERS = 99
"""Null towers with which a p-value can be 0.01."""
MOST_TOWERS = 10_000


def calibrate(
    target: str,
    config: ScanConfig,
    output: Path,
    *,
    tower: str | None = None,
    towers: int = TOWERS,
    observer: Observer | None = None,
) -> NullDistribution:
    """Scan clean variants of `target` and write their scores to `output`.

    What is done is kept in ``OUTPUT.partial``, from which a second call goes on to the same result.

    Args:
        target: the clean model, as in `hf_amdet.scan`; its settings are those of `config`, which
            names no anchor and no restarts of its own.
        tower: the path of the text tower that is meant, of several.
        towers: how many variants, 1 to `MOST_TOWERS`.

    Raises:
        UsageError: wrong settings, several towers and no choice, an `output` that holds something
            else, or a partial file of other settings.
        TowerError: the anchor cannot be read, or a score is not finite.
        HubError: the Hub refused or did not answer.
        OutputError: the files cannot be written.
    """
    if config.anchor is not None or config.restarts is not None:
        raise UsageError("A calibration is of the profile as it is: give no anchor or restarts.")
    if not 1 <= towers <= MOST_TOWERS:
        raise UsageError(f"A calibration takes 1 to {MOST_TOWERS} towers, not {towers}.")
    observer = observer or Observer()
    if not output.parent.is_dir():
        raise OutputError(f"There is no folder {output.parent}; make it, or choose another one.")
    partial = output.with_name(f"{output.name}.partial")
    _standing(output)
    before = _standing(partial)
    run = _Calibration(target, config, tower, observer)
    null = run.empty if before is None else _continued(before, run.empty, partial)
    null = replace(null, towers=null.towers[:towers])
    observer.stage("null towers", towers)
    observer.update(len(null.towers), towers)
    while len(null.towers) < towers:
        null = replace(null, towers=(*null.towers, run.scan(len(null.towers))))
        write_atomically(partial, dump(null).encode())
        observer.update(len(null.towers), towers)
    write_atomically(output, dump(null).encode())
    partial.unlink(missing_ok=True)
    return null


class _Calibration:
    """The anchor in memory, and the scan of one variant of it after the other."""

    def __init__(
        self, target: str, config: ScanConfig, path: str | None, observer: Observer
    ) -> None:
        self._config = config
        self._profile = PROFILES[config.profile]
        self._prompts = load_prompts(config.prompts)
        # As a scan does: the published method runs in fp32.
        paper = config.profile == "paper" and config.dtype == "auto"
        self._runtime = Runtime(config.device, "fp32" if paper else config.dtype)
        observer.stage("resolve", 1)
        repo = resolve(target, config.hub, config.revision)
        files = _chosen(repo, path)
        loader = Loader(config.hub, self._runtime.device, Stopwatch(), observer)
        self._anchor = loader.load(Suspect(files.path, files, repo)).tower
        self.empty = self._empty(repo.target)

    def _empty(self, name: str) -> NullDistribution:
        """The distribution before the first tower."""
        return NullDistribution(
            version=VERSION,
            family=self._anchor.family,
            anchor=name,
            anchor_digest=encoder_digest(self._anchor.model.state_dict()),
            profile=self._profile.name,
            settings_sha256=settings_digest(self._profile),
            prompts_sha256=self._prompts.sha256,
            dtype=self._runtime.dtype,
            seed=self._config.seed,
            tool=__version__,
            towers=(),
        )

    def scan(self, number: int) -> NullTower:
        """Make and scan a variant; the same for the same number.

        Raises:
            TowerError: its score is not finite.
            PromptsError: too few prompts.
        """
        prompts = self._prompts.prompts
        # The scan's own draws vary with the variant's: a suspect may be scanned with any seed.
        seed = self._config.seed * MOST_TOWERS + number
        variant = make_variant(self._anchor, prompts, seed)
        detection = detect(
            variant.tower, self._anchor, prompts, self._profile, seed=seed, runtime=self._runtime
        )
        score = detection.conclusion.score
        if not math.isfinite(score):
            raise TowerError(
                f"The score of null tower {number} ({variant.kind}, strength "
                f"{variant.strength:.4g}) of {self.empty.anchor} is not finite: its features "
                f"overflow in {self._runtime.dtype}. Use --dtype fp32, or another anchor."
            )
        away = drift(variant.tower, self._anchor, prompts)
        return NullTower(variant.kind, short(variant.strength), short(away), short(score))


def _chosen(repo: ResolvedRepo, path: str | None) -> TowerFiles:
    """The one text tower that is meant."""
    if not repo.towers:
        why = repo.unreadable[0].message if repo.unreadable else "It holds no text tower."
        raise NoTextTowerError(f"{repo.target} cannot be calibrated. {why}")
    paths = ", ".join(repr(files.path) for files in repo.towers)
    if path is None and len(repo.towers) > 1:
        raise UsageError(
            f"{repo.target} holds several text towers: {paths}. Choose one with --tower PATH."
        )
    for files in repo.towers:
        if path in (None, files.path):
            return files
    raise UsageError(f"{repo.target} holds no text tower {path!r}; there is {paths}.")


def _standing(path: Path) -> NullDistribution | None:
    """The calibration in a file; None where there is no file.

    Raises:
        UsageError: something else is there, which must not be written over.
    """
    if not path.exists():
        return None
    try:
        return read_null(path)
    except UsageError as error:
        raise UsageError(f"{path} is not written over; choose another file. {error}") from error


def _continued(before: NullDistribution, now: NullDistribution, path: Path) -> NullDistribution:
    """What was done before, if it was done alike.

    Raises:
        UsageError: names what differs.
    """
    for field in fields(now):
        theirs, ours = getattr(before, field.name), getattr(now, field.name)
        if field.name != "towers" and theirs != ours:
            raise UsageError(
                f"{path} was begun with {field.name} {theirs}, this is {ours}. Remove that file, "
                "or go on with what it was begun with."
            )
    return before
