"""A LongCLIP anchor, made as the published one: a CLIP tower with stretched positions.

Positions that CLIP has seen often are kept, the others interpolated (Long-CLIP, arXiv 2403.15378);
then the tower learns long captions and goes on with short ones.
"""

from __future__ import annotations

import copy
import random
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.zoo import teacher
from benchmarks.zoo.anchor import AnchorRecipe, build_anchor, similar_lengths, warm_cosine
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.measure import retrieval
from benchmarks.zoo.towers import ClipTower, save_tower
from benchmarks.zoo.training import cached, checkpoint_of, contrastive_loss, finish, train

HELD_OUT = 256
_POSITIONS = "text_model.embeddings.position_embedding.weight"


@dataclass(frozen=True)
class LongClipRecipe:
    """A CLIP tower of another seed than the demo's, stretched and fine-tuned.

    Attributes:
        kept: positions that stay as they are; the others are interpolated by `factor`.
        corpus: captions of either length; every batch holds one length.
        most: long captions join 2 to `most` captions.
    """

    base: AnchorRecipe = field(default_factory=partial(AnchorRecipe, seed=1))
    kept: int = 20
    factor: int = 4
    corpus: int = 6_000
    most: int = 12
    steps: int = 500
    batch: int = 96
    lr: float = 3e-4
    seed: int = 1

    def short_captions(self) -> list[str]:
        """Captions of usual length; the last `HELD_OUT` are not trained on."""
        return GRAMMARS[self.base.grammar].captions(self.corpus + HELD_OUT, self.seed + 4)


def build_longclip(recipe: LongClipRecipe, folder: Path, work: Path) -> None:
    """Make the tower of `recipe` in `folder`; its CLIP tower is kept in `work`."""
    base = work / f"longclip-base-{recipe.base.seed}"
    if not (base / "manifest.json").exists():
        build_anchor(recipe.base, base, work)
    tower = stretch(ClipTower.load(base), recipe.kept, recipe.factor)
    corpora = _corpora(recipe, work)
    batches = [
        (corpus, rows)
        for corpus in corpora
        for rows in similar_lengths(tower, corpus.texts[: recipe.corpus], recipe.batch)
    ]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        del step
        corpus, rows = batches[int(torch.randint(len(batches), (), generator=generator))]
        embeddings = tower.embeddings([corpus.texts[row] for row in rows])
        return contrastive_loss(embeddings.float(), corpus.targets[rows])

    checkpoint = checkpoint_of(work, folder, recipe)
    train(
        tower.model,
        loss,
        steps=recipe.steps,
        lr=recipe.lr,
        schedule=lambda step: warm_cosine(step, recipe.steps),
        seed=recipe.seed,
        checkpoint=checkpoint,
        title=f"train {folder.name}",
    )
    about: dict[str, object] = {"kind": "anchor", "recipe": asdict(recipe)}
    held_out = slice(recipe.corpus, None)
    for corpus in corpora:
        accuracy, cosine = retrieval(tower, corpus.texts[held_out], corpus.targets[held_out])
        about[f"held_out_{corpus.name}_retrieval_of_{HELD_OUT}"] = accuracy
        about[f"held_out_{corpus.name}_cosine_to_teacher"] = cosine
    save_tower(tower, folder)
    finish(folder, about, [checkpoint])


@dataclass(frozen=True)
class _Corpus:
    name: str
    texts: list[str]
    targets: Tensor
    """Teacher embeddings `[len(texts), 384]`."""


def _corpora(recipe: LongClipRecipe, work: Path) -> list[_Corpus]:
    """Short and long captions; the last `HELD_OUT` of each are not trained on."""
    count = recipe.corpus + HELD_OUT
    corpora = {
        "short": recipe.short_captions(),
        "long": long_captions(count, recipe.seed + 5, recipe.most, recipe.base.grammar),
    }
    found = []
    for name, texts in corpora.items():
        file = work / f"teacher-{name}-{recipe.seed}-{count}-{recipe.most}.safetensors"
        found.append(_Corpus(name, texts, cached(file, partial(teacher.embed, texts))))
    return found


def long_captions(count: int, seed: int, most: int, grammar: str = "scenes") -> list[str]:
    """`count` captions, each of 2 to `most` short ones as sentences."""
    rng = random.Random(seed)  # noqa: S311 - reproducible data, not secrets
    short = GRAMMARS[grammar].captions(2 * count, seed)
    return [". ".join(rng.sample(short, rng.randint(2, most))) for _ in range(count)]


def stretch(tower: ClipTower, kept: int, factor: int) -> ClipTower:
    """The tower with ``kept + factor (L - kept)`` positions in place of L."""
    weights = tower.model.state_dict()
    weights[_POSITIONS] = stretched(weights[_POSITIONS], kept, factor)
    config = copy.deepcopy(tower.model.config)
    config.max_position_embeddings = len(weights[_POSITIONS])
    tokenizer = copy.deepcopy(tower.tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    longer = ClipTower.blank(config, tokenizer, seed=0)
    longer.model.load_state_dict(weights)
    return longer


def stretched(positions: Tensor, kept: int, factor: int) -> Tensor:
    """Positions `[L, D]` -> `[kept + factor (L - kept), D]`: the first as they are, then linear.

    Behind the last one the line through the last two goes on, as in the published code.
    """
    head, tail = positions[:kept], positions[kept:]
    following = torch.cat([tail[1:], 2 * tail[-1:] - tail[-2:-1]])
    share = (torch.arange(factor) / factor).view(1, factor, 1)
    between = torch.lerp(tail.unsqueeze(1), following.unsqueeze(1), share)
    return torch.cat([head, between.flatten(0, 1)])
