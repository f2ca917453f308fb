"""Whether two checkpoints of one repo hold the same tower."""

from __future__ import annotations

import hashlib

import torch

from hf_amdet.encoders.anchors import settings_of
from hf_amdet.encoders.tower import ModelTower


def fingerprint(tower: ModelTower) -> str:
    """A digest of what a tower computes, at the precision of fp16.

    Equal for an fp32 checkpoint and the fp16 variant that was rounded from it. The projection is
    left out: what is searched lies in front of it.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(tower.model.state_dict().items()):
        half = weight.detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name}{list(half.shape)}".encode())
        digest.update(half.view(torch.uint8).numpy().data)
    digest.update(repr(settings_of(tower)).encode())
    return digest.hexdigest()
