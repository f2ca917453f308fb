"""Which clean tower a suspect is compared with: the one that is given, else the nearest known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.encoders.anchors import check_fit, distance
from hf_amdet.encoders.registry import FAR, Known, known_anchors, misfit, shape_of
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import (
    AnchorError,
    HubError,
    HubUnavailableError,
    MalformedFileError,
    TowerError,
    UsageError,
)
from hf_amdet.hub.basemodel import base_models
from hf_amdet.hub.client import Hub, is_offline
from hf_amdet.hub.files import ResolvedRepo, TowerFiles
from hf_amdet.hub.resolve import parse_target, resolve, resolve_repo
from hf_amdet.pipeline.towers import Loaded, Loader, Suspect, all_suspects
from hf_amdet.report.schema import AnchorRecord

ChosenBy = Literal["given", "registry", "base_model"]


@dataclass(frozen=True)
class Candidate:
    """An anchor that was considered.

    Attributes:
        distance: to the suspect; None where it was not loaded.
        misfit: why it cannot be compared with; None where it could.
        fits: whether it has the suspect's shape.
    """

    target: str
    path: str
    chosen_by: ChosenBy
    provenance: str
    distance: float | None = None
    misfit: str | None = None
    fits: bool = True


@dataclass(frozen=True)
class Choice:
    """The anchor of one suspect, or why there is none.

    Attributes:
        vouched: whether the anchor may support a clean answer.
        considered: every candidate, the chosen one among them.
    """

    anchor: ModelTower | None
    record: AnchorRecord | None
    vouched: bool
    considered: tuple[Candidate, ...]


@dataclass(frozen=True)
class _Offer:
    """A tower that could be the anchor."""

    candidate: Candidate
    repo: ResolvedRepo
    files: TowerFiles
    vouched: bool


class AnchorChooser:
    """Chooses an anchor for one suspect after the other; keeps the last one in memory."""

    def __init__(self, target: str | None, hub: Hub, loader: Loader) -> None:
        """
        Args:
            target: the anchor that the user gave; None for the registry.

        Raises:
            UsageError, HubError: the target that was given cannot be resolved.
        """
        self._hub, self._loader = hub, loader
        self.given = None if target is None else resolve(target, hub)
        self._known: tuple[Known, ...] | None = None
        self._kept: tuple[object, Loaded] | None = None

    def refuse_misfit(self, towers: Sequence[TowerFiles]) -> None:
        """Refuse an anchor that fits none of a target's towers, before anything is downloaded.

        Raises:
            AnchorError: says what differs, or why the anchor cannot be read.
        """
        if self.given is None or not towers:
            return
        offers = self._given_towers()
        reasons = []
        for tower in towers:
            reasons += [_misfit(tower, offer) for offer in offers]
        if None not in reasons:
            raise AnchorError(
                f"The anchor {self.given.target} does not fit: {reasons[0]}. Give the clean model "
                "that this one was fine-tuned from."
            )

    def choose(self, suspect: Suspect, loaded: Loaded, target: ResolvedRepo) -> Choice:
        """The anchor for a suspect that is in memory.

        Raises:
            AnchorError: the given anchor cannot be read.
            HubError: the Hub did not answer.
        """
        files = suspect.files
        offers = self._from_given(files)
        if offers:
            return self._nearest(offers[:1], loaded, (), limit=None)
        offers, considered = self._from_registry(files)
        choice = self._nearest(offers, loaded, considered, limit=FAR)
        if choice.anchor is None:
            owners = self._from_card(files, target)
            choice = self._nearest(owners, loaded, choice.considered, limit=FAR)
        return choice

    def _given_towers(self) -> tuple[TowerFiles, ...]:
        assert self.given is not None
        if not self.given.towers:
            unreadable = self.given.unreadable
            why = unreadable[0].message if unreadable else "It holds no text tower."
            raise AnchorError(f"The anchor {self.given.target} cannot be used. {why}")
        return self.given.towers

    def _from_given(self, files: TowerFiles) -> list[_Offer]:
        """The towers of the given anchor that fit, the one in the same place first."""
        if self.given is None:
            return []
        fitting = [offer for offer in self._given_towers() if _misfit(files, offer) is None]
        fitting.sort(key=lambda offer: offer.path != files.path)
        return [
            _Offer(Candidate(self.given.target, o.path, "given", "given"), self.given, o, True)
            for o in fitting
        ]

    def _from_registry(self, files: TowerFiles) -> tuple[list[_Offer], tuple[Candidate, ...]]:
        if self._known is None:
            self._known = known_anchors()
        offers, others = [], []
        for known in self._known:
            candidate = Candidate(known.target, known.path, "registry", known.provenance)
            why = known.misfit(files.config, files.architecture)
            fits = why is None
            if fits:
                offer = self._offer(candidate, known.vouched, partial(_is_pinned, known))
                if isinstance(offer, _Offer):
                    offers.append(offer)
                    continue
                why = offer
            others.append(replace(candidate, misfit=why, fits=fits))
        return offers, tuple(others)

    def _from_card(self, files: TowerFiles, target: ResolvedRepo) -> list[_Offer]:
        """The model that the card names: its owner's word, perhaps the attacker's."""

        def fits(tower: TowerFiles) -> bool:
            return _misfit(files, tower) is None

        offers = []
        for name in base_models(target, self._hub)[:1]:
            candidate = Candidate(name, "", "base_model", "named by the card")
            offer = self._offer(candidate, False, fits)
            if isinstance(offer, _Offer):
                offers.append(offer)
        return offers

    def _offer(
        self, candidate: Candidate, vouched: bool, fits: Callable[[TowerFiles], bool]
    ) -> _Offer | str:
        """The tower of a candidate's repo that is meant, or why there is none."""
        try:
            repo = resolve_repo(*parse_target(candidate.target), self._hub)
        except (HubError, UsageError) as error:
            # Offline, what is not in the cache is just not there.
            if isinstance(error, HubUnavailableError) and not is_offline():
                raise
            return str(error)
        for files in repo.towers:
            if fits(files):
                return _Offer(replace(candidate, path=files.path), repo, files, vouched)
        if repo.unreadable:
            return repo.unreadable[0].message
        return "there is no text tower of that shape"

    def _nearest(
        self,
        offers: Sequence[_Offer],
        suspect: Loaded,
        considered: tuple[Candidate, ...],
        limit: float | None,
    ) -> Choice:
        best: tuple[float, _Offer, Loaded] | None = None
        for offer in offers:
            try:
                anchor = self._load(offer)
                check_fit(suspect.tower, anchor.tower, offer.repo.target)
            except AnchorError as error:
                # A registered repo whose config is not what the registry says of it.
                if limit is None:
                    raise
                considered += (replace(offer.candidate, misfit=str(error)),)
                continue
            except TowerError as error:
                if limit is None:
                    raise AnchorError(
                        f"The anchor {offer.repo.target} cannot be used. {error}"
                    ) from error
                considered += (replace(offer.candidate, misfit=str(error)),)
                continue
            apart = distance(suspect.tower, anchor.tower)
            considered += (replace(offer.candidate, distance=apart),)
            if best is None or apart < best[0]:
                best = (apart, offer, anchor)
        if best is None or (limit is not None and not best[0] <= limit):
            return Choice(None, None, False, considered)
        apart, offer, anchor = best
        self._kept = (_key(offer), anchor)
        record = AnchorRecord(
            name=offer.repo.target,
            repo_id=offer.repo.repo_id,
            commit_sha=offer.repo.commit_sha,
            path=offer.files.path,
            chosen_by=offer.candidate.chosen_by,
            distance=apart,
            files=anchor.files,
        )
        return Choice(anchor.tower, record, offer.vouched, considered)

    def _load(self, offer: _Offer) -> Loaded:
        key = _key(offer)
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        return self._loader.load(Suspect(offer.files.path, offer.files, offer.repo))


