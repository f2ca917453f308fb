"""Device, precision and batch size, decided once a scan through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hf_amdet.errors import UsageError

DType = Literal["auto", "bf16", "fp32"]
T = TypeVar("T")

_BATCH = 256
"""Sequences encoded at once until memory runs out."""


class Runtime:
    """Where and how towers are run.

    Attributes:
        device: the one accelerate picks (GPU before CPU) unless named.
        bf16: whether towers run in bf16 under autocast; reductions and the landscape stay fp32.
        batch: sequences encoded at once; halved for good when memory runs out.
    """

    def __init__(self, device: str | None = None, dtype: DType = "auto", batch: int = _BATCH):
        """
        Raises:
            UsageError: no such device on this machine.
        """
        self.device = _device(device)
        self.bf16 = dtype == "bf16" or (dtype == "auto" and _has_bf16(self.device))
        self.batch = batch

    @property
    def dtype(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def precision(self, *, fp32: bool = False) -> AbstractContextManager[None]:
        """Context in which towers are called; `fp32` overrides mixed precision."""
        enabled = self.bf16 and not fp32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def in_batches(
        self, work: Callable[[slice], T], count: int, *, unit: int = 1
    ) -> Iterator[tuple[slice, T]]:
        """Call `work` on slices of `range(count)`; an item costs `unit` sequences.

        When a slice does not fit into memory the batch is halved and the slice tried again.
        """
        start = 0
        while start < count:
            size = min(max(1, self.batch // unit), count - start)
            part = slice(start, start + size)
            try:
                result = work(part)
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
                self.batch = (size // 2) * unit
                clear_device_cache(garbage_collection=True)
                continue
            yield part, result
            start = part.stop


def _device(name: str | None) -> torch.device:
    if name is None or name == "auto":
        found: torch.device = PartialState().device
        return found
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"Device {name!r} is not available here: {str(error).splitlines()[0]} "
            "Use --device cpu, or leave the choice to hf-amdet."
        ) from error
    return device


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 runs in hardware, so that it is faster and not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        amx, avx = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
        return bool(amx or avx)
    return False
