"""The scale that the settings of a PEFT LoRA state, if scaling is all that they do.

The settings are an adapter_config.json, or the copy of one that diffusers keeps in the header of
a safetensors file. They are not trusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.header import shown

_DEFAULT_RANK = _DEFAULT_ALPHA = 8
_MAX_ALPHA = 1e6

_READ_HERE = frozenset(
    "peft_type r lora_alpha rank_pattern alpha_pattern use_rslora target_modules exclude_modules"
    " init_lora_weights".split()
)
_NEUTRAL = frozenset(
    "auto_mapping base_model_name_or_path eva_config fan_in_fan_out inference_mode lora_dropout"
    " megatron_core peft_version qalora_group_size revision runtime_config task_type".split()
)
"""Settings that leave the merged weights of a linear layer as they are, whatever their value.

PEFT switches `fan_in_fan_out` off for linear layers; `megatron_core` and `qalora_group_size` count
only beside `megatron_config` and `use_qalora`, which are refused.
"""
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Those that leave the base as it is; PiSSA, OLoRA, LoftQ, CorDA and others subtract from it."""

_NAME = re.compile(r"\^?(?:\w|-|\\?\.)+", re.ASCII)
"""A pattern without repetition: it matches in linear time, whoever wrote it."""
_PATTERN = re.compile(r"(?:\.[*+]|\\[dw]\+?|\\\.|\(\?:|[\w.^$|()-])+", re.ASCII)
_MAX_REPETITIONS = 4
_MAX_PATTERN = 1_000
_MAX_PATTERNS = 2_000


def stated_scale(
    settings: Mapping[str, Any], path: str, rank: int, source: str, name: str
) -> float:
    """The factor of up @ down that the settings give one module.

    Args:
        path: the module as the settings call it, such as
            ``text_model.encoder.layers.0.mlp.fc1``.
        rank: of the module's matrices; the settings must say the same.
        source: what the settings are, for messages.
        name: file name of the adapter, for messages.

    Raises:
        MalformedFileError: the settings do more than scale, contradict the matrices, or make no
            sense.
    """
    where = f"{source} of {name}"
    _check_effects(settings, where)
    if not _is_target(settings, path, where):
        raise _refusal(where, f"its target_modules leave {shown(path)} out, which has tensors")
    stated_rank = _patterned(settings, "rank_pattern", path, _DEFAULT_RANK, where)
    if type(stated_rank) is not int or stated_rank != rank:
        raise _refusal(where, f"it gives {shown(path)} rank {shown(stated_rank)}, not {rank}")
    alpha = _patterned(settings, "alpha_pattern", path, _DEFAULT_ALPHA, where)
    # Negated, so that NaN is refused too.
    if type(alpha) not in (int, float) or not abs(alpha) <= _MAX_ALPHA:
        raise _refusal(where, f"it gives {shown(path)} alpha {shown(alpha)}")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_effects(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings under which the merged weight is not W + scale * up @ down."""
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise _refusal(where, f"its peft_type is {shown(kind)}, not 'LORA'")
    start = settings.get("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        raise _refusal(where, f"its init_lora_weights {shown(start)} may change the base itself")
    for setting, value in settings.items():
        if setting in _READ_HERE or setting in _NEUTRAL or value == "none" or not value:
            continue
        raise _refusal(where, f"what {setting} {shown(value)} does is not known here")


def _is_target(settings: Mapping[str, Any], path: str, where: str) -> bool:
    """Whether PEFT would give the module a LoRA at all."""
    included = _names(settings, "target_modules", path, where)
    return included and not _names(settings, "exclude_modules", path, where)


def _names(settings: Mapping[str, Any], setting: str, path: str, where: str) -> bool:
    named = settings.get(setting)
    if isinstance(named, list) and all(isinstance(item, str) for item in named):
        steps = path.split(".")
        return not {".".join(steps[n:]) for n in range(len(steps))}.isdisjoint(named)
    if named is None or named == "":
        return False
    if named == "all-linear":
        return True
    fault = f"its {setting} {shown(named)} are neither names nor a pattern that is read here"
    if not isinstance(named, str) or len(named) > _MAX_PATTERN or not _PATTERN.fullmatch(named):
        raise _refusal(where, fault)
    # Repetitions are never nested here, but each of them multiplies the time that a match takes.
    if named.count("*") + named.count("+") > _MAX_REPETITIONS:
        raise _refusal(where, fault)
    try:
        return re.fullmatch(named, path) is not None
    except (re.error, RecursionError):
        raise _refusal(where, fault) from None


def _patterned(
    settings: Mapping[str, Any], setting: str, path: str, default: int, where: str
) -> Any:
    """The value of `rank_pattern` or `alpha_pattern` for a module: the first pattern that fits."""
    patterns = settings.get(setting) or {}
    if not isinstance(patterns, Mapping) or len(patterns) > _MAX_PATTERNS:
        raise _refusal(where, f"its {setting} is no object of at most {_MAX_PATTERNS} names")
    for pattern, value in patterns.items():
        if len(pattern) > _MAX_PATTERN or not _NAME.fullmatch(pattern):
            raise _refusal(where, f"its {setting} holds {shown(pattern)}, which is no plain name")
        if _compiled(pattern).fullmatch(path):
            return value
    return settings.get("r" if setting == "rank_pattern" else "lora_alpha", default)


@lru_cache(maxsize=2 * _MAX_PATTERNS)  # re itself keeps too few for a tower's worth of them
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})")


def _refusal(where: str, fault: str) -> MalformedFileError:
    return MalformedFileError(
        f"{where}: {fault}. This adapter cannot be merged faithfully; merge it into its base,"
        " upload the result and scan that."
    )
