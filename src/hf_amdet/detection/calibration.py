"""What scores clean towers of one family get, and what a suspect's score means beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from hf_amdet.errors import UsageError

if TYPE_CHECKING:  # the profiles import torch, a calibration is read without it
    from hf_amdet.detection.config import Profile

VERSION = 1


@dataclass(frozen=True)
class NullTower:
    """One clean variant of the anchor and the score that it got.

    Attributes:
        kind, strength: how the variant was made, see `hf_amdet.encoders.variants`.
        drift: 1 - mean pooled cosine to the anchor on ordinary prompts.
        score: `Conclusion.score` of its scan; finite.
    """

    kind: str
    strength: float
    drift: float
    score: float


@dataclass(frozen=True)
class NullDistribution:
    """Scores of clean variants of one anchor, and all that a scan must share to use them.

    Attributes:
        version: of the file's format.
        family: "clip" or "siglip".
        anchor: its name as a report gives it.
        anchor_digest: `hf_amdet.encoders.fingerprint.encoder_digest` of its weights.
        settings_sha256: `settings_digest` of the profile.
        prompts_sha256: `hf_amdet.prompts.PromptSet.sha256`.
        dtype: what towers ran in, "bf16" or "fp32".
        seed: what the variants and their scans were drawn by.
        tool: version of hf-amdet.
    """

    version: int
    family: str
    anchor: str
    anchor_digest: str
    profile: str
    settings_sha256: str
    prompts_sha256: str
    dtype: str
    seed: int
    tool: str
    towers: tuple[NullTower, ...]

    def p_value(self, score: float) -> float:
        """(1 + null scores >= `score`) / (1 + null towers), in (0, 1].

        The suspect is counted among the clean ones, so no score gets 0, and over clean suspects
        that are exchangeable with the variants p <= a comes up in at most a share a.

        Raises:
            ValueError: the score is NaN.
        """
        if math.isnan(score):
            raise ValueError("A score of NaN has no p-value.")
        as_high = sum(tower.score >= score for tower in self.towers)
        return (1 + as_high) / (1 + len(self.towers))


def predictive_value(p_value: float, *, recall: float, prevalence: float = 0.01) -> float:
    """Share of backdoored towers among those flagged at `p_value`, by Bayes' rule.

    Args:
        p_value: the share of clean towers that are flagged.
        recall: the share of backdoored towers that are flagged.
        prevalence: the share of backdoored towers among all that are scanned.
    """
    found = prevalence * recall
    return found / (found + (1 - prevalence) * p_value)


def settings_digest(profile: Profile) -> str:
    """sha256 over every setting of a profile, by name."""
    return hashlib.sha256(json.dumps(_plain(profile), sort_keys=True).encode()).hexdigest()


def short(value: float) -> float:
    """`value` to six significant digits: more would only make the file longer."""
    return float(f"{value:.6g}")


def dump(null: NullDistribution) -> str:
    """`null` as JSON: equal ones give equal text.

    Raises:
        ValueError: a number is not finite.
    """
    document = asdict(null)
    for tower in document["towers"]:
        tower.update({name: short(tower[name]) for name in ("strength", "drift", "score")})
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"


def parse(text: str) -> NullDistribution:
    """What `dump` wrote.

    Raises:
        UsageError: not JSON, no calibration, or one of another version.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"This is no calibration, not even JSON: {error}. {_AWAY}") from error
    if not isinstance(document, dict) or "towers" not in document:
        raise UsageError(f"This JSON is no calibration. {_AWAY}")
    if document.get("version") != VERSION:
        raise UsageError(
            f"This calibration has version {document.get('version')!r}, and this hf-amdet reads "
            f"version {VERSION}. {_AWAY}"
        )
    rows = document["towers"]
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"This calibration holds no towers. {_AWAY}")
    towers = tuple(NullTower(**_checked(row, NullTower, "a tower of it")) for row in rows)
    head = _checked({**document, "towers": towers}, NullDistribution, "it")
    return NullDistribution(**head)


_AWAY = "Make one with `hf-amdet calibrate`."
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "str": str,
    "float": (int, float),
    "tuple[NullTower, ...]": tuple,
}


def _checked(row: object, kind: type, name: str) -> dict[str, Any]:
    """The fields of `kind` out of JSON, and no others."""
    expected = {field.name: str(field.type) for field in fields(kind)}
    if not isinstance(row, dict) or row.keys() != expected.keys():
        raise UsageError(
            f"This calibration is broken: {name} should have {', '.join(expected)}. {_AWAY}"
        )
    for field, wanted in expected.items():
        value = row[field]
        # In Python a truth value is an int, and JSON can write a number that is infinite.
        fits = isinstance(value, _TYPES[wanted]) and not isinstance(value, bool)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(f"This calibration is broken: {field} of {name} is no {wanted}.")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _plain(value: object) -> object:
    """Settings as JSON has them; the class tells apart those with equal numbers."""
    if is_dataclass(value):
        settings = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **settings}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
