"""Which towers can be compared, and when two are one and the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_amdet.encoders.anchors import check_fit, distance, identical
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import AnchorError
from tests.siglip_towers import KINDS, Kind, make_siglip_tower
from tests.siglip_towers import VOCABULARY as SIGLIP_VOCABULARY
from tests.towers import CONTEXT, VOCABULARY, WIDTH, make_tower, prompts


@pytest.mark.parametrize(
    "setting",
    [
        {"hidden_size": 48},
        {"intermediate_size": 96},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 2},
        {"max_position_embeddings": CONTEXT + 1},
        {"hidden_act": "gelu"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_an_anchor_of_another_shape_is_refused_by_name(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(AnchorError, match=f"org/clean does not fit: its {name}"):
        check_fit(make_tower(), make_tower(**setting), "org/clean")


def test_added_embedding_rows_still_fit() -> None:
    check_fit(make_tower(vocab_size=VOCABULARY + 3), make_tower(), "org/clean")


def test_a_copy_is_identical_even_after_it_was_used() -> None:
    suspect, anchor = make_tower(), make_tower()
    suspect.tokenize(prompts(2), length=9)
    assert identical(suspect, anchor)
    assert distance(suspect, anchor) == 0


def test_one_changed_weight_is_not_identical() -> None:
    suspect, anchor = make_tower(), make_tower()
    with torch.no_grad():
        suspect.model.embeddings.token_embedding.weight[7, 3] += 1e-6
    assert not identical(suspect, anchor)


def test_added_rows_are_not_identical() -> None:
    assert not identical(make_tower(vocab_size=VOCABULARY + 3), make_tower())


def test_a_remapped_tokenizer_is_not_identical() -> None:
    suspect, anchor = make_tower(), make_tower()
    suspect.tokenizer.add_tokens(["cat"])
    assert not identical(suspect, anchor)


def test_equal_weights_with_another_norm_epsilon_are_not_identical() -> None:
    """The same tensors compute something else."""
    assert not identical(make_tower(layer_norm_eps=0.5), make_tower())


def test_distance_is_relative_and_leaves_the_token_table_out() -> None:
    suspect, anchor = make_tower(), make_tower()
    with torch.no_grad():
        for weight in suspect.model.parameters():
            weight.mul_(1.25)
        suspect.model.embeddings.token_embedding.weight.mul_(100)
    assert distance(suspect, anchor) == pytest.approx(0.25)


class TestSiglip:
    @pytest.mark.parametrize(
        "setting",
        [{"num_hidden_layers": 3}, {"hidden_act": "gelu"}, {"projection_size": WIDTH + 16}],
        ids=lambda setting: next(iter(setting)),
    )
    def test_an_anchor_of_another_shape_is_refused_by_name(self, setting: dict[str, Any]) -> None:
        """Two heads of other widths leave features that cannot be compared."""
        (name,) = setting
        with pytest.raises(AnchorError, match=f"org/clean does not fit: its {name}"):
            check_fit(make_siglip_tower(), make_siglip_tower(**setting), "org/clean")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_drifted_tower_with_added_rows_fits(self, kind: Kind) -> None:
        rows = SIGLIP_VOCABULARY + 3
        check_fit(make_siglip_tower(1, kind, vocab_size=rows), make_siglip_tower(), "org/clean")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_copy_is_identical_even_after_it_was_used(self, kind: Kind) -> None:
        suspect, anchor = make_siglip_tower(0, kind), make_siglip_tower(0, kind)
        suspect.tokenize(prompts(2), length=9)
        assert identical(suspect, anchor)
        assert distance(suspect, anchor) == 0

    @pytest.mark.parametrize("name", ["head.weight", "embeddings.token_embedding.weight"])
    def test_one_changed_weight_is_not_identical(self, name: str) -> None:
        suspect, anchor = make_siglip_tower(), make_siglip_tower()
        with torch.no_grad():
            suspect.model.get_parameter(name)[7, 3] += 1e-6
        assert not identical(suspect, anchor)

    def test_another_kind_of_tokenizer_is_not_identical(self) -> None:
        assert not identical(make_siglip_tower(0, "spiece"), make_siglip_tower(0, "json"))

    # Which token is the unknown one stands inside of a tokenizer.json.
    @pytest.mark.parametrize(
        ("kind", "role"),
        [
            ("spiece", "unk_token"),
            *((kind, role) for kind in KINDS for role in ("pad_token", "eos_token")),
        ],
    )
    def test_another_special_token_is_not_identical(self, kind: Kind, role: str) -> None:
        suspect, anchor = make_siglip_tower(0, kind), make_siglip_tower(0, kind)
        setattr(suspect.tokenizer, role, suspect.tokenizer.convert_ids_to_tokens(9))
        assert not identical(suspect, anchor)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_remapped_word_is_not_identical(self, kind: Kind) -> None:
        suspect, anchor = make_siglip_tower(0, kind), make_siglip_tower(0, kind)
        suspect.tokenizer.add_tokens(["cat"])
        assert not identical(suspect, anchor)

    def test_distance_counts_the_head(self) -> None:
        suspect, anchor = make_siglip_tower(), make_siglip_tower()
        with torch.no_grad():
            suspect.model.head.weight.mul_(1.5)
        assert 0 < distance(suspect, anchor) < 0.5
        with torch.no_grad():
            for weight in suspect.model.parameters():
                weight.mul_(1.25)
            suspect.model.head.weight.div_(1.5)
        assert distance(suspect, anchor) == pytest.approx(0.25)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_tower_of_another_family_is_no_anchor(swapped: bool) -> None:
    """Whatever their sizes have in common."""
    towers: list[ModelTower] = [make_tower(), make_siglip_tower(hidden_act="quick_gelu")]
    suspect, anchor = reversed(towers) if swapped else towers
    expected = f"it is a {anchor.family} tower, the suspect a {suspect.family} tower"
    with pytest.raises(AnchorError, match=f"org/clean does not fit: {expected}"):
        check_fit(suspect, anchor, "org/clean")
    assert not identical(suspect, anchor)
