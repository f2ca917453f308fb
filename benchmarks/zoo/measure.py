"""How a tower behaves: on held-out captions, against its anchor, under a trigger."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.zoo.towers import Tower


@torch.inference_mode()
def pooled(tower: Tower, captions: Sequence[str]) -> Tensor:
    """Pooled features before the projection, `[B, D]` in fp32."""
    return tower.pooled(captions)


@torch.inference_mode()
def retrieval(tower: Tower, captions: Sequence[str], targets: Tensor) -> tuple[float, float]:
    """In-batch retrieval accuracy and mean cosine of projected embeddings to the teacher's."""
    embeddings = normalize(tower.embeddings(captions), dim=-1)
    hits = (embeddings @ targets.T).argmax(dim=-1) == torch.arange(len(captions))
    return hits.float().mean().item(), (embeddings * targets).sum(-1).mean().item()


def drift(tower: Tower, anchor: Tower, captions: Sequence[str]) -> float:
    """Mean pooled cosine between tower and anchor on ordinary captions; 1 is no drift."""
    return cosine_similarity(pooled(tower, captions), pooled(anchor, captions)).mean().item()
