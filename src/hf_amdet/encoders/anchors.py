"""Whether a clean tower can serve as the anchor of a suspect, and how far apart they are."""

from __future__ import annotations

from torch import Tensor

from hf_amdet.encoders.clip import ClipTower
from hf_amdet.errors import AnchorError

_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
)
_BEHAVIOUR = ("layer_norm_eps", "eos_token_id")


def check_fit(suspect: ClipTower, anchor: ClipTower, name: str) -> None:
    """Refuse an anchor of another shape; the vocabularies may differ by added rows.

    Raises:
        AnchorError: names the first setting that differs.
    """
    for setting in _SHAPE:
        ours, theirs = (getattr(t.model.config, setting) for t in (suspect, anchor))
        if ours != theirs:
            raise AnchorError(
                f"The anchor {name} does not fit: its {setting} is {theirs}, the suspect's {ours}. "
                "Give the clean model that this one was fine-tuned from."
            )


def distance(suspect: ClipTower, anchor: ClipTower) -> float:
    """Relative Frobenius distance |S - A| / |A| over all weights behind the embedding tables."""
    theirs = _encoder_weights(anchor)
    apart = total = 0.0
    for name, weight in _encoder_weights(suspect).items():
        apart += (weight - theirs[name]).double().square().sum().item()
        total += theirs[name].double().square().sum().item()
    return float((apart / total) ** 0.5)


def identical(suspect: ClipTower, anchor: ClipTower) -> bool:
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
    return same_weights and _rules(suspect) == _rules(anchor)


def _encoder_weights(tower: ClipTower) -> dict[str, Tensor]:
    weights = tower.model.state_dict()
    return {name: w for name, w in weights.items() if not name.startswith("embeddings.token")}


def _rules(tower: ClipTower) -> tuple[object, ...]:
    """What a tower computes besides its weights: settings and tokenizer."""
    backend = tower.tokenizer.backend_tokenizer
    settings = [getattr(tower.model.config, name) for name in (*_SHAPE, *_BEHAVIOUR)]
    # Padding and truncation are settings of the last call, not of the tokenizer.
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str(), tower.tokenizer.eos_token_id, *settings
