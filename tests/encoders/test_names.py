"""Tensors are found under the names of either dialect, and never those of another tower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_amdet.encoders.config import expected_shapes
from hf_amdet.encoders.loading import read_weights
from hf_amdet.encoders.names import LONG_CLIP_KEPT, Dialect, Source, locate
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import CorruptWeightsError, TowerError, WeightsMismatchError
from tests.towers import (
    LAYERS,
    WIDTH,
    Projection,
    edit_weights,
    load,
    make_config,
    make_model,
    make_projection,
    make_tower,
    open_clip_tensors,
    read_config,
    save,
    save_open_clip,
    weight_files,
)

BLOCK = "transformer.resblocks.1.attn"
PROJECTIONS: tuple[Projection, ...] = ("matrix", "linear", "absent")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _expected() -> dict[str, tuple[int, ...]]:
    return expected_shapes(make_config().to_dict(), "CLIPTextModel")


def _assert_is(tower: ModelTower, seed: int) -> None:
    expected = make_model(seed).state_dict()
    assert tower.model.state_dict().keys() == expected.keys()
    for name, weight in tower.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


class TestOpenClip:
    @pytest.mark.parametrize("projection", PROJECTIONS)
    @pytest.mark.parametrize("prefix", ["", "text.", "cond_stage_model.model."])
    def test_a_tower_comes_back_tensor_for_tensor(
        self, tmp_path: Path, prefix: str, projection: Projection
    ) -> None:
        folder = save_open_clip(make_model(5), tmp_path, prefix, projection)
        tower = load(folder, prefix=prefix, dialect="open_clip")
        _assert_is(tower, 5)
        if projection == "absent":
            assert tower.projection is None
        else:
            assert tower.get_buffer("projection").equal(make_projection())

    def test_both_dialects_compute_the_same(self, tmp_path: Path) -> None:
        ours = load(save(make_model(5), tmp_path / "ours"))
        theirs = load(save_open_clip(make_model(5), tmp_path / "theirs"), dialect="open_clip")
        tokens = ours.tokenize(["the old cat waits"], length=9)
        pooled = [t.encode(t.embed(tokens.ids), tokens.ends).pooled for t in (ours, theirs)]
        assert torch.equal(*pooled)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_no_tensor_holds_on_to_its_packed_matrix_or_to_the_file(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        folder = save_open_clip(make_model(5), tmp_path)
        (file,) = weight_files(folder)
        held = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
        save_file(held, file, metadata={"format": "pt"})
        config = read_config(folder)
        tensors = read_weights([file], config, config["architectures"][0], dialect="open_clip")
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        with file.open("r+b") as stream:
            stream.seek(-file.stat().st_size // 2, 2)
            stream.write(bytes(file.stat().st_size // 2))
        assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == len(tensors)
        for name, tensor in tensors.items():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
            assert tensor.is_contiguous() and tensor.dtype == torch.float32
            assert torch.equal(tensor, before[name]), name

    @pytest.mark.parametrize("rows", [3 * WIDTH - 1, 3 * WIDTH + 1, 3 * WIDTH + 3, WIDTH, 0])
    @pytest.mark.parametrize("kind", ["weight", "bias"])
    def test_a_packed_matrix_without_three_right_thirds_is_refused(
        self, tmp_path: Path, kind: str, rows: int
    ) -> None:
        folder = save_open_clip(make_model(), tmp_path)
        shape = (rows, WIDTH) if kind == "weight" else (rows,)
        name = f"{BLOCK}.in_proj_{kind}"
        edit_weights(folder, **{name.replace(".", "__"): torch.randn(shape)})
        with pytest.raises(WeightsMismatchError, match=f"{name} has shape") as caught:
            load(folder, dialect="open_clip")
        assert str([*shape]) in str(caught.value)

    @pytest.mark.parametrize("shape", [(), (3,), (3 * WIDTH, WIDTH, 1)], ids=str)
    def test_a_packed_matrix_that_is_none_is_refused(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        folder = save_open_clip(make_model(), tmp_path)
        name = f"{BLOCK}.in_proj_weight"
        edit_weights(folder, **{name.replace(".", "__"): torch.randn(shape)})
        with pytest.raises(WeightsMismatchError, match=name):
            load(folder, dialect="open_clip")

    @pytest.mark.parametrize("name", sorted(open_clip_tensors(make_model())))
    def test_each_missing_tensor_of_the_encoder_is_refused(self, tmp_path: Path, name: str) -> None:
        folder = save_open_clip(make_model(), tmp_path)
        edit_weights(folder, **{name.replace(".", "__"): None})
        if name in ("attn_mask", "text_projection"):
            _assert_is(load(folder, dialect="open_clip"), 0)
        else:
            with pytest.raises(WeightsMismatchError, match="missing"):
                load(folder, dialect="open_clip")

    def test_a_poisoned_third_is_in_its_place(self, tmp_path: Path) -> None:
        """NaN in the rows of the values is NaN in v_proj, and nowhere else."""
        folder = save_open_clip(make_model(), tmp_path)
        packed = load_file(weight_files(folder)[0])[f"{BLOCK}.in_proj_weight"]
        packed[2 * WIDTH + 1, 0] = torch.nan
        edit_weights(folder, **{f"{BLOCK}.in_proj_weight".replace(".", "__"): packed})
        with pytest.raises(CorruptWeightsError, match=r"layers\.1\.self_attn\.v_proj\.weight"):
            load(folder, dialect="open_clip")

    def test_a_projection_of_the_wrong_width_is_refused(self, tmp_path: Path) -> None:
        folder = save_open_clip(make_model(), tmp_path)
        edit_weights(folder, text_projection=torch.randn(WIDTH + 1, 5))
        with pytest.raises(WeightsMismatchError, match=r"text_projection has shape \[33, 5\]"):
            load(folder, dialect="open_clip")

    def test_the_names_of_the_other_dialect_are_no_tower(self, tmp_path: Path) -> None:
        theirs = save_open_clip(make_model(), tmp_path / "theirs")
        ours = save(make_model(), tmp_path / "ours")
        with pytest.raises(WeightsMismatchError, match="missing"):
            load(theirs)
        with pytest.raises(WeightsMismatchError, match="missing"):
            load(ours, dialect="open_clip")


class TestLongClip:
    """As released: CLIP's own positions in one tensor, the stretched ones in another."""

    def _folder(self, folder: Path) -> Path:
        model = make_model(5, max_position_embeddings=LONG_CLIP_KEPT + 28)
        whole = model.state_dict()["embeddings.position_embedding.weight"]
        first, rest = torch.randn(2, *whole.shape)
        first[:LONG_CLIP_KEPT], rest[LONG_CLIP_KEPT:] = (
            whole[:LONG_CLIP_KEPT],
            whole[LONG_CLIP_KEPT:],
        )
        save_open_clip(model, folder)
        edit_weights(folder, positional_embedding=first, positional_embedding_res=rest)
        return folder

    def test_positions_come_from_both_tensors(self, tmp_path: Path) -> None:
        tower = load(self._folder(tmp_path), dialect="open_clip")
        expected = make_model(5, max_position_embeddings=LONG_CLIP_KEPT + 28).state_dict()
        for name, weight in tower.model.state_dict().items():
            assert torch.equal(weight, expected[name]), name

    def test_a_second_tensor_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        folder = self._folder(tmp_path)
        edit_weights(folder, positional_embedding_res=torch.randn(LONG_CLIP_KEPT, WIDTH))
        with pytest.raises(WeightsMismatchError, match="positional_embedding_res has shape"):
            load(folder, dialect="open_clip")


