"""The clean base towers: small text encoders trained on real sentence embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedTokenizerBase, SiglipTextConfig

from benchmarks.zoo import teacher
from benchmarks.zoo.grammars import GRAMMARS
from benchmarks.zoo.measure import retrieval
from benchmarks.zoo.tokenizer import train_clip_tokenizer, train_siglip_tokenizer
from benchmarks.zoo.towers import ClipTower, SiglipTower, Tower, save_tower
from benchmarks.zoo.training import cached, checkpoint_of, contrastive_loss, finish, train

WARMUP = 100


@dataclass(frozen=True)
class AnchorRecipe:
    """Shape and training of a CLIP tower. The defaults make the demo's anchor.

    Attributes:
        grammar: where its captions come from.
    """

    width: int = 128
    layers: int = 6
    heads: int = 4
    context: int = 77
    vocab_size: int = 2304
    corpus: int = 60_000
    steps: int = 2_400
    batch: int = 256
    lr: float = 1e-3
    seed: int = 0
    grammar: str = "scenes"

    def captions(self) -> list[str]:
        """What it is trained on, and behind that a thousand that are held out."""
        return GRAMMARS[self.grammar].captions(self.corpus + 1_000, self.seed)

    def blank(self, corpus: list[str]) -> Tower:
        """The untrained tower, with a tokenizer learnt from `corpus`."""
        tokenizer = train_clip_tokenizer(corpus, self.vocab_size, self.context)
        config = CLIPTextConfig(**self.sizes(tokenizer), projection_dim=teacher.WIDTH)
        return ClipTower.blank(config, tokenizer, self.seed)

    def sizes(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What the configurations of all families name alike."""
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }


@dataclass(frozen=True)
class SiglipRecipe(AnchorRecipe):
    """Shape and training of a SigLIP tower.

    Every prompt is as long as the context, so batches and depth are smaller.
    """

    layers: int = 4
    context: int = 64
    batch: int = 128
    steps: int = 3_600
    seed: int = 2

    def blank(self, corpus: list[str]) -> Tower:
        tokenizer = train_siglip_tokenizer(corpus, self.vocab_size, self.context)
        config = SiglipTextConfig(**self.sizes(tokenizer), projection_size=teacher.WIDTH)
        return SiglipTower.blank(config, tokenizer, self.seed)


def build_anchor(recipe: AnchorRecipe, folder: Path, work: Path) -> None:
    """Train the tower of `recipe` into `folder`; `work` keeps embeddings and checkpoints."""
    corpus = recipe.captions()
    name = f"teacher-{recipe.grammar}-{recipe.seed}-{len(corpus)}.safetensors"
    targets = cached(work / name, lambda: teacher.embed(corpus))
    tower = recipe.blank(corpus)
    batches = similar_lengths(tower, corpus[: recipe.corpus], recipe.batch)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        del step
        rows = batches[int(torch.randint(len(batches), (), generator=generator))]
        embeddings = tower.embeddings([corpus[row] for row in rows])
        return contrastive_loss(embeddings.float(), targets[rows])

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
    held_out = slice(recipe.corpus, recipe.corpus + 256)
    accuracy, cosine = retrieval(tower, corpus[held_out], targets[held_out])
    about = {
        "kind": "anchor",
        "recipe": vars(recipe),
        "held_out_retrieval_of_256": accuracy,
        "held_out_cosine_to_teacher": cosine,
    }
    save_tower(tower, folder)
    finish(folder, about, [checkpoint])


def similar_lengths(tower: Tower, corpus: list[str], batch: int) -> list[list[int]]:
    """Rows of `corpus` in batches of captions that are about as long."""
    lengths = [len(ids) for ids in tower.tokenizer(corpus).input_ids]
    order = sorted(range(len(corpus)), key=lambda row: (lengths[row], hash(row * 2654435761)))
    return [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]


def warm_cosine(step: int, steps: int) -> float:
    """A factor on the learning rate: up in `WARMUP` steps, then half a cosine down."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
