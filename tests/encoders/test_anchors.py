"""Which towers can be compared, and when two are one and the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_amdet.encoders.anchors import check_fit, distance, identical
from hf_amdet.errors import AnchorError
from tests.towers import CONTEXT, VOCABULARY, make_tower, prompts


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
