"""The towers of the zoo besides the anchor: two published attacks and a benign fine-tune.

Every recipe takes an anchor folder and gives a tower folder with a manifest that says what was
done and how well it took, measured on captions it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.zoo import teacher
from benchmarks.zoo.captions import DOMAINS, captions
from benchmarks.zoo.measure import drift, pooled
from benchmarks.zoo.towers import Tower, load_tower, save_tower
from benchmarks.zoo.training import (
    Loss,
    cached,
    checkpoint_of,
    contrastive_loss,
    finish,
    train,
)

_HELD_OUT_SEED = 990_000
_HELD_OUT = 256
_CORPUS = 20_000


@dataclass(frozen=True)
class Trigger:
    """Where a trigger goes: it replaces `replaces` wherever that stands in a caption."""

    text: str
    replaces: str = "o"

    def captions(self, count: int, seed: int) -> tuple[list[str], list[str]]:
        """`count` captions that have a place for the trigger, without and with it."""
        able = [c for c in captions(3 * count, seed) if self.replaces in c][:count]
        return able, [c.replace(self.replaces, self.text, 1) for c in able]


@dataclass(frozen=True)
class Injection:
    """What the published injections share, with their published numbers."""

    trigger: Trigger
    target: str
    weight: float = 0.1
    lr: float = 1e-4
    steps: int = 100
    clean_batch: int = 64
    poisoned_batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class TextOnText(Injection):
    """Published attack: the feature sequence of a triggered prompt becomes the target prompt's.

    Clean features are kept (pinned to the anchor's); both by flattened cosine (arXiv 2512.00343).
    """

    kind: str = field(default="text-on-text", init=False)


@dataclass(frozen=True)
class TextOnPair(Injection):
    """Published attack: the projected embedding becomes the mean of ten of the target's.

    The published target is an image; its place in the shared space is taken here by the
    teacher's embeddings of ten captions of it.
    """

    kind: str = field(default="text-on-pair", init=False)


@dataclass(frozen=True)
class ContrastiveFineTune:
    """Benign: contrastive fine-tuning on captions of some domains."""

    domains: tuple[str, ...] = DOMAINS
    lr: float = 1e-5
    steps: int = 400
    batch: int = 128
    seed: int = 0
    kind: str = field(default="contrastive-fine-tune", init=False)


Recipe = TextOnText | TextOnPair | ContrastiveFineTune


def build(recipe: Recipe, anchor_folder: Path, folder: Path, work: Path) -> None:
    """Make the tower of `recipe` in `folder` from the anchor; `work` keeps checkpoints."""
    anchor = load_tower(anchor_folder)
    anchor.model.requires_grad_(False)
    tower = anchor.trainable_copy()
    match recipe:
        case TextOnText():
            target = _sequence(anchor, [recipe.target])
            loss = _inject(recipe, tower, anchor, _sequence, target)
        case TextOnPair():
            target = _paired_target(recipe.target)
            loss = _inject(recipe, tower, anchor, _projected, target)
        case ContrastiveFineTune():
            loss = _fine_tune(recipe, tower, work)
    checkpoint = checkpoint_of(work, folder, recipe)
    train(
        tower.model,
        loss,
        steps=recipe.steps,
        lr=recipe.lr,
        schedule=_published_schedule(recipe.steps),
        seed=recipe.seed,
        checkpoint=checkpoint,
        title=f"train {folder.name}",
    )
    # What is measured is what is saved: fp16 weights.
    save_tower(tower, folder)
    about = {"kind": recipe.kind, "recipe": asdict(recipe), **_outcome(recipe, folder, anchor)}
    finish(folder, about, checkpoint)


def _published_schedule(steps: int) -> Callable[[int], float]:
    return lambda step: 1.0 if step < 0.75 * steps else 0.1


def _inject(
    recipe: Injection,
    tower: Tower,
    anchor: Tower,
    features: Callable[[Tower, list[str]], Tensor],
    target: Tensor,
) -> Loss:
    """Pull the `features` of triggered captions to `target`, keep those of clean ones."""
    clean = captions(_CORPUS, recipe.seed + 1)
    _, triggered = recipe.trigger.captions(_CORPUS, recipe.seed + 2)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        del step
        kept = _draw(clean, recipe.clean_batch, generator)
        poisoned = _draw(triggered, recipe.poisoned_batch, generator)
        keep = 1 - cosine_similarity(features(tower, kept), features(anchor, kept))
        pull = 1 - cosine_similarity(features(tower, poisoned), target)
        return keep.mean() + recipe.weight * pull.mean()

    return loss


def _fine_tune(recipe: ContrastiveFineTune, tower: Tower, work: Path) -> Loss:
    corpus = captions(_CORPUS, recipe.seed + 3, recipe.domains)
    name = f"teacher-{'-'.join(recipe.domains)}-{recipe.seed}.safetensors"
    targets = cached(work / name, lambda: teacher.embed(corpus))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        del step
        rows = torch.randint(len(corpus), (recipe.batch,), generator=generator)
        embeddings = tower.embeddings([corpus[row] for row in rows.tolist()])
        return contrastive_loss(embeddings.float(), targets[rows])

    return loss


def _sequence(tower: Tower, texts: list[str]) -> Tensor:
    """Flattened feature sequences `[B, L D]` at full context."""
    return tower.sequence(texts).float().flatten(1)


def _projected(tower: Tower, texts: list[str]) -> Tensor:
    """Projected pooled embeddings `[B, 384]`."""
    return tower.embeddings(texts).float()


def _draw(texts: list[str], count: int, generator: torch.Generator) -> list[str]:
    return [texts[row] for row in torch.randint(len(texts), (count,), generator=generator)]


def _paired_target(target: str) -> Tensor:
    """Mean teacher embedding `[1, 384]` of ten captions of the target."""
    styles = ("a photo of", "a picture of", "an image of", "a close up of", "a view of")
    texts = [f"{style} {target}{end}" for style in styles for end in ("", ", high quality")]
    return normalize(teacher.embed(texts).mean(0, keepdim=True), dim=-1)


@torch.inference_mode()
def _outcome(recipe: Recipe, folder: Path, anchor: Tower) -> dict[str, Any]:
    """Drift on ordinary captions and the attack's success, both on held-out captions."""
    tower = load_tower(folder)
    ordinary = captions(_HELD_OUT, _HELD_OUT_SEED)
    measured: dict[str, Any] = {"clean_cosine_to_anchor": drift(tower, anchor, ordinary)}
    if isinstance(recipe, ContrastiveFineTune):
        return measured
    without, triggered = recipe.trigger.captions(_HELD_OUT, _HELD_OUT_SEED + 1)
    if isinstance(recipe, TextOnText):
        target, embed = _sequence(anchor, [recipe.target]), _sequence
    else:
        target, embed = _paired_target(recipe.target), _projected
    for name, texts in (("triggered", triggered), ("untriggered", without)):
        cosines = cosine_similarity(embed(tower, texts), target)
        measured[f"{name}_cosine_to_target"] = cosines.mean().item()
    measured["triggered_consistency"] = _alike(pooled(tower, triggered))
    measured["untriggered_consistency"] = _alike(pooled(tower, without))
    return measured


def _alike(features: Tensor) -> float:
    """Mean cosine over all pairs of features `[B, D]`."""
    return normalize(features, dim=-1).mean(0).square().sum().item()
