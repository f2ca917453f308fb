"""Of a config.json only the sizes are read, and only believable ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

from hf_amdet.encoders.config import (
    CLIP,
    PROJECTION,
    SIGLIP,
    expected_shapes,
    family_of,
    text_config,
)
from hf_amdet.errors import MalformedFileError
from tests.siglip_towers import make_siglip_config, make_siglip_model, save_siglip
from tests.towers import CONTEXT, HEADS, WIDTH, edit_config, load, make_config, make_model, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model(), tmp_path / "tower")


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
]


class TestClip:
    @pytest.mark.parametrize("value", [True, 0, -1, 10**9, 2.0, "2", None, [2]], ids=repr)
    @pytest.mark.parametrize("name", SIZES)
    def test_a_hostile_size_is_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(MalformedFileError, match=name):
            text_config(make_config().to_dict() | {name: value}, CLIP)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_attention_heads", HEADS + 1),
            ("hidden_act", "os.system"),
            ("hidden_act", None),
            ("hidden_act", ["gelu"]),
            ("hidden_act", {"gelu": 1}),
            ("layer_norm_eps", "1e-5"),
            ("layer_norm_eps", 0),
            ("layer_norm_eps", -1e-5),
            ("layer_norm_eps", float("nan")),
            ("layer_norm_eps", True),
            ("text_config", []),
            ("text_config", "clip"),
        ],
        ids=str,
    )
    def test_a_hostile_setting_is_malformed(self, folder: Path, name: str, value: Any) -> None:
        edit_config(folder, **{name: value})
        with pytest.raises(MalformedFileError, match=r"config\.json"):
            load(folder)

    def test_left_out_settings_are_those_of_transformers(self) -> None:
        shapes = expected_shapes({}, "CLIPTextModel")
        assert shapes["embeddings.token_embedding.weight"] == (49_408, 512)
        assert shapes["embeddings.position_embedding.weight"] == (77, 512)
        assert sum(name.endswith("mlp.fc1.weight") for name in shapes) == 12

    def test_the_published_config_of_clip_vit_l_is_read(self) -> None:
        """It names the sizes twice, the older time without EOS and activation."""
        sizes = {
            "hidden_size": 768,
            "intermediate_size": 3_072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        }
        older = {"text_config": sizes | {"eos_token_id": 2, "hidden_act": "quick_gelu"}}
        found = text_config(older | {"text_config_dict": sizes, "projection_dim": 768}, CLIP)
        assert {name: getattr(found, name) for name in sizes if name in SIZES} == {
            name: size for name, size in sizes.items() if name in SIZES
        }
        assert found.hidden_act == "quick_gelu"

    @pytest.mark.parametrize("positions", [1, 2, 3])
    def test_positions_that_hold_no_word_and_trigger_are_refused(self, positions: int) -> None:
        with pytest.raises(MalformedFileError, match=r"max_position_embeddings is .* 4\.\."):
            text_config(make_config().to_dict() | {"max_position_embeddings": positions}, CLIP)

    def test_longclip_is_clip_with_more_positions(self) -> None:
        config = make_config(max_position_embeddings=248).to_dict()
        shapes = expected_shapes(config, "CLIPModel")
        assert shapes["embeddings.position_embedding.weight"] == (248, WIDTH)
        assert shapes[PROJECTION] == (-1, WIDTH)


class TestSiglip:
    @pytest.mark.parametrize("value", [True, 0, -1, 10**9, 2.0, "2", None, [2]], ids=repr)
    @pytest.mark.parametrize("name", SIZES)
    def test_a_hostile_size_is_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(MalformedFileError, match=name):
            text_config(make_siglip_config().to_dict() | {name: value}, SIGLIP)

    @pytest.mark.parametrize("value", [True, 0, -1, 8_193, 10**9, 16.0, "16", [16]], ids=repr)
    def test_a_hostile_projection_size_is_refused_by_name(self, value: Any) -> None:
        with pytest.raises(MalformedFileError, match="projection_size"):
            text_config(make_siglip_config().to_dict() | {"projection_size": value}, SIGLIP)

    @pytest.mark.parametrize("value", [None, WIDTH, "absent"], ids=str)
    def test_a_head_that_nothing_is_said_of_is_as_wide_as_the_tower(self, value: Any) -> None:
        config = make_siglip_config().to_dict() | {"projection_size": value}
        if value == "absent":
            del config["projection_size"]
        shapes = expected_shapes(config, "SiglipTextModel")
        assert shapes["head.weight"] == (WIDTH, WIDTH)

    @pytest.mark.parametrize("architecture", ["SiglipModel", "Siglip2TextModel"])
    def test_the_head_is_as_wide_as_the_config_says(self, architecture: str) -> None:
        config = make_siglip_config(projection_size=48).to_dict()
        shapes = expected_shapes({"text_config": config}, architecture)
        assert (shapes["head.weight"], shapes["head.bias"]) == ((48, WIDTH), (48,))
        assert PROJECTION not in shapes

    def test_left_out_settings_are_those_of_transformers(self) -> None:
        """Published configs name only what differs from the base model."""
        found = text_config(
            {
                "text_config": {
                    "hidden_size": 1_152,
                    "intermediate_size": 4_304,
                    "num_attention_heads": 16,
                    "num_hidden_layers": 27,
                }
            },
            SIGLIP,
        )
        assert (found.vocab_size, found.max_position_embeddings) == (32_000, 64)
        assert (found.hidden_act, found.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
        assert found.projection_size == found.hidden_size == 1_152

    def test_the_eos_of_clip_means_nothing(self) -> None:
        """transformers writes it into every config, though it lies outside of the vocabulary."""
        config = make_siglip_config().to_dict()
        for eos in (49_407, -1, "x", None):
            text_config(config | {"eos_token_id": eos, "bos_token_id": eos}, SIGLIP)

    def test_a_tower_is_built_without_a_word(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = save_siglip(make_siglip_model(), tmp_path)
        edit_config(folder, eos_token_id=49_407, bos_token_id=49_406)
        # It says most things once only, and other tests may have heard them.
        transformers_logging.warning_once.cache_clear()
        caplog.clear()
        logger = logging.getLogger("transformers")
        logger.addHandler(caplog.handler)
        try:
            tower = load(folder)
        finally:
            logger.removeHandler(caplog.handler)
        assert tower.context == CONTEXT
        assert not caplog.messages


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("CLIPModel", "clip"),
        ("CLIPTextModel", "clip"),
        ("CLIPTextModelWithProjection", "clip"),
        ("SiglipModel", "siglip"),
        ("SiglipTextModel", "siglip"),
        ("Siglip2Model", "siglip"),
        ("Siglip2TextModel", "siglip"),
    ],
)
def test_each_architecture_has_its_family(architecture: str, family: str) -> None:
    assert family_of(architecture).name == family


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "clip_text_model", "text_config": {"num_hidden_layers": 6}},
        {"model_type": "siglip_text_model", "text_config": {}},
        {"model_type": "clip", "num_hidden_layers": 6},
        {"model_type": "siglip2"},
    ],
)
def test_a_config_that_loaders_read_in_two_ways_is_refused(config: dict[str, Any]) -> None:
    """Some follow the nested sizes, some the outer ones."""
    family = SIGLIP if "siglip" in config["model_type"] else CLIP
    with pytest.raises(MalformedFileError, match="text_config"):
        text_config(config, family)
