"""SigLIP checkpoints are read as transformers reads them, or refused by a named error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    Siglip2Model,
    Siglip2TextModel,
    SiglipModel,
    SiglipTextModel,
)

from hf_amdet.encoders.siglip import SiglipTower
from hf_amdet.errors import CorruptWeightsError, TowerError, WeightsMismatchError
from tests.siglip_towers import SIGLIP_LAYOUTS, SiglipLayout, make_siglip_model, save_siglip
from tests.towers import CONTEXT, WIDTH, edit_config, edit_weights, load, read_config, weight_files

CLASSES: dict[str, type[PreTrainedModel]] = {
    "SiglipTextModel": SiglipTextModel,
    "SiglipModel": SiglipModel,
    "Siglip2TextModel": Siglip2TextModel,
    "Siglip2Model": Siglip2Model,
}
PREFIXES = ["", "text_model.", "siglip.", "siglip.text_model.", "siglip2.", "siglip2.text_model."]


def _theirs(folder: Path) -> PreTrainedModel:
    """The text model as transformers itself loads it from `folder`."""
    architecture = CLASSES[read_config(folder)["architectures"][0]]
    whole = architecture.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    text = whole if isinstance(whole, SiglipTextModel | Siglip2TextModel) else whole.text_model
    assert isinstance(text, PreTrainedModel)
    return text


@torch.no_grad()
def _assert_computes_the_same_or_is_refused(folder: Path) -> bool:
    try:
        tower = load(folder)
    except TowerError:
        return False
    model = _theirs(folder)
    ours, theirs = tower.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    tokens = tower.tokenize(["the old cat waits", "one boat"], length=CONTEXT)
    pooled = tower.encode(tower.embed(tokens.ids), tokens.ends).pooled
    assert torch.equal(pooled, model(input_ids=tokens.ids).pooler_output)
    return True


@pytest.mark.parametrize("shard", ["1GB", "60KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("layout", SIGLIP_LAYOUTS)
def test_every_class_that_holds_a_tower_gives_it(
    tmp_path: Path, layout: SiglipLayout, shard: str
) -> None:
    folder = save_siglip(make_siglip_model(3), tmp_path, layout, shard=shard)
    assert (len(weight_files(folder)) > 1) == (shard != "1GB")
    assert _assert_computes_the_same_or_is_refused(folder)
    tower, expected = load(folder), make_siglip_model(3).state_dict()
    assert isinstance(tower, SiglipTower)
    assert tower.model.state_dict().keys() == expected.keys()
    for name, weight in tower.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_to_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path, "full", dtype=dtype)
    assert _assert_computes_the_same_or_is_refused(folder)
    assert {weight.dtype for weight in load(folder).parameters()} == {torch.float32}


def test_every_setting_that_changes_the_output_is_read(tmp_path: Path) -> None:
    model = make_siglip_model(
        hidden_act="gelu", layer_norm_eps=0.3, num_attention_heads=2, projection_size=48
    )
    for number, layout in enumerate(SIGLIP_LAYOUTS):
        folder = save_siglip(model, tmp_path / str(number), layout)
        assert _assert_computes_the_same_or_is_refused(folder)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", SIGLIP_LAYOUTS)
def test_a_second_tower_under_another_prefix_is_not_scanned_instead(
    tmp_path: Path, layout: SiglipLayout, prefix: str
) -> None:
    """What a user of transformers gets is what is scanned, or the tower is refused."""
    folder = save_siglip(make_siglip_model(), tmp_path, layout)
    (file,) = weight_files(folder)
    decoy = {f"{prefix}{n}": w.clone() for n, w in make_siglip_model(9).state_dict().items()}
    save_file(decoy | load_file(file), file, metadata={"format": "pt"})
    _assert_computes_the_same_or_is_refused(folder)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", SIGLIP_LAYOUTS)
def test_a_tower_under_any_prefix_is_what_transformers_loads(
    tmp_path: Path, layout: SiglipLayout, prefix: str
) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path, layout)
    (file,) = weight_files(folder)
    moved = {f"{prefix}{n}": w.clone() for n, w in make_siglip_model(9).state_dict().items()}
    beside = {n: w for n, w in load_file(file).items() if "vision" in n or "logit" in n}
    save_file(moved | beside, file, metadata={"format": "pt"})
    architecture = CLASSES[read_config(folder)["architectures"][0]]
    loaded: Any = architecture.from_pretrained(folder, output_loading_info=True)
    _, info = loaded
    # Where transformers finds no tower it makes one up: there is nothing to compare with.
    if not info["missing_keys"]:
        assert _assert_computes_the_same_or_is_refused(folder)


@pytest.mark.parametrize("layout", ["text", "full"])
@pytest.mark.parametrize("key", ["text_config", "text_config_dict"])
def test_settings_under_two_names_count_as_in_transformers(
    tmp_path: Path, layout: SiglipLayout, key: str
) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path, layout)
    config = read_config(folder)
    edit_config(folder, **{key: config.get("text_config", config) | {"hidden_act": "gelu"}})
    _assert_computes_the_same_or_is_refused(folder)


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "final_layer_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path)
    edit_weights(folder, **{name.replace(".", "__"): None})
    with pytest.raises(WeightsMismatchError, match=name):
        load(folder)


def test_a_head_of_another_width_than_the_config_says_is_refused(tmp_path: Path) -> None:
    folder = save_siglip(make_siglip_model(projection_size=48), tmp_path)
    edit_config(folder, projection_size=None)
    with pytest.raises(WeightsMismatchError, match=r"head\.weight has shape \[48, 32\]"):
        load(folder)


def test_a_head_that_holds_nan_is_refused(tmp_path: Path) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path)
    weight = torch.randn(WIDTH, WIDTH)
    weight[0, 0] = torch.nan
    edit_weights(folder, head__weight=weight)
    with pytest.raises(CorruptWeightsError, match=r"head\.weight holds 1 NaN"):
        load(folder)
