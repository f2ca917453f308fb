from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_amdet.encoders.loading import build_tower, read_weights
from hf_amdet.encoders.lora import merge
from hf_amdet.errors import CorruptWeightsError, MalformedFileError, WeightsMismatchError
from hf_amdet.hub.adapters import EMBEDDED, parts_of
from hf_amdet.hub.files import AdapterPart, LowRank
from hf_amdet.hub.header import read_header
from tests.towers import CPU, make_model, read_config, save, weight_files

Pairs = dict[str, tuple[Tensor, Tensor]]
"""Down and up matrices by bare module name."""

RANK = 3
MODULES = [
    f"encoder.layers.{layer}.{module}"
    for layer in (0, 1)
    for module in (
        *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        "mlp.fc1",
        "mlp.fc2",
    )
]


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in make_model(3).state_dict().items()}


def _pairs(
    base: Mapping[str, Tensor],
    modules: Sequence[str] = MODULES,
    *,
    rank: Callable[[str], int] = lambda _: RANK,
    seed: int = 0,
) -> Pairs:
    noise = torch.Generator().manual_seed(seed)
    pairs = {}
    for module in modules:
        rows, columns = base[f"{module}.weight"].shape
        down = torch.randn(rank(module), columns, generator=noise)
        pairs[module] = down, torch.randn(rows, rank(module), generator=noise)
    return pairs


def _named(pairs: Pairs, form: str, halves: tuple[str, str]) -> dict[str, Tensor]:
    """Matrices under the names that `form` makes of a `{module}` and a `{half}`."""
    return {
        form.format(module=module, half=half): tensor
        for module, pair in pairs.items()
        for half, tensor in zip(halves, pair, strict=True)
    }


def _prefixed(pairs: Pairs) -> Pairs:
    """The same as modules of a model with a projection."""
    return {
        module if module == "text_projection" else f"text_model.{module}": pair
        for module, pair in pairs.items()
    }


def _peft(pairs: Pairs) -> dict[str, Tensor]:
    return _named(pairs, "base_model.model.{module}.lora_{half}.weight", ("A", "B"))


def _diffusers(pairs: Pairs, component: str = "text_encoder") -> dict[str, Tensor]:
    form = f"{component}.{{module}}.lora_linear_layer.{{half}}.weight"
    return _named(_prefixed(pairs), form, ("down", "up"))


def _newest_diffusers(pairs: Pairs, component: str = "text_encoder") -> dict[str, Tensor]:
    return _named(_prefixed(pairs), f"{component}.{{module}}.lora_{{half}}.weight", ("A", "B"))


def _old_diffusers(pairs: Pairs) -> dict[str, Tensor]:
    return {
        re.sub(r"(\w+)_proj.lora_linear_layer", r"to_\1_lora", name): tensor
        for name, tensor in _diffusers(pairs).items()
    }


def _kohya(pairs: Pairs, prefix: str = "lora_te", alpha: float | None = None) -> dict[str, Tensor]:
    flat = {module.replace(".", "_"): pair for module, pair in _prefixed(pairs).items()}
    named = _named(flat, f"{prefix}_{{module}}.lora_{{half}}.weight", ("down", "up"))
    if alpha is not None:
        named |= {f"{prefix}_{module}.alpha": torch.tensor(alpha) for module in flat}
    return named


def _settings(**changes: Any) -> dict[str, Any]:
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "text_projection"]
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": targets} | changes


