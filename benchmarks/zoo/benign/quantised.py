"""Round trips through fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.zoo.towers import Tower
from benchmarks.zoo.workbench import Label, Recipe, Workbench
from hf_amdet.encoders.variants import round_trip, to_levels


@dataclass(frozen=True)
class Quantised:
    """Every matrix to `bits` and back; integers with one scale a row.

    Attributes:
        after: what is done to the anchor before. Its own weights are fp16 already.
    """

    bits: Literal["int4", "int8", "fp8", "bf16", "fp16"]
    after: Recipe | None = None
    kind: ClassVar[str] = "quantised"
    label: ClassVar[Label] = "clean"

    @property
    def seed(self) -> int:
        return self.after.seed if self.after else 0

    def make(self, bench: Workbench) -> Tower:
        tower = self.after.make(bench) if self.after else bench.start.trainable_copy()
        round_trip(tower.model, self._rounded)
        return tower

    def _rounded(self, weight: Tensor) -> Tensor:
        match self.bits:
            case "fp16":
                return weight.half().float()
            case "bf16":
                return weight.bfloat16().float()
            case "fp8":
                return weight.to(torch.float8_e4m3fn).float()
            case "int8" | "int4":
                return to_levels(weight, 2 ** (int(self.bits[3:]) - 1) - 1)