class TestPrefixes:
    """A file may hold several towers, as that of Stable Diffusion XL does."""

    FIRST, SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

    def _folder(self, folder: Path) -> Path:
        save(make_model(1), folder)
        (file,) = weight_files(folder)
        tensors = {f"{self.FIRST}text_model.{n}": w for n, w in make_model(1).state_dict().items()}
        tensors |= {f"{self.SECOND}{n}": w for n, w in open_clip_tensors(make_model(2)).items()}
        tensors["model.diffusion_model.out.0.weight"] = torch.randn(3)
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    def test_two_towers_under_two_prefixes_do_not_mix(self, tmp_path: Path) -> None:
        folder = self._folder(tmp_path)
        _assert_is(load(folder, prefix=self.FIRST), 1)
        _assert_is(load(folder, prefix=self.SECOND, dialect="open_clip"), 2)

    @pytest.mark.parametrize(
        ("prefix", "dialect", "plain"),
        [
            (FIRST, "transformers", "final_layer_norm.bias"),
            (SECOND, "open_clip", "ln_final.bias"),
        ],
        ids=["transformers", "OpenCLIP"],
    )
    def test_a_tensor_is_not_borrowed_from_beside_the_tower(
        self, tmp_path: Path, prefix: str, dialect: Dialect, plain: str
    ) -> None:
        folder = self._folder(tmp_path)
        (file,) = weight_files(folder)
        (name,) = (n for n in load_file(file) if n.startswith(prefix) and n.endswith(plain))
        beside = {plain.replace(".", "__"): torch.randn(WIDTH)}
        edit_weights(folder, **{name.replace(".", "__"): None}, **beside)
        with pytest.raises(WeightsMismatchError, match="1 text tensors are missing"):
            load(folder, prefix=prefix, dialect=dialect)

    def test_a_prefix_that_begins_another_is_not_mixed_with_it(self) -> None:
        shapes = _expected()
        found = {f"te.{name}": shape for name, shape in shapes.items()}
        found |= {f"te.2.{name}": shape for name, shape in shapes.items()}
        for prefix in ("te.", "te.2."):
            sources = locate(found, shapes, prefix=prefix)
            assert {n: s.name for n, s in sources.items()} == {n: f"{prefix}{n}" for n in shapes}

    def test_an_unknown_prefix_finds_nothing(self, tmp_path: Path) -> None:
        folder = save(make_model(), tmp_path)
        with pytest.raises(WeightsMismatchError, match="missing"):
            load(folder, prefix="text_encoder.")

    def test_two_towers_under_one_prefix_are_refused(self) -> None:
        shapes = _expected()
        found = {f"a.{name}": shape for name, shape in shapes.items()}
        found |= {f"a.text_model.{name}": shape for name, shape in shapes.items()}
        with pytest.raises(TowerError, match="which of them counts"):
            locate(found, shapes, prefix="a.")


