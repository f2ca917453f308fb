"""Profiles: every number of the method in one place, frozen.

`PAPER` holds the published hyperparameters and gates of AMDET for CLIP ViT-L/14.
`DEFAULT` judges by the contrast with the anchor, which carries over to other towers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_amdet.detection.objective import Objective, PooledContrast, PublishedObjective


@dataclass(frozen=True)
class InversionSettings:
    """How one objective is minimised.

    Attributes:
        steps: Adam steps at most.
        batch: prompts a step.
        epochs: passes over the prompts at most; None for as many as `steps` need.
        trigger_length: k, how many vectors are inserted behind BOS.
    """

    objective: Objective
    restarts: int
    steps: int
    batch: int
    epochs: int | None = None
    lr: float = 0.08
    weight_decay: float = 1e-5
    trigger_length: int = 1


@dataclass(frozen=True)
class LandscapeSettings:
    """The loss surface around a candidate, always in fp32.

    Attributes:
        grid: points along each of the two directions.
        radius: largest step along a unit direction.
        prompts, directions: surfaces are drawn for each of so many prompts and random directions.
        eigenvalue: an eigenvalue above it counts as positive curvature.
        objective: the loss that is drawn; the filter is defined on the published one.
    """

    grid: int
    radius: float = 10.0
    prompts: int = 1
    directions: int = 1
    eigenvalue: float = 1e-6
    objective: PublishedObjective = field(default_factory=PublishedObjective)


@dataclass(frozen=True)
class PaperGates:
    """Published thresholds (all strict). They belong to CLIP ViT-L/14: `width` and `context`."""

    width: int = 768
    context: int = 77
    running_loss: float = -0.76
    epoch_end: float = -0.85
    every: int = 2
    assimilated: float = 0.8
    assimilated_share: float = 0.8
    same_target: float = 0.92
    same_target_share: float = 0.995
    opposed_share: float = 0.95
    positive_curvature_share: float = 0.8


@dataclass(frozen=True)
class ContrastThresholds:
    """What the default profile asks of a candidate, for families without calibration.

    Small towers that were made for the purpose (docs/method.md) put the consistency gap of
    attacks at 0.26 and above and that of clean fine-tunes at 0.14 and below; the threshold stands
    between them, and what falls between `unclear` and `gap` is `inconclusive`.

    Attributes:
        gap: consistency of the suspect minus that of the anchor under the same trigger.
        unclear: below it there is no evidence.
        consistent: consistency from which a feature counts as backdoor-like at all.
        divergence_ratio: divergence from the anchor under the trigger over that without it.
        assimilated: assimilation from which a feature that the anchor shares is called natural.
        shared: least similarity to the anchor's features for that.
    """

    gap: float = 0.20
    unclear: float = 0.15
    consistent: float = 0.80
    divergence_ratio: float = 4.0
    assimilated: float = 0.80
    shared: float = 0.80


@dataclass(frozen=True)
class Profile:
    """A way to scan.

    Attributes:
        prompts: how many prompts are used; the deterministic split holds out `held_out` of them.
        positions: probe length in tokens; None for the whole context.
    """

    name: str
    prompts: int
    held_out: int
    positions: int | None
    inversions: tuple[InversionSettings, ...]
    landscape: LandscapeSettings
    gates: PaperGates | None = None
    thresholds: ContrastThresholds | None = None


PAPER = Profile(
    name="paper",
    prompts=4_000,
    held_out=800,
    positions=None,
    inversions=(
        InversionSettings(PublishedObjective(), restarts=1, steps=640, batch=10, epochs=2),
    ),
    landscape=LandscapeSettings(grid=50),
    gates=PaperGates(),
)

DEFAULT = Profile(
    name="default",
    prompts=640,
    held_out=128,
    positions=24,
    inversions=(
        InversionSettings(PooledContrast(), restarts=3, steps=120, batch=4),
        InversionSettings(PublishedObjective(), restarts=3, steps=120, batch=4),
    ),
    landscape=LandscapeSettings(grid=25, prompts=2, directions=2),
    thresholds=ContrastThresholds(),
)

PROFILES = {profile.name: profile for profile in (DEFAULT, PAPER)}
