"""The front matter of a model card, read and validated roughly as the Hub does."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_EMPTY = "empty or missing yaml metadata in repo card"
# fmt: off
_LICENSES = frozenset((
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause",
    "bsd-3-clause", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nd-4.0", "ecl-2.0", "epl-2.0", "eupl-1.2", "agpl-3.0", "gpl", "gpl-2.0", "gpl-3.0",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "mpl-2.0", "ms-pl", "odbl", "odc-by", "ofl-1.1",
    "openrail++", "osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib", "gemma", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "unknown", "other",
))
# fmt: on


class _CardLoader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """YAML as the Hub's JavaScript reads it: `no` is a string, a duplicate key an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicated mapping key {key!r}", key_node.start_mark
                )
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


_CardLoader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_CardLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def card_data(readme: bytes | None) -> dict[str, Any] | None:
    """The card's metadata, or None when there is none that can be read."""
    text = (readme or b"").decode(errors="replace")
    try:
        data = _front_matter(text)
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def validate(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings that the Hub would give for a README.md with this content."""
    try:
        data = _front_matter(content)
    except yaml.YAMLError as error:
        return [f"Error while parsing YAML: {' '.join(str(error).split())}"], []
    if data is None:
        return [], [_EMPTY]
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"], []
    return _field_errors(data), []


def _front_matter(text: str) -> Any:
    match = _FRONT_MATTER.match(text)
    return yaml.load(match[1], Loader=_CardLoader) if match else None


def _field_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    licenses = data.get("license") or []
    if not set(licenses if isinstance(licenses, list) else [licenses]) <= _LICENSES:
        errors.append(f'"license" must be one of [{", ".join(sorted(_LICENSES))}]')
    for key in ("tags", "datasets", "metrics"):
        value = data.get(key)
        if value is not None and not _all_strings(value):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("language", "base_model"):
        value = data.get(key)
        if value is not None and not isinstance(value, str) and not _all_strings(value):
            errors.append(f'"{key}" must be a string or an array of strings')
    return errors


def _all_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
