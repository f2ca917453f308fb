"""The clean base tower: a small CLIP text encoder trained on real sentence embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchmarks.zoo import teacher
from benchmarks.zoo.captions import captions
from benchmarks.zoo.measure import retrieval
from benchmarks.zoo.tokenizer import train_tokenizer
from benchmarks.zoo.training import (
    ATTENTION,
    Tower,
    cached,
    checkpoint_of,
    contrastive_loss,
    finish,
    save_tower,
    train,
)

WARMUP = 100


@dataclass(frozen=True)
class AnchorRecipe:
    """Shape and training of a base tower. The defaults make the demo's anchor."""

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


def build_anchor(recipe: AnchorRecipe, folder: Path, work: Path) -> None:
    """Train the tower of `recipe` into `folder`; `work` keeps embeddings and checkpoints."""
    corpus = captions(recipe.corpus + 1_000, recipe.seed)
    targets = cached(
        work / f"teacher-{recipe.seed}-{len(corpus)}.safetensors", lambda: teacher.embed(corpus)
    )
    tower = _blank_tower(recipe, corpus)
    batches = _similar_lengths(tower, corpus[: recipe.corpus], recipe.batch)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        del step
        rows = batches[int(torch.randint(len(batches), (), generator=generator))]
        embeddings = tower.model(input_ids=tower.ids([corpus[row] for row in rows])).text_embeds
        return contrastive_loss(embeddings.float(), targets[rows])

    checkpoint = checkpoint_of(work, folder, recipe)
    train(
        tower.model,
        loss,
        steps=recipe.steps,
        lr=recipe.lr,
        schedule=lambda step: _warm_cosine(step, recipe.steps),
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
    finish(folder, about, checkpoint)


def _blank_tower(recipe: AnchorRecipe, corpus: list[str]) -> Tower:
    tokenizer = train_tokenizer(corpus, recipe.vocab_size, recipe.context)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        projection_dim=teacher.WIDTH,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # transformers initialises from the global generator
        model = CLIPTextModelWithProjection._from_config(config, attn_implementation=ATTENTION)
        # CLIP's own initial scale is made for 512 and wider; here it starves the first layers.
        torch.nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.05)
    return Tower(model, tokenizer)


def _similar_lengths(tower: Tower, corpus: list[str], batch: int) -> list[list[int]]:
    lengths = [len(ids) for ids in tower.tokenizer(corpus).input_ids]
    order = sorted(range(len(corpus)), key=lambda row: (lengths[row], hash(row * 2654435761)))
    return [order[start : start + batch] for start in range(0, len(order) - batch + 1, batch)]


def _warm_cosine(step: int, steps: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))
