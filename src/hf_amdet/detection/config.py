"""Profiles: every number of the method in one place, frozen.

`PAPER` holds the published hyperparameters and gates of AMDET for CLIP ViT-L/14.
`DEFAULT` tries real tokens and embeddings, and judges by the contrast with the anchor, which
carries over to other towers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_amdet.detection.objective import ConsistencyGap, Objective, PublishedObjective


@dataclass(frozen=True)
class InversionSettings:
    """How one objective is minimised.

    Attributes:
        steps: Adam steps at most.
        batch: prompts a step.
        epochs: passes over the prompts at most; None for as many as `steps` need.
        trigger_length: k, how many vectors are inserted behind BOS.
        among_rows: start at rows of the embedding table, and stay as near to zero as 95 % of them
            do, where real tokens are; `lr` is then relative to their spread. Else v ~ N(0, I), as
            published.
    """

    objective: Objective
    restarts: int
    steps: int
    batch: int
    epochs: int | None = None
    lr: float = 0.08
    weight_decay: float = 1e-5
    trigger_length: int = 1
    among_rows: bool = False


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
class SweepSettings:
    """How real tokens are tried, each behind BOS (docs/method.md, "Real tokens").

    Every token of the vocabulary is tried behind BOS and before a word. Where suspect and anchor
    part most, it is tried on a few short prompts; what makes these most alike in the suspect alone
    is tried again on longer ones, and the best of that is judged on the held-out prompts, which
    chose nothing.

    Attributes:
        screened: share of the vocabulary that the second round sees, and a third as many that
            unite words.
        prompts, positions: of the second round.
        kept: tokens that the third round sees, and a third as many that both towers agree on.
        refined_on: prompts of the third round.
        verified: tokens that are judged.
    """

    screened: float = 1 / 32
    prompts: int = 4
    positions: int = 9
    kept: int = 24
    refined_on: int = 32
    verified: int = 3


@dataclass(frozen=True)
class ContrastThresholds:
    """What the default profile asks of a candidate, for families without calibration.

    Chosen on the zoo's development towers alone (docs/method.md tells the figures).

    Attributes:
        gap: consistency of the suspect minus that of the anchor under the same real token.
        unclear: below it a token is no evidence.
        consistent: consistency from which features count as brought together at all.
        embedding_gap: the same gap under an embedding that no token has.
        natural: consistency from which a token that unites both towers is called natural.
        related: ordinary divergence above which anchor and suspect are not comparable.
        read_alike: share of the prompts that a tokenizer must read as the anchor's does.
    """

    gap: float = 0.38
    unclear: float = 0.33
    consistent: float = 0.65
    embedding_gap: float = 0.67
    natural: float = 0.75
    related: float = 0.5
    read_alike: float = 0.95


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
    sweep: SweepSettings | None = None
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
        InversionSettings(
            ConsistencyGap(),
            restarts=4,
            steps=40,
            batch=8,
            lr=0.16,
            weight_decay=0.0,
            among_rows=True,
        ),
    ),
    landscape=LandscapeSettings(grid=25, prompts=2, directions=2),
    sweep=SweepSettings(),
    thresholds=ContrastThresholds(),
)

PROFILES = {profile.name: profile for profile in (DEFAULT, PAPER)}
