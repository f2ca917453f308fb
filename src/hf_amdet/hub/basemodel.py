"""What the card of a target says that it was made from: the owner's word, and no more."""

from __future__ import annotations

from hf_amdet.errors import CardError, TowerError
from hf_amdet.hub.card import read_base_models
from hf_amdet.hub.client import Hub
from hf_amdet.hub.files import ResolvedRepo
from hf_amdet.hub.folder import read_file

MAX_CARD_BYTES = 2 * 1024 * 1024


def base_models(repo: ResolvedRepo, hub: Hub) -> tuple[str, ...]:
    """The `base_model` of the card, () without one or where it does not parse.

    Raises:
        HubError: the Hub refused or did not answer.
    """
    if repo.card is None:
        return ()
    try:
        return tuple(read_base_models(read_file(repo, repo.card, MAX_CARD_BYTES, hub)))
    except (CardError, TowerError):
        return ()