def test_every_expected_tensor_has_a_source_of_its_own() -> None:
    """Packed matrices count three times, once for each third."""
    shapes = _expected()
    sources = locate(_shapes(open_clip_tensors(make_model())), shapes, dialect="open_clip")
    assert sources.keys() == shapes.keys()
    places = [(source.name, source.third) for source in sources.values()]
    assert len(set(places)) == len(places)
    thirds = sorted(str(third) for _, third in places if third is not None)
    assert thirds == sorted(["0", "1", "2"] * 2 * LAYERS)


@pytest.mark.parametrize(
    ("source", "shape"),
    [(Source("a"), (6, 4)), (Source("a", 1), (2, 4)), (Source("a", transposed=True), (4, 6))],
    ids=str,
)
def test_a_source_takes_what_its_shape_says(source: Source, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(6, 4)
    assert source.shape([6, 4]) == shape == tuple(source.take(tensor).shape)


def test_thirds_are_query_key_and_value() -> None:
    tower = make_tower()
    packed = open_clip_tensors(make_model())[f"{BLOCK}.in_proj_weight"]
    attention = tower.model.encoder.layers[1].self_attn
    for third, part in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        assert torch.equal(Source("packed", third).take(packed), part.weight)


class TestOtherTensors:
    """What stands among a tower's tensors and is none of them could be used by some loader."""

    @pytest.mark.parametrize(
        "name",
        [
            "encoder.layers.2.mlp.fc1.weight",
            "encoder.layers.0.mlp.fc1.scale_weight",
            "encoder.layers.0.mlp.fc1.weight.theta",
            "embeddings.token_embedding.more",
            "final_layer_norm.scale",
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "text_model."])
    def test_they_are_refused_by_name(self, tmp_path: Path, prefix: str, name: str) -> None:
        folder = save(make_model(), tmp_path, "prefixed" if prefix else "flat")
        whole = f"{prefix}{name}"
        edit_weights(folder, **{whole.replace(".", "__"): torch.ones(3)})
        with pytest.raises(WeightsMismatchError, match=name):
            load(folder)

    @pytest.mark.parametrize("name", ["logit_scale", "vision_model.encoder.layers.9.mlp.fc1.bias"])
    def test_those_of_other_parts_are_not(self, tmp_path: Path, name: str) -> None:
        folder = save(make_model(), tmp_path)
        edit_weights(folder, **{name.replace(".", "__"): torch.ones(3)})
        load(folder)
