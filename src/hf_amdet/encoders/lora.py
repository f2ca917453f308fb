"""A LoRA's low-rank changes -> the weights of the text tower that users get with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_amdet.errors import CorruptWeightsError, MalformedFileError, WeightsMismatchError

if TYPE_CHECKING:
    from hf_amdet.hub.files import LowRank


def merge(
    tensors: Mapping[str, Tensor], file: Path, changes: Sequence[LowRank]
) -> dict[str, Tensor]:
    """The tensors of a base with W + scale * up @ down in place of each changed weight W.

    Args:
        tensors: fp32, under the names of the bare text model, as `read_weights` gives them; they
            stay as they are, and those that are not changed are shared with the result.
        file: the adapter's safetensors file, which holds what `changes` names.

    Raises:
        MalformedFileError: a tensor that is not in the file, or a file that does not parse.
        WeightsMismatchError: a module that the base lacks, shapes that do not fit it, or alphas
            that differ between modules.
        CorruptWeightsError: NaN or infinite values.
    """
    merged = dict(tensors)
    try:
        with safe_open(file, "pt") as opened:
            alphas = {
                change.alpha: _number(opened, change.alpha)
                for change in changes
                if change.alpha is not None
            }
            _check_alphas(alphas)
            for change in changes:
                weight = f"{change.module}.weight"
                alpha = None if change.alpha is None else alphas[change.alpha]
                merged[weight] = _changed(merged.get(weight), opened, change, alpha)
    except (SafetensorError, OSError) as error:
        raise MalformedFileError(f"{file.name} cannot be read as an adapter: {error}") from error
    return merged


def _changed(weight: Tensor | None, opened: Any, change: LowRank, alpha: float | None) -> Tensor:
    """The `[out, in]` weight with the change in it."""
    if weight is None:
        raise WeightsMismatchError(
            f"{change.down} changes {change.module}, which the base does not have. "
            "Name the base that this adapter was trained on."
        )
    down, up = (_matrix(opened, name) for name in (change.down, change.up))
    rank, (rows, columns) = down.shape[0], (up.shape[0], down.shape[1])
    if weight.shape != (rows, columns) or down.dim() != 2 or up.shape != (rows, rank):
        raise WeightsMismatchError(
            f"{change.up} and {change.down} have shapes {list(up.shape)} and {list(down.shape)}; "
            f"{change.module}.weight of the base has {list(weight.shape)}. "
            "Name the base that this adapter was trained on."
        )
    scale = change.scale
    if scale is None:
        scale = 1.0 if alpha is None else alpha / rank
    changed = torch.addmm(weight, up, down, alpha=scale)
    if not torch.isfinite(changed).all():
        raise CorruptWeightsError(f"{change.up} @ {change.down} overflows: NaN or infinite.")
    return changed


def _matrix(opened: Any, name: str) -> Tensor:
    tensor: Tensor = opened.get_tensor(name).float()
    if tensor.dim() < 2 or not tensor.numel():
        raise WeightsMismatchError(f"{name} has shape {list(tensor.shape)} and is no matrix.")
    if not torch.isfinite(tensor).all():
        raise CorruptWeightsError(f"{name} holds NaN or infinite values.")
    # A convolution of one pixel is a matrix.
    return tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor


def _number(opened: Any, name: str) -> float:
    alpha: Tensor = opened.get_tensor(name).double()
    if alpha.numel() != 1:
        raise WeightsMismatchError(f"{name} has shape {list(alpha.shape)} and is no number.")
    if not torch.isfinite(alpha).all():
        raise CorruptWeightsError(f"{name} is NaN or infinite.")
    return float(alpha.item())


def _check_alphas(alphas: Mapping[str, float]) -> None:
    """Refuse alphas that differ.

    diffusers (tried with 0.42) then gives all modules of a text encoder the commonest of them,
    sd-scripts gives each its own: there is no one set of weights that users get.
    """
    first = next(iter(alphas), None)
    for name, alpha in alphas.items():
        if first is not None and alpha != alphas[first]:
            raise WeightsMismatchError(
                f"{first} is {alphas[first]:g} and {name} is {alpha:g}; loaders disagree on what "
                "differing alphas mean. Merge the adapter into its base and scan the result."
            )
