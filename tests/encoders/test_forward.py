"""A tower of any family, entered behind its embedding layer, is the model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, PreTrainedModel, Siglip2TextModel, SiglipTextModel

from tests.siglip_towers import make_siglip_model, save_siglip
from tests.towers import CONTEXT, EOS, load, make_model, prompts, save

TEXTS = [*prompts(5), "cat", "", f"the cat {EOS} the dog", " ".join(["snow"] * 40)]
LONG = 248

SAVE: dict[str, tuple[Callable[[Path], Path], type[PreTrainedModel]]] = {
    "clip": (lambda folder: save(make_model(), folder), CLIPTextModel),
    "longclip": (
        lambda folder: save(make_model(max_position_embeddings=LONG), folder),
        CLIPTextModel,
    ),
    "vit-h": (
        lambda folder: save(make_model(hidden_act="gelu", num_attention_heads=2), folder),
        CLIPTextModel,
    ),
    "siglip": (lambda folder: save_siglip(make_siglip_model(), folder), SiglipTextModel),
    "siglip-projected": (
        lambda folder: save_siglip(make_siglip_model(projection_size=48), folder),
        SiglipTextModel,
    ),
    "siglip2": (
        lambda folder: save_siglip(make_siglip_model(), folder, "text2", kind="json"),
        Siglip2TextModel,
    ),
}
"""How a checkpoint is written, and the class that it belongs to."""


@pytest.fixture(scope="module", params=SAVE)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, type[PreTrainedModel]]:
    write, architecture = SAVE[request.param]
    return write(tmp_path_factory.mktemp("towers") / request.param), architecture


def _autocast(enabled: bool) -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("length", [2, 7, CONTEXT, None], ids=str)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_encode_after_embed_is_the_models_own_forward_bit_for_bit(
    family: tuple[Path, type[PreTrainedModel]], attention: str, bf16: bool, length: int | None
) -> None:
    folder, architecture = family
    tower = load(folder)
    tower.model.set_attn_implementation(attention)
    own = architecture.from_pretrained(folder, attn_implementation=attention).eval()
    tokens = tower.tokenize(TEXTS, length=length or tower.context)
    with _autocast(bf16):
        entered = tower.encode(tower.embed(tokens.ids), tokens.ends)
        expected = own(input_ids=tokens.ids)
    assert torch.equal(entered.hidden, expected.last_hidden_state)
    assert torch.equal(entered.pooled, expected.pooler_output)


def test_the_families_differ_where_they_should(
    family: tuple[Path, type[PreTrainedModel]],
) -> None:
    """Else one family tested six times would pass for six."""
    folder, architecture = family
    tower = load(folder)
    assert tower.family == ("clip" if architecture is CLIPTextModel else "siglip")
    assert tower.context == (LONG if folder.name == "longclip" else CONTEXT)
    assert tower.padded == (tower.family == "siglip")
    tokens = tower.tokenize(["cat"], length=tower.context)
    pooled = tower.encode(tower.embed(tokens.ids), tokens.ends).pooled
    assert pooled.shape[1] == (48 if folder.name == "siglip-projected" else tower.width)


def test_words_and_positions_make_a_difference(
    family: tuple[Path, type[PreTrainedModel]],
) -> None:
    tower = load(family[0])
    tokens = tower.tokenize(["cat dog", "dog cat", "cat"], length=tower.context)
    pooled = tower.encode(tower.embed(tokens.ids), tokens.ends).pooled
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert torch.cosine_similarity(pooled[first], pooled[second], dim=0) < 0.999


def test_embedded_states_are_token_plus_position(
    family: tuple[Path, type[PreTrainedModel]],
) -> None:
    tower = load(family[0])
    ids = tower.tokenize(["cat"], length=5).ids
    table = tower.model.embeddings.token_embedding.weight
    for index, token in enumerate(ids[0].tolist()):
        assert torch.equal(tower.embed(ids)[0, index], table[token] + tower.position(index))


def test_a_tower_is_frozen_but_lets_gradients_through(
    family: tuple[Path, type[PreTrainedModel]],
) -> None:
    tower = load(family[0])
    tokens = tower.tokenize(["cat"], length=5)
    states = tower.embed(tokens.ids).requires_grad_()
    tower.encode(states, tokens.ends).pooled.square().sum().backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tower.parameters())
    assert not tower.model.training