def _parts(
    file: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> tuple[AdapterPart, ...]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return parts_of(read_header(file, file.name), settings, file.name, metadata)


def _assert_merged(
    merged: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    pairs: Pairs,
    scale: Callable[[str], float],
) -> None:
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module in pairs:
            down, up = pairs[module]
            wanted = weight + scale(module) * (up @ down)
            assert (wanted - weight).abs().max() > 0.1
            torch.testing.assert_close(merged[name], wanted)
        else:
            assert torch.equal(merged[name], weight)


Case = tuple[Callable[[Pairs], dict[str, Tensor]], dict[str, Any] | None, float]
CASES: dict[str, Case] = {
    "peft": (lambda pairs: _peft(_prefixed(pairs)), _settings(), 6 / RANK),
    "peft of a bare model": (_peft, _settings(), 6 / RANK),
    "peft, rank-stabilised": (_peft, _settings(use_rslora=True), 6 / math.sqrt(RANK)),
    "peft, by pattern": (_peft, _settings(target_modules=r".*\.\w+_proj|.*\.fc\d"), 6 / RANK),
    "peft, without patterns": (_peft, _settings(rank_pattern=None, alpha_pattern={}), 6 / RANK),
    "peft, fan in fan out": (_peft, _settings(fan_in_fan_out=True), 6 / RANK),
    "diffusers": (_diffusers, None, 1.0),
    "diffusers, PEFT's names": (_newest_diffusers, None, 1.0),
    "diffusers, old names": (_old_diffusers, None, 1.0),
    "kohya": (lambda pairs: _kohya(pairs, alpha=1.5), None, 1.5 / RANK),
    "kohya, half precision alpha": (
        lambda pairs: {
            name: tensor.half() if name.endswith("alpha") else tensor
            for name, tensor in _kohya(pairs, alpha=1.5).items()
        },
        None,
        1.5 / RANK,
    ),
    "kohya, no alpha": (_kohya, None, 1.0),
    "kohya, as convolutions": (
        lambda pairs: {
            name: tensor[:, :, None, None] for name, tensor in _kohya(pairs, "lora_te1").items()
        },
        None,
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_planted_change_is_recovered_in_each_format(
    case: str, base: dict[str, Tensor], tmp_path: Path
) -> None:
    named, settings, scale = CASES[case]
    pairs = _pairs(base)
    file = tmp_path / "adapter.safetensors"
    (part,) = _parts(file, named(pairs), settings)
    assert part.component == ("" if settings else "text_encoder")
    _assert_merged(merge(base, file, part.changes), base, pairs, lambda _: scale)


@pytest.mark.parametrize(
    "tensors",
    [
        lambda first, second: (
            _diffusers(first) | _newest_diffusers(second, "text_encoder_2")
            | {"unet.mid_block.to_q.lora_A.weight": torch.ones(2, 4)}
        ),
        lambda first, second: (
            _kohya(first, "lora_te1", 3.0) | _kohya(second, "lora_te2", 3.0)
            | {"lora_unet_mid_block.lora_down.weight": torch.ones(2, 4)}
        ),
    ],
    ids=["diffusers", "kohya"],
)  # fmt: skip
def test_each_text_encoder_gets_its_own_change(
    tensors: Callable[[Pairs, Pairs], dict[str, Tensor]], base: dict[str, Tensor], tmp_path: Path
) -> None:
    other = {name: -weight for name, weight in base.items()}
    other["text_projection.weight"] = torch.ones(16, 32)
    first = _pairs(base, MODULES[:4])
    second = _pairs(other, [*MODULES[3:9], "text_projection"], seed=1)
    file = tmp_path / "adapter.safetensors"
    parts = _parts(file, tensors(first, second))
    assert [part.component for part in parts] == ["text_encoder", "text_encoder_2"]
    for part, weights, pairs in zip(parts, (base, other), (first, second), strict=True):
        _assert_merged(merge(weights, file, part.changes), weights, pairs, lambda _: 1.0)


def test_rank_and_alpha_patterns_scale_their_modules(
    base: dict[str, Tensor], tmp_path: Path
) -> None:
    ranks = {"mlp.fc1": 2, "self_attn.q_proj": 5}
    pairs = _pairs(base, rank=lambda module: ranks.get(module.split(".", 3)[3], RANK))
    settings = _settings(
        rank_pattern={r"mlp\.fc1": 2, "q_proj": 5},
        alpha_pattern={"^encoder.layers.1.mlp.fc1": 10, "fc1": 7, "c2": 100, "layers.0.mlp.fc2": 1},
    )
    alphas = {
        "encoder.layers.0.mlp.fc1": 7,
        "encoder.layers.1.mlp.fc1": 10,
        "encoder.layers.0.mlp.fc2": 1,
    }
    file = tmp_path / "adapter_model.safetensors"
    (part,) = _parts(file, _peft(pairs), settings)
    _assert_merged(
        merge(base, file, part.changes),
        base,
        pairs,
        lambda module: alphas.get(module, 6) / len(pairs[module][0]),
    )


def test_diffusers_takes_the_scale_from_the_header_of_the_file(
    base: dict[str, Tensor], tmp_path: Path
) -> None:
    pairs = _pairs(base, MODULES[:2])
    stated = {f"text_encoder.{key}": value for key, value in _settings(lora_alpha=12).items()}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    metadata = {EMBEDDED: json.dumps(stated | {"unet.lora_alpha": 99})}
    (part,) = _parts(file, _diffusers(pairs), metadata=metadata)
    _assert_merged(merge(base, file, part.changes), base, pairs, lambda _: 12 / RANK)


def test_merged_weights_make_a_tower(base: dict[str, Tensor], tmp_path: Path) -> None:
    folder = save(make_model(3), tmp_path / "base", "projected")
    config, architecture = read_config(folder), "CLIPTextModelWithProjection"
    tensors = read_weights(weight_files(folder), config, architecture)
    pairs = _pairs(tensors, ["encoder.layers.1.mlp.fc2", "text_projection"])
    file = tmp_path / "adapter.safetensors"
    (part,) = _parts(file, _peft(_prefixed(pairs)), _settings())
    merged = merge(tensors, file, part.changes)
    changed = build_tower(dict(merged), config, architecture, folder, CPU)
    plain = build_tower(dict(tensors), config, architecture, folder, CPU)
    before, after = (tower.state_dict() for tower in (plain, changed))
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert len(moved) == 2


def test_base_stays_as_it_is(base: dict[str, Tensor], tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in base.items()}
    file = tmp_path / "adapter.safetensors"
    (part,) = _parts(file, _kohya(_pairs(base)))
    merge(base, file, part.changes)
    assert all(torch.equal(base[name], weight) for name, weight in before.items())


CHANGE = LowRank("encoder.layers.0.mlp.fc1", "down", "up")


def _merge_one(
    base: Mapping[str, Tensor], folder: Path, change: LowRank = CHANGE, **tensors: Tensor
) -> dict[str, Tensor]:
    file = folder / "adapter.safetensors"
    held = {"down": torch.ones(RANK, 32), "up": torch.ones(64, RANK), "alpha": torch.tensor(1.0)}
    save_file(held | tensors, file)
    return merge(base, file, [change])


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"down": torch.ones(RANK, 31)}, "down"),
        ({"up": torch.ones(65, RANK)}, "up"),
        ({"up": torch.ones(64, RANK + 1)}, "up"),
        ({"down": torch.ones(RANK, 32, 1)}, "down"),
        ({"up": torch.ones(64, RANK, 3, 3)}, "up"),
        ({"down": torch.ones(32)}, "down"),
        ({"down": torch.ones(0, 32), "up": torch.ones(64, 0)}, "down"),
        ({"alpha": torch.ones(2)}, "alpha"),
    ],
)
def test_shapes_that_do_not_fit_the_base_are_refused(
    tensors: dict[str, Tensor], named: str, base: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(WeightsMismatchError, match=named):
        _merge_one(base, tmp_path, replace(CHANGE, alpha="alpha"), **tensors)


@pytest.mark.parametrize("module", ["encoder.layers.7.mlp.fc1", "text_projection", "head"])
def test_module_that_the_base_lacks_is_refused(
    module: str, base: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(WeightsMismatchError, match=module):
        _merge_one(base, tmp_path, replace(CHANGE, module=module))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["down", "up", "alpha"])
def test_values_that_are_not_finite_are_refused(
    name: str, value: float, base: dict[str, Tensor], tmp_path: Path
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"down": (RANK, 32), "up": (64, RANK), "alpha": ()}
    broken = torch.ones(shapes[name])
    broken.flatten()[-1] = value
    with pytest.raises(CorruptWeightsError, match=name):
        _merge_one(base, tmp_path, replace(CHANGE, alpha="alpha"), **{name: broken})


def test_change_that_overflows_is_refused(base: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CorruptWeightsError, match="overflows"):
        _merge_one(
            base, tmp_path, down=torch.full((RANK, 32), 1e30), up=torch.full((64, RANK), 1e30)
        )


def test_alphas_that_differ_between_modules_are_refused(
    base: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors = _kohya(_pairs(base), alpha=2.0)
    tensors["lora_te_text_model_encoder_layers_1_mlp_fc1.alpha"] = torch.tensor(1.0)
    file = tmp_path / "adapter.safetensors"
    (part,) = _parts(file, tensors)
    with pytest.raises(WeightsMismatchError, match=r"layers_1_mlp_fc1\.alpha"):
        merge(base, file, part.changes)


def test_tensor_that_is_not_in_the_file_is_refused(base: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="elsewhere"):
        _merge_one(base, tmp_path, replace(CHANGE, down="elsewhere"))


def test_file_that_is_no_safetensors_file_is_refused(
    base: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(MalformedFileError, match=r"adapter\.safetensors"):
        merge(base, file, [CHANGE])
