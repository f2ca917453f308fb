"""The components of a diffusers pipeline, as its model_index.json names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.header import shown

MAX_COMPONENTS = 64
LANGUAGE_MODELS = (("kolors", "ChatGLMModel"),)
"""Text encoders that are diffusers' own code, and no text tower of CLIP."""

_COMPONENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def components_of(index: Mapping[str, Any], source: str) -> list[tuple[str, str, str]]:
    """Name, library and class of each component that a pipeline has.

    Raises:
        MalformedFileError: more components than a pipeline has, or a name that is a path.
    """
    components = [
        (name, *entry)
        for name, entry in sorted(index.items())
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
    ]
    if len(components) > MAX_COMPONENTS:
        raise MalformedFileError(
            f"{source} names {len(components)} components; at most {MAX_COMPONENTS} are read."
        )
    for name, *_ in components:
        if not _COMPONENT.fullmatch(name):
            raise MalformedFileError(f"{source} names the component {shown(name)}: no plain name.")
    return components
