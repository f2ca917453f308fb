"""Checkpoints are read as transformers reads them, or refused by a named error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import (
    CorruptWeightsError,
    MalformedFileError,
    TowerError,
    WeightsMismatchError,
)
from tests.siglip_towers import KINDS, Kind, make_siglip_model, save_siglip
from tests.towers import (
    LAYOUTS,
    PROJECTED,
    WIDTH,
    Layout,
    edit_config,
    edit_weights,
    load,
    make_model,
    read_config,
    save,
    weight_files,
)

CLASSES: dict[str, type[PreTrainedModel]] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "CLIPModel": CLIPModel,
}
FC1 = "encoder__layers__0__mlp__fc1__weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model(), tmp_path / "tower")


def _theirs(folder: Path) -> CLIPTextModel:
    """The text model as transformers itself loads it from `folder`."""
    architecture = CLASSES[read_config(folder)["architectures"][0]]
    whole = architecture.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    text = whole if isinstance(whole, CLIPTextModel) else whole.text_model
    assert isinstance(text, CLIPTextModel)
    return text


def _assert_same_tensors(tower: ModelTower, model: PreTrainedModel) -> None:
    ours, theirs = tower.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@torch.no_grad()
def _assert_computes_the_same_or_is_refused(folder: Path) -> None:
    try:
        tower = load(folder)
    except TowerError:
        return
    model = _theirs(folder)
    _assert_same_tensors(tower, model)
    tokens = tower.tokenize(["the old cat waits", "one boat"], length=9)
    pooled = tower.encode(tower.embed(tokens.ids), tokens.ends).pooled
    assert torch.equal(pooled, model(input_ids=tokens.ids).pooler_output)


class TestLayouts:
    @pytest.mark.parametrize("shard", ["1GB", "60KB"], ids=["whole", "sharded"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_tensors_are_those_that_transformers_loads(
        self, tmp_path: Path, layout: Layout, shard: str
    ) -> None:
        folder = save(make_model(3), tmp_path, layout, shard=shard)
        assert (len(weight_files(folder)) > 1) == (shard != "1GB")
        _assert_same_tensors(load(folder), _theirs(folder))
        _assert_same_tensors(load(folder), make_model(3))

    def test_a_tower_of_many_positions_is_read(self, tmp_path: Path) -> None:
        """LongCLIP is CLIP with 248 positions."""
        model = make_model(max_position_embeddings=248)
        tower = load(save(model, tmp_path, "prefixed"))
        _assert_same_tensors(tower, model)
        assert tower.context == 248
        (ends,) = tower.tokenize(["snow " * 230], length=tower.context).ends.tolist()
        assert ends == 231

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_is_widened_to_fp32(self, tmp_path: Path, dtype: torch.dtype) -> None:
        folder = save(make_model(), tmp_path, dtype=dtype)
        tower = load(folder)
        assert {weight.dtype for weight in tower.parameters()} == {torch.float32}
        _assert_same_tensors(tower, _theirs(folder))

    def test_the_tower_is_as_large_as_its_config_says(self, folder: Path) -> None:
        tower, config = load(folder), read_config(folder)
        assert tower.width == config["hidden_size"]
        assert tower.context == config["max_position_embeddings"]
        assert tower.vocabulary == config["vocab_size"]
        assert tower.model.get_input_embeddings().weight.shape == (tower.vocabulary, tower.width)

    def test_every_setting_that_changes_the_output_is_read(self, tmp_path: Path) -> None:
        model = make_model(hidden_act="gelu", layer_norm_eps=0.3, num_attention_heads=2)
        _assert_computes_the_same_or_is_refused(save(model, tmp_path))
        config = load(tmp_path).model.config
        assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 0.3)
        assert config.num_attention_heads == 2


class TestAmbiguity:
    """What a user of transformers gets is what is scanned, or the tower is refused."""

    @pytest.mark.parametrize("prefix", ["", "text_model.", "clip.", "clip.text_model."])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_second_tower_under_another_prefix_is_not_scanned_instead(
        self, tmp_path: Path, layout: Layout, prefix: str
    ) -> None:
        folder = save(make_model(), tmp_path, layout)
        (file,) = weight_files(folder)
        decoy = {f"{prefix}{n}": w.clone() for n, w in make_model(9).state_dict().items()}
        save_file(decoy | load_file(file), file, metadata={"format": "pt"})
        _assert_computes_the_same_or_is_refused(folder)

    @pytest.mark.parametrize("name", ["a.safetensors", "z.safetensors"])
    def test_a_tensor_in_two_files_is_refused(self, folder: Path, name: str) -> None:
        decoy = {n: w.clone() for n, w in make_model(9).state_dict().items()}
        save_file(decoy, folder / name, metadata={"format": "pt"})
        with pytest.raises(TowerError):
            load(folder)

    @pytest.mark.parametrize("layout", ["flat", "full"])
    @pytest.mark.parametrize("key", ["text_config", "text_config_dict"])
    def test_settings_under_two_names_count_as_in_transformers(
        self, tmp_path: Path, layout: Layout, key: str
    ) -> None:
        folder = save(make_model(), tmp_path, layout)
        config = read_config(folder)
        edit_config(folder, **{key: config.get("text_config", config) | {"hidden_act": "gelu"}})
        _assert_computes_the_same_or_is_refused(folder)

    def test_a_renamed_setting_counts_as_in_transformers(self, folder: Path) -> None:
        edit_config(folder, attribute_map={"hidden_act": "other"}, other="gelu")
        _assert_computes_the_same_or_is_refused(folder)

    def test_settings_that_contradict_each_other_are_refused(self, tmp_path: Path) -> None:
        """`CLIPModel` follows text_config_dict, `CLIPTextModel` text_config."""
        folder = save(make_model(), tmp_path, "full")
        text = read_config(folder)["text_config"]
        edit_config(folder, text_config_dict=text)
        load(folder)
        edit_config(folder, text_config_dict=text | {"hidden_act": "gelu"})
        with pytest.raises(MalformedFileError):
            load(folder)

    @pytest.mark.parametrize("eos", [2, 513])
    def test_the_eos_of_the_config_counts_as_in_transformers(self, folder: Path, eos: int) -> None:
        edit_config(folder, eos_token_id=eos)
        _assert_computes_the_same_or_is_refused(folder)

    def test_the_highest_id_is_pooled_where_the_config_is_that_old(self, folder: Path) -> None:
        edit_config(folder, eos_token_id=2)
        edit_config(folder, "tokenizer_config.json", eos_token="the</w>")
        _assert_computes_the_same_or_is_refused(folder)

    def test_legacy_eos_is_not_refused(self, folder: Path) -> None:
        """Most published CLIP text towers name EOS 2 (and pool at the highest id)."""
        edit_config(folder, eos_token_id=2)
        load(folder)


class TestWeights:
    def test_a_missing_tensor_is_named(self, folder: Path) -> None:
        edit_weights(folder, final_layer_norm__bias=None)
        with pytest.raises(WeightsMismatchError, match=r"final_layer_norm\.bias"):
            load(folder)

    def test_without_its_projection_the_tower_is_read_all_the_same(self, tmp_path: Path) -> None:
        folder = save(make_model(3), tmp_path, "projected")
        edit_weights(folder, text_projection__weight=None)
        tower = load(folder)
        assert tower.projection is None
        _assert_same_tensors(tower, make_model(3))

    @pytest.mark.parametrize(
        "shape", [(2 * WIDTH, WIDTH + 1), (WIDTH, 2 * WIDTH), (2 * WIDTH * WIDTH,), ()], ids=str
    )
    def test_a_wrong_shape_is_named(self, folder: Path, shape: tuple[int, ...]) -> None:
        edit_weights(folder, **{FC1: torch.randn(shape)})
        with pytest.raises(WeightsMismatchError, match=r"mlp.fc1.weight has shape \["):
            load(folder)

    def test_a_projection_may_have_any_number_of_rows(self, tmp_path: Path) -> None:
        folder = save(make_model(), tmp_path, "projected")
        edit_weights(folder, text_projection__weight=torch.randn(PROJECTED + 5, WIDTH))
        load(folder)

    def test_other_tensors_are_ignored(self, folder: Path) -> None:
        edit_weights(folder, lora__down__weight=torch.full((3,), torch.nan))
        _assert_same_tensors(load(folder), make_model())

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_one_value_that_is_not_finite_is_refused(
        self, folder: Path, value: float, dtype: torch.dtype
    ) -> None:
        weight = make_model().state_dict()["encoder.layers.0.mlp.fc1.weight"].to(dtype)
        weight[3, 5] = value
        edit_weights(folder, **{FC1: weight})
        with pytest.raises(CorruptWeightsError, match=r"mlp\.fc1\.weight holds 1 NaN or infinite"):
            load(folder)

    def test_a_value_too_large_for_fp32_is_refused(self, folder: Path) -> None:
        weight = make_model().state_dict()["encoder.layers.0.mlp.fc1.weight"].double()
        weight[0, 0] = 1e200
        edit_weights(folder, **{FC1: weight})
        with pytest.raises(CorruptWeightsError):
            load(folder)

    @pytest.mark.parametrize("value", [0.0, 0.37])
    def test_a_constant_matrix_is_refused(self, folder: Path, value: float) -> None:
        edit_weights(folder, **{FC1: torch.full((2 * WIDTH, WIDTH), value)})
        with pytest.raises(CorruptWeightsError, match=r"mlp\.fc1\.weight is constant"):
            load(folder)

    def test_a_constant_vector_is_ordinary(self, folder: Path) -> None:
        edit_weights(folder, final_layer_norm__bias=torch.zeros(WIDTH))
        load(folder)

    @pytest.mark.parametrize("kept", [0, 4, 200, -100])
    def test_a_cut_file_is_malformed(self, folder: Path, kept: int) -> None:
        (file,) = weight_files(folder)
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(MalformedFileError, match=r"model\.safetensors"):
            load(folder)

    def test_no_weights_at_all_are_a_mismatch(self, folder: Path) -> None:
        for file in weight_files(folder):
            file.unlink()
        with pytest.raises(WeightsMismatchError, match="missing"):
            load(folder)


class TestHostileRepos:
    def test_sizes_larger_than_the_weights_are_a_mismatch(self, folder: Path) -> None:
        edit_config(folder, num_hidden_layers=3)
        with pytest.raises(WeightsMismatchError, match=r"encoder\.layers\.2"):
            load(folder)

    @pytest.mark.parametrize("kind", [None, *KINDS], ids=str)
    def test_nothing_that_a_config_names_is_run(
        self, folder: Path, kind: Kind | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected: PreTrainedModel = make_model()
        if kind is not None:
            expected = make_siglip_model()
            folder = save_siglip(make_siglip_model(), folder.with_name("siglip"), kind=kind)
        marker = folder / "executed"
        for name in ("modeling_evil.py", "tokenization_evil.py", "evil.py", "__init__.py"):
            (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
        monkeypatch.syspath_prepend(str(folder))
        code = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "evil.Config"}
        edit_config(
            folder,
            auto_map=code,
            model_type="evil",
            attn_implementation="evil/kernel",
            _attn_implementation="evil/kernel",
            _attn_implementation_internal="evil/kernel",
            _name_or_path="evil.py; touch executed",
            quantization_config={"quant_method": "evil", "modules": "evil.py"},
            trust_remote_code=True,
            torch_dtype="evil.dtype",
        )
        tokenizer = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
        edit_config(
            folder,
            "tokenizer_config.json",
            auto_map=tokenizer,
            tokenizer_class="Evil",
            trust_remote_code=True,
        )
        tower = load(folder)
        _assert_same_tensors(tower, expected)
        assert tower.model.config._attn_implementation == "eager"
        assert not marker.exists()
