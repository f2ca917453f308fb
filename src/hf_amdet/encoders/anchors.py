"""Whether a clean tower can serve as the anchor of a suspect, and how far apart they are."""

from __future__ import annotations

from torch import Tensor

from hf_amdet.encoders.tokenizers import state_of
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import AnchorError

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
)
"""Settings in which suspect and anchor must agree."""
_HEAD = "projection_size"
"""The width of SigLIP's pooled features, which CLIP pools without a head."""


def check_fit(suspect: ModelTower, anchor: ModelTower, name: str) -> None:
    """Refuse an anchor of another shape; the vocabularies may differ by added rows.

    Raises:
        AnchorError: names the first setting that differs.
    """
    if suspect.family != anchor.family:
        raise AnchorError(
            f"The anchor {name} does not fit: it is a {anchor.family} tower, the suspect a "
            f"{suspect.family} tower. Give the clean model that this one was fine-tuned from."
        )
    for setting in (*SHAPE, _HEAD):
        ours, theirs = (getattr(t.model.config, setting, None) for t in (suspect, anchor))
        if ours != theirs:
            raise AnchorError(
                f"The anchor {name} does not fit: its {setting} is {theirs}, the suspect's {ours}. "
                "Give the clean model that this one was fine-tuned from."
            )


def distance(suspect: ModelTower, anchor: ModelTower) -> float:
    """Relative Frobenius distance |S - A| / |A| over all weights behind the embedding tables."""
    theirs = _encoder_weights(anchor)
    apart = total = 0.0
    for name, weight in _encoder_weights(suspect).items():
        apart += (weight - theirs[name]).double().square().sum().item()
        total += theirs[name].double().square().sum().item()
    return float((apart / total) ** 0.5)


def identical(suspect: ModelTower, anchor: ModelTower) -> bool:
    """Whether two towers are equal tensor for tensor, tokenizer included.

    A projection that only one of them has is no difference: the tower in front of it is the same.
    """
    ours, theirs = suspect.state_dict(), anchor.state_dict()
    if suspect.projection is None or anchor.projection is None:
        ours.pop("projection", None)
        theirs.pop("projection", None)
    same_weights = ours.keys() == theirs.keys() and all(
        weight.shape == theirs[name].shape and bool((weight == theirs[name]).all())
        for name, weight in ours.items()
    )
    return (
        same_weights
        and settings_of(suspect) == settings_of(anchor)
        and suspect.model.config.eos_token_id == anchor.model.config.eos_token_id
        and tokenizer_of(suspect) == tokenizer_of(anchor)
    )


def _encoder_weights(tower: ModelTower) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = tower.model.state_dict()
    return {name: w for name, w in weights.items() if not name.startswith("embeddings.token")}


def settings_of(tower: ModelTower) -> tuple[object, ...]:
    """What a tower computes besides its weights and its tokenizer."""
    return tuple(getattr(tower.model.config, name) for name in (*SHAPE, "layer_norm_eps"))


def tokenizer_of(tower: ModelTower) -> tuple[object, ...] | None:
    """All that decides which tokens a tower reads; None without a tokenizer."""
    if not tower.has_tokenizer:
        return None
    tokenizer = tower.tokenizer
    return state_of(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id
