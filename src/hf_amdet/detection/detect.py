"""Suspect and anchor in, `Detection` out: the profiles put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_amdet.detection.config import InversionSettings, PaperGates, Profile
from hf_amdet.detection.inversion import Inversion, Step, TriggerCandidates
from hf_amdet.detection.judges import Measure, Responses, measure, paper_shares, respond
from hf_amdet.detection.landscape import Landscape, survey
from hf_amdet.detection.objective import consistency
from hf_amdet.detection.probes import Probes, make_probes
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.detection.verdict import (
    Conclusion,
    conclude_contrast,
    conclude_paper,
    on_foreign_tower,
    without_room,
)
from hf_amdet.encoders.base import TextTower


@dataclass(frozen=True)
class Candidate:
    """One restart's trigger and what the judges measured of it.

    Attributes:
        trigger: `[k, D]`, in embedding-layer space (position embedding included).
    """

    objective: str
    restart: int
    loss: float
    steps: int
    trigger: Tensor = field(repr=False)
    statistics: dict[str, Measure]


@dataclass(frozen=True)
class Detection:
    """All that was found in one tower.

    Attributes:
        statistics: of the decisive candidate, its landscape included.
        curves: by objective, the losses `[S, R]` of every step.
    """

    conclusion: Conclusion
    candidates: tuple[Candidate, ...]
    statistics: dict[str, Measure]
    curves: dict[str, Tensor] = field(repr=False)
    landscape: Landscape | None = field(repr=False)
    timings: dict[str, float]

    @property
    def decisive(self) -> Candidate:
        return self.candidates[self.conclusion.decisive]


def detect(
    suspect: TextTower,
    anchor: TextTower,
    prompts: Sequence[str],
    profile: Profile,
    *,
    seed: int,
    runtime: Runtime,
    observer: Observer | None = None,
) -> Detection:
    """Run `profile` on one suspect.

    Args:
        prompts: ordinary prompts; the profile's number of them is drawn by `seed`.

    Raises:
        PromptsError: too few prompts.
    """
    run = _Run(suspect, anchor, profile, runtime, observer or Observer(), seed)
    with run.watch.measure("probes"):
        probes = run.probes(prompts)
    if profile.gates is not None:
        return _detect_paper(run, probes, profile.gates)
    return _detect_contrast(run, probes)


@dataclass
class _Run:
    """What every stage of one detection shares."""

    suspect: TextTower
    anchor: TextTower
    profile: Profile
    runtime: Runtime
    observer: Observer
    seed: int
    watch: Stopwatch = field(default_factory=Stopwatch)

    def generator(self, purpose: int) -> torch.Generator:
        """Independent randomness for each purpose, so that one more draw here moves none there."""
        return torch.Generator().manual_seed(self.seed * 1_000 + purpose)

    def probes(self, prompts: Sequence[str]) -> Probes:
        profile = self.profile
        return make_probes(
            self.suspect,
            prompts,
            count=profile.prompts,
            held_out=profile.held_out,
            positions=profile.positions,
            trigger_length=max(i.trigger_length for i in profile.inversions),
            generator=self.generator(0),
        )

    def inversion(self, probes: Probes, settings: InversionSettings, purpose: int) -> Inversion:
        return Inversion(
            self.suspect,
            self.anchor,
            probes.optimise,
            settings,
            self.runtime,
            self.generator(purpose),
        )

    def respond(self, probes: Probes, triggers: Tensor) -> tuple[Responses, ...]:
        return respond(self.suspect, self.anchor, probes.held_out, triggers, self.runtime)

    def landscape(self, probes: Probes, trigger: Tensor) -> Landscape:
        settings = self.profile.landscape
        with self.watch.measure("landscape"):
            self.observer.stage("landscape", 0)
            return survey(
                self.suspect,
                self.anchor,
                probes.held_out,
                trigger,
                settings,
                self.runtime,
                self.generator(900),
            )


def _detect_contrast(run: _Run, probes: Probes) -> Detection:
    thresholds = run.profile.thresholds
    assert thresholds is not None
    found: list[TriggerCandidates] = []
    for number, settings in enumerate(run.profile.inversions):
        run.observer.stage(f"inversion ({settings.objective.name})", settings.steps)
        with run.watch.measure("inversion"):
            inversion = run.inversion(probes, settings, 100 + number)
            for step in inversion:
                run.observer.update(step.index + 1, settings.steps, step.losses.min().item())
            found.append(inversion.candidates)
    candidates = _judge(run, probes, found)
    conclusion = conclude_contrast([c.statistics for c in candidates], thresholds)
    ordinary = _ordinary_consistency(run, probes)
    conclusion = without_room(conclusion, ordinary.value, thresholds)
    decisive = candidates[conclusion.decisive]
    landscape = run.landscape(probes, decisive.trigger)
    statistics = {
        **decisive.statistics,
        "ordinary_consistency": ordinary,
        "positive_curvature_share": _curvature(landscape),
    }
    curves = {c.objective: c.curve for c in found}
    return Detection(conclusion, candidates, statistics, curves, landscape, run.watch.seconds)


def _judge(run: _Run, probes: Probes, found: Sequence[TriggerCandidates]) -> tuple[Candidate, ...]:
    candidates = []
    with run.watch.measure("judges"):
        for number, inversion in enumerate(found):
            run.observer.stage(f"judges ({inversion.objective})", 0)
            answers = run.respond(probes, inversion.triggers)
            for restart, responses in enumerate(answers):
                candidates.append(
                    Candidate(
                        inversion.objective,
                        restart,
                        inversion.losses[restart].item(),
                        len(inversion.curve),
                        inversion.triggers[restart],
                        measure(responses, run.generator(500 + number)),
                    )
                )
    return tuple(candidates)


@torch.no_grad()
def _ordinary_consistency(run: _Run, probes: Probes) -> Measure:
    """How alike the held-out prompts are to the anchor without any trigger."""
    tokens = probes.held_out

    def work(part: slice) -> Tensor:
        with run.runtime.precision():
            states = run.suspect.embed(tokens.ids[part])
            return run.anchor.encode(states, tokens.ends[part]).pooled

    with run.watch.measure("judges"):
        pooled = [result for _, result in run.runtime.in_batches(work, len(tokens))]
    value = consistency(torch.cat(pooled)).item()
    return Measure(value, None, None, "squared norm", len(tokens))


def _detect_paper(run: _Run, probes: Probes, gates: PaperGates) -> Detection:
    (settings,) = run.profile.inversions
    check = _PaperCheck(run, probes, gates)
    inversion = run.inversion(probes, settings, 100)
    run.observer.stage("inversion (published)", settings.steps)
    for step in _timed(inversion, run.watch):
        run.observer.update(step.index + 1, settings.steps, step.running.min().item())
        # As published: the running mean of all steps, looked at every second step.
        if step.index % gates.every == 0:
            if check(step):
                break
            if step.running.min() < gates.epoch_end:
                inversion.end_epoch()
    found = inversion.candidates
    if check.trigger is not None:
        # What the gates looked at last and what the statistics describe must be one trigger.
        found.triggers[check.restart] = check.trigger
    candidates = _judge(run, probes, [found])
    running = found.curve.mean(dim=0).min().item()
    conclusion = conclude_paper(
        check.shares, check.positive_share, running, gates, run.profile.landscape
    )
    if (run.suspect.width, run.suspect.context) != (gates.width, gates.context):
        conclusion = on_foreign_tower(conclusion, gates)
    conclusion = replace(conclusion, decisive=check.restart)
    statistics = {**candidates[check.restart].statistics, **check.shares}
    statistics["running_loss"] = Measure(running, None, None, "loss", 1)
    if check.positive_share is not None:
        statistics["positive_curvature_share"] = check.positive_share
    curves = {found.objective: found.curve}
    return Detection(conclusion, candidates, statistics, curves, check.landscape, run.watch.seconds)


def _timed(inversion: Inversion, watch: Stopwatch) -> Iterator[Step]:
    """The steps of `inversion`, with only the time inside it measured."""
    steps = iter(inversion)
    while True:
        with watch.measure("inversion"):
            step = next(steps, None)
        if step is None:
            return
        yield step


class _PaperCheck:
    """The published gates 1 to 4 on the held-out prompts, cheapest first."""

    def __init__(self, run: _Run, probes: Probes, gates: PaperGates) -> None:
        self._run, self._probes, self._gates = run, probes, gates
        self.restart = 0
        self.trigger: Tensor | None = None
        self.shares: dict[str, Measure] = {}
        self.positive_share: Measure | None = None
        self.landscape: Landscape | None = None

    def __call__(self, step: Step) -> bool:
        """Whether a restart passes all gates; keeps what the last check measured."""
        gates = self._gates
        for restart in (step.running < gates.running_loss).nonzero().flatten().tolist():
            trigger = step.triggers[restart].clone()
            with self._run.watch.measure("judges"):
                (responses,) = self._run.respond(self._probes, trigger.unsqueeze(0))
            self.restart, self.trigger = restart, trigger
            self.shares = paper_shares(responses, gates)
            self.positive_share = self.landscape = None
            if not self._shares_pass():
                continue
            self.landscape = self._run.landscape(self._probes, trigger)
            self.positive_share = _curvature(self.landscape)
            if self.positive_share.value > gates.positive_curvature_share:
                return True
        return False

    def _shares_pass(self) -> bool:
        gates = self._gates
        return (
            self.shares["assimilated_share"].value > gates.assimilated_share
            and self.shares["same_target_share"].value > gates.same_target_share
            and self.shares["opposed_share"].value > gates.opposed_share
        )


def _curvature(landscape: Landscape) -> Measure:
    shares = landscape.shares
    low, high = (min(shares), max(shares)) if len(shares) > 1 else (None, None)
    return Measure(landscape.positive_share, low, high, "share of eigenvalues", len(shares))
