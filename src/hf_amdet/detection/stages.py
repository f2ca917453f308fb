"""What the stages of a detection share: one suspect, one profile, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_amdet.detection.config import InversionSettings, Profile
from hf_amdet.detection.inversion import Inversion, TriggerCandidates
from hf_amdet.detection.judges import Measure, Own, Responses, measure, respond
from hf_amdet.detection.landscape import Landscape, survey
from hf_amdet.detection.probes import Probes, make_probes
from hf_amdet.detection.progress import Observer, Stopwatch
from hf_amdet.detection.runtime import Runtime
from hf_amdet.detection.static import StaticDiff
from hf_amdet.detection.verdict import Conclusion
from hf_amdet.encoders.base import TextTower


@dataclass(frozen=True)
class Candidate:
    """A trigger, of a restart or of a real token, and what the judges measured of it.

    Attributes:
        trigger: `[k, D]`, in embedding-layer space (position embedding included).
        token: the suspect's id of the real token that it is; None for an embedding.
        text: what that token stands for.
    """

    objective: str
    restart: int
    loss: float
    steps: int
    trigger: Tensor = field(repr=False)
    statistics: dict[str, Measure]
    token: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class Detection:
    """All that was found in one tower.

    Attributes:
        statistics: of the decisive candidate, its landscape included.
        static: how tables and tokenizer differ; None where the profile does not look.
        curves: by objective, the losses `[S, R]` of every step.
    """

    conclusion: Conclusion
    candidates: tuple[Candidate, ...]
    statistics: dict[str, Measure]
    curves: dict[str, Tensor] = field(repr=False)
    landscape: Landscape | None = field(repr=False)
    timings: dict[str, float]
    static: StaticDiff | None = None

    @property
    def decisive(self) -> Candidate:
        return self.candidates[self.conclusion.decisive]


@dataclass
class Run:
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

    def probes(
        self,
        prompts: Sequence[str],
        tower: TextTower | None = None,
        positions: int | None = None,
    ) -> Probes:
        """The prompts of this run, the same ones in the same order for every tower and length.

        Args:
            tower: who reads them; None for the suspect.
            positions: None for the profile's own length, or whole contexts for a tower that reads
                its padding.
        """
        profile, tower = self.profile, tower or self.suspect
        if positions is None and not tower.padded:
            positions = profile.positions
        return make_probes(
            tower,
            prompts,
            count=profile.prompts,
            held_out=profile.held_out,
            positions=positions,
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

    def respond(
        self, probes: Probes, triggers: Tensor, own: Own | None = None
    ) -> tuple[Responses, ...]:
        return respond(self.suspect, self.anchor, probes.held_out, triggers, self.runtime, own)

    def judge(self, probes: Probes, found: Sequence[TriggerCandidates]) -> tuple[Candidate, ...]:
        candidates = []
        with self.watch.measure("judges"):
            for number, inversion in enumerate(found):
                self.observer.stage(f"judges ({inversion.objective})", 0)
                answers = self.respond(probes, inversion.triggers)
                for restart, responses in enumerate(answers):
                    candidates.append(
                        Candidate(
                            inversion.objective,
                            restart,
                            inversion.losses[restart].item(),
                            len(inversion.curve),
                            inversion.triggers[restart],
                            measure(responses, self.generator(500 + number)),
                        )
                    )
        return tuple(candidates)

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


def curvature(landscape: Landscape) -> Measure:
    """Share of positive eigenvalues, with the lowest and the highest of the surfaces'."""
    shares = landscape.shares
    low, high = (min(shares), max(shares)) if len(shares) > 1 else (None, None)
    return Measure(landscape.positive_share, low, high, "share of eigenvalues", len(shares))
