"""Weights of towers, and training that is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.zoo import training


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def make_in_two_goes(
    make: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Make `folder`; the fourth step fails the first time. Returns how many steps were begun.

    Checkpoints are written at every second step.
    """
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    step = torch.optim.AdamW.step
    begun = []

    def interrupted(*args: Any, **settings: Any) -> Any:
        begun.append(1)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return step(*args, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert not folder.exists()
    make(folder)
    return len(begun)
