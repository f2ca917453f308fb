"""What every recipe shares: a resumable loop, losses, and what is kept between runs."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

Loss = Callable[[int, torch.Generator], Tensor]
"""Step number and source of randomness -> scalar loss of one batch."""


MANIFEST = "manifest.json"
CHECKPOINT_EVERY = 200
"""Steps between checkpoints."""


def finish(folder: Path, about: dict[str, Any], checkpoints: Iterable[Path]) -> None:
    """Say what the tower is. Last of all: a folder with a manifest is done."""
    part = folder / "manifest.tmp"
    part.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    part.replace(folder / MANIFEST)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


def checkpoint_of(work: Path, folder: Path, recipe: object) -> Path:
    """Where training is kept; another recipe or family does not go on from it."""
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    return work / f"{folder.parent.name}-{folder.name}-{key}.checkpoint"


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """CLIP's symmetric InfoNCE plus the cosine distance to the teacher (both `[B, D]`)."""
    student, teacher = normalize(student, dim=-1), normalize(teacher, dim=-1)
    logits = student @ teacher.T / temperature
    same = torch.arange(len(logits))
    contrast = (cross_entropy(logits, same) + cross_entropy(logits.T, same)) / 2
    return contrast + 1 - cosine_similarity(student, teacher, dim=-1).mean()


def train(
    model: torch.nn.Module,
    loss: Loss,
    *,
    steps: int,
    lr: float,
    schedule: Callable[[int], float],
    seed: int,
    checkpoint: Path,
    weight_decay: float = 0.01,
    title: str,
) -> None:
    """Minimise `loss` with AdamW, resuming from `checkpoint` to the same end result.

    `schedule` maps a step to a factor on `lr`.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    generator = torch.Generator().manual_seed(seed)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        generator.set_state(state["generator"])
        start = state["step"]
    model.train()
    # Many at once would write over each other.
    quiet = multiprocessing.parent_process() is not None
    for step in track(range(start, steps), title, total=steps, completed=start, disable=quiet):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(step, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps:
            _save_checkpoint(checkpoint, model, optimizer, rates, generator, step + 1)
    model.eval()


def _save_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: torch.optim.lr_scheduler.LambdaLR,
    generator: torch.Generator,
    step: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rates": rates.state_dict(),
        "generator": generator.get_state(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def cached(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor kept beside the zoo, because the teacher is the slow part."""
    if path.exists():
        return load_file(path)["embeddings"]
    embeddings = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.tmp")  # two builds at once may want the same
    save_file({"embeddings": embeddings}, part)
    part.replace(path)
    return embeddings