def choices(
    target: str, hub: Hub, *, revision: str | None = None, observer: Observer | None = None
) -> Iterator[tuple[str, Choice | TowerError]]:
    """For every tower of a target its path, and its anchor from the registry or why it has none.

    Raises:
        UsageError: no target, contradicting revisions.
        HubError: the Hub refused or did not answer.
    """
    repo = resolve(target, hub, revision)
    loader = Loader(hub, torch.device("cpu"), Stopwatch(), observer or Observer())
    chooser = AnchorChooser(None, hub, loader)
    for unreadable in repo.unreadable:
        yield unreadable.path, TowerError(unreadable.message)
    for suspect in all_suspects(repo, hub):
        if isinstance(suspect, Suspect):
            try:
                yield suspect.path, chooser.choose(suspect, loader.load(suspect), repo)
            except TowerError as error:
                yield suspect.path, error
        else:
            yield suspect


def _misfit(suspect: TowerFiles, anchor: TowerFiles) -> str | None:
    """Why two towers cannot be compared, by their configs; None where they can."""
    try:
        return misfit(
            shape_of(suspect.config, suspect.architecture),
            shape_of(anchor.config, anchor.architecture),
        )
    except MalformedFileError as error:
        return str(error)


def _key(offer: _Offer) -> object:
    return offer.repo.target, offer.repo.commit_sha, offer.files.path


def _is_pinned(known: Known, files: TowerFiles) -> bool:
    """Whether a tower is the one that the registry means, by place and digest."""
    digests = {file.sha256 for file in files.weights}
    return files.path == known.path and (known.sha256 is None or known.sha256 in digests)
