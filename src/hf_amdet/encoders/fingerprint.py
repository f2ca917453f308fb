"""Whether two checkpoints of one repo hold the same tower."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_amdet.encoders.anchors import settings_of
from hf_amdet.encoders.config import PROJECTION
from hf_amdet.encoders.tower import ModelTower

_HALF_MAX = 65_504.0


def fingerprint(tower: ModelTower) -> str:
    """A digest of what a tower computes, at the precision of fp16.

    Equal for an fp32 checkpoint and the fp16 variant that was rounded from it. The projection is
    left out: what is searched lies in front of it.
    """
    digest = hashlib.sha256()
    digest.update(encoder_digest(tower.model.state_dict()).encode())
    digest.update(repr(settings_of(tower)).encode())
    return digest.hexdigest()


def encoder_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of a bare text model's tensors by name, at the precision of fp16."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        if name == PROJECTION:
            continue
        whole = weight.detach().cpu()
        # What overflows would all be equal.
        half = whole.half() if whole.abs().max() < _HALF_MAX else whole
        digest.update(f"{name}{list(half.shape)}".encode())
        digest.update(half.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
