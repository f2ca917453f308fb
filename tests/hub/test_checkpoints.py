"""Text towers in files without a config, known by the names and shapes of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.checkpoints import FoundTower, find_towers
from hf_amdet.hub.client import Hub
from hf_amdet.hub.download import read_tensors
from hf_amdet.hub.files import TensorInfo
from tests.hub.expected import Layout, Tower, check
from tests.hub.models import (
    CONTEXT,
    ROWS,
    WIDTH,
    Shapes,
    as_json,
    clip,
    config,
    file,
    open_clip,
    other,
    siglip,
)
from tests.hub_double import HubDouble

FILE = "checkpoint.safetensors"
T5 = other("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight")
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {"layers": 12},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 512,
            "heads": 8,
            "layers": 12,
        },
    },
    "preprocess_cfg": {},
}


def _found(shapes: Shapes, open_clip_config: Any = None) -> list[FoundTower]:
    header = {name: TensorInfo("F16", shape, (0, 0)) for name, shape in shapes.items()}
    return list(find_towers(header, FILE, open_clip_config))


def _one(shapes: Shapes, open_clip_config: Any = None) -> FoundTower:
    (found,) = _found(shapes, open_clip_config)
    return found


def _settings(**changes: Any) -> dict[str, Any]:
    """An open_clip_config.json with other entries in its text_cfg."""
    model = OPEN_CLIP_CONFIG["model_cfg"]
    return {"model_cfg": {**model, "text_cfg": {**model["text_cfg"], **changes}}}


def _tower(architecture: str = "CLIPTextModel", **rest: str) -> Tower:
    return Tower(architecture, (FILE,), **rest)  # type: ignore[arg-type]


PROJECTED = "CLIPTextModelWithProjection"
SINGLE_FILES = {
    "SD 1": Layout(
        {FILE: file(clip("cond_stage_model.transformer.text_model."), other())},
        {FILE: _tower(prefix="cond_stage_model.transformer.")},
    ),
    "SD 1 of old": Layout(
        {FILE: file(clip("cond_stage_model.transformer."), other())},
        {FILE: _tower(prefix="cond_stage_model.transformer.")},
    ),
    "SD 2": Layout(
        {FILE: file(open_clip("cond_stage_model.model.", 24), other())},
        {FILE: _tower(PROJECTED, prefix="cond_stage_model.model.", dialect="open_clip")},
    ),
    "SDXL": Layout(
        {
            FILE: file(
                clip("conditioner.embedders.0.transformer.text_model."),
                open_clip("conditioner.embedders.1.model."),
                other(),
            )
        },
        {
            f"{FILE}#conditioner.embedders.0.transformer.": _tower(
                prefix="conditioner.embedders.0.transformer."
            ),
            f"{FILE}#conditioner.embedders.1.model.": _tower(
                PROJECTED, prefix="conditioner.embedders.1.model.", dialect="open_clip"
            ),
        },
    ),
    "SDXL refiner": Layout(
        {FILE: file(open_clip("conditioner.embedders.0.model."), other())},
        {FILE: _tower(PROJECTED, prefix="conditioner.embedders.0.model.", dialect="open_clip")},
    ),
    "SD 3 with its encoders": Layout(
        {
            FILE: file(
                clip("text_encoders.clip_l.transformer.text_model.", projected=True),
                clip("text_encoders.clip_g.transformer.text_model.", projected=True),
                T5,
                other("model.diffusion_model.x"),
            )
        },
        {
            f"{FILE}#text_encoders.clip_{which}.transformer.": _tower(
                PROJECTED, prefix=f"text_encoders.clip_{which}.transformer."
            )
            for which in "gl"
        },
    ),
    "FLUX with its encoders": Layout(
        {FILE: file(clip("text_encoders.clip_l.transformer.text_model."), T5)},
        {FILE: _tower(prefix="text_encoders.clip_l.transformer.")},
    ),
    "bare encoders of ComfyUI": Layout(
        {
            "text_encoders/clip_l.safetensors": file(clip()),
            "text_encoders/clip_g.safetensors": file(clip(projected=True)),
            "text_encoders/flat.safetensors": file(clip("")),
            "text_encoders/t5xxl_fp16.safetensors": file(other("encoder.block.0.x")),
        },
        {
            "text_encoders/clip_l.safetensors": Tower(
                "CLIPTextModel", ("text_encoders/clip_l.safetensors",)
            ),
            "text_encoders/clip_g.safetensors": Tower(
                PROJECTED, ("text_encoders/clip_g.safetensors",)
            ),
            "text_encoders/flat.safetensors": Tower(
                "CLIPTextModel", ("text_encoders/flat.safetensors",)
            ),
        },
        other=(("", "No text tower in 'text_encoders/t5xxl_fp16.safetensors'."),),
    ),
    "a whole CLIP of the original names, and one of transformers'": Layout(
        {
            "ViT-L-14-ft.safetensors": file(open_clip(), other("visual.proj", "logit_scale")),
            "ViT-L-14-HF.safetensors": file(
                clip(projected=True), other("vision_model.x", "visual_projection.weight")
            ),
        },
        {
            "ViT-L-14-ft.safetensors": Tower(
                PROJECTED, ("ViT-L-14-ft.safetensors",), dialect="open_clip"
            ),
            "ViT-L-14-HF.safetensors": Tower(PROJECTED, ("ViT-L-14-HF.safetensors",)),
        },
    ),
    "LongCLIP of the original names": Layout(
        {FILE: file(open_clip(), {"positional_embedding_res": (CONTEXT, WIDTH)})},
        {FILE: _tower(PROJECTED, dialect="open_clip")},
    ),
    "SigLIP without a config": Layout(
        {FILE: file(siglip(), other("vision_model.x"))}, {FILE: _tower("SiglipTextModel")}
    ),
    "a vision tower alone": Layout(
        {FILE: file(other("cond_stage_model.model.visual.proj", "visual.positional_embedding"))},
        other=(("", f"No text tower in '{FILE}'."),),
    ),
    "a text tower with a layer missing": Layout(
        {FILE: file({n: s for n, s in clip(layers=3).items() if ".layers.1." not in n})},
        unreadable=((FILE, None, "malformed_file", "no complete stack of text layers"),),
    ),
    "OpenCLIP beside the model that transformers reads": Layout(
        {
            "config.json": config("clip", "CLIPModel"),
            "model.safetensors": file(clip(projected=True), other("vision_model.x")),
            "open_clip_config.json": as_json(OPEN_CLIP_CONFIG),
            "open_clip_model.safetensors": file(open_clip(), other("visual.proj")),
            "open_clip_pytorch_model.bin": b"x",
        },
        {
            "": Tower("CLIPModel", ("model.safetensors",), (), ("config.json",)),
            "open_clip_model.safetensors": Tower(
                PROJECTED,
                ("open_clip_model.safetensors",),
                (),
                ("open_clip_config.json",),
                dialect="open_clip",
            ),
        },
        other=(("", "'open_clip_pytorch_model.bin'"),),
    ),
    "OpenCLIP of a custom text model": Layout(
        {
            "open_clip_config.json": as_json(OPEN_CLIP_CONFIG),
            "open_clip_model.safetensors": file(open_clip("text.")),
        },
        {
            "open_clip_model.safetensors": Tower(
                PROJECTED,
                ("open_clip_model.safetensors",),
                (),
                ("open_clip_config.json",),
                "text.",
                "open_clip",
            )
        },
    ),
    "OpenCLIP with settings of its own": Layout(
        {
            "open_clip_config.json": as_json(_settings(no_causal_mask=True)),
            "open_clip_model.safetensors": file(open_clip()),
        },
        unreadable=(("open_clip_model.safetensors", None, "malformed_file", "'no_causal_mask'"),),
    ),
}


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_the_towers_of_a_file_are_found(name: str, hub: HubDouble, at: Hub, tmp_path: Path) -> None:
    for repo in check(SINGLE_FILES[name], hub, at, tmp_path / "local"):
        for tower in repo.towers:
            assert any(tensor.startswith(tower.prefix) for tensor in read_tensors(repo, tower, at))


def test_the_sizes_are_those_of_the_shapes() -> None:
    sizes = {
        "vocab_size": ROWS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "max_position_embeddings": CONTEXT,
    }
    for shapes in (clip("any.text_model.", 3), open_clip("any.", 3), siglip("any.", 3)):
        found = _one(shapes)
        assert {name: found.config[name] for name in sizes} == sizes


@pytest.mark.parametrize(
    ("width", "heads", "activation"),
    [(512, 8, "quick_gelu"), (768, 12, "quick_gelu"), (1024, 16, "gelu"), (1280, 20, "gelu")],
)
def test_heads_and_activation_are_those_of_the_known_towers_of_a_width(
    width: int, heads: int, activation: str
) -> None:
    for shapes in (clip(layers=1), open_clip(layers=1)):
        resized = {
            name: tuple(width if size == WIDTH else size for size in shape)
            for name, shape in shapes.items()
        }
        found = _one(resized)
        assert found.config["num_attention_heads"] == heads
        assert found.config["hidden_act"] == activation
        assert found.config["eos_token_id"] == 2


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1152, 16)])
def test_the_heads_of_siglip_are_those_of_its_width(width: int, heads: int) -> None:
    resized = {
        name: tuple(width if size == WIDTH else size for size in shape)
        for name, shape in siglip(layers=1).items()
    }
    found = _one(resized)
    assert found.architecture == "SiglipTextModel"
    assert found.config["num_attention_heads"] == heads
    assert found.config["projection_size"] == width


@pytest.mark.parametrize(
    ("quick_gelu", "activation"), [(True, "quick_gelu"), (False, "gelu"), (None, "gelu")]
)
def test_openclips_config_decides_on_heads_and_activation(
    quick_gelu: bool | None, activation: str
) -> None:
    settings = _settings(heads=16)
    if quick_gelu is not None:
        settings["model_cfg"]["quick_gelu"] = quick_gelu
    found = _one(open_clip(), settings)
    assert (found.config["num_attention_heads"], found.config["hidden_act"]) == (16, activation)
    assert found.config["hidden_size"] == WIDTH


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hf_model_name", "roberta-base"),
        ("hf_tokenizer_name", "timm/ViT-B-16-SigLIP"),
        ("embed_cls", True),
        ("pool_type", "last"),
        ("proj_bias", True),
        ("act_kwargs", {"approximate": "tanh"}),
        ("text_arch", "modern"),
        ("\x1b[2J", 1),
    ],
)
def test_settings_of_openclip_that_are_not_known_are_refused_by_name(
    setting: str, value: Any
) -> None:
    with pytest.raises(MalformedFileError, match="text_cfg sets") as caught:
        _found(open_clip(), _settings(**{setting: value}))
    assert ascii(setting) in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"model_cfg": []}, {"model_cfg": {"text_cfg": None}}, {"model_cfg": {"embed_dim": 1}}],
)
def test_an_openclip_config_without_a_text_model_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MalformedFileError, match="no model_cfg with a text_cfg"):
        _found(open_clip(), settings)


def test_an_activation_that_is_no_yes_or_no_is_refused() -> None:
    settings = _settings()
    settings["model_cfg"]["quick_gelu"] = "false"
    with pytest.raises(MalformedFileError, match="quick_gelu is 'false'"):
        _found(open_clip(), settings)


@pytest.mark.parametrize(
    "tensor",
    [
        "cls_emb",
        "text_projection.bias",
        "transformer.resblocks.0.ls_1.gamma",
        "transformer.resblocks.1.attn.q_norm.weight",
        "transformer.resblocks.0.mlp.c_fc.theta",
        "transformer.resblocks.0.attn.in_proj_weight.x",
        "transformer.resblocks.0.ln_3.weight",
    ],
)
def test_tensors_of_other_text_models_of_openclip_are_refused_by_name(tensor: str) -> None:
    for prefix in ("", "text."):
        with pytest.raises(MalformedFileError, match=f"holds '{tensor}'"):
            _found({**open_clip(prefix), f"{prefix}{tensor}": (WIDTH,)})


@pytest.mark.parametrize("tensor", ["attn_mask", "logit_scale", "visual.ls_1.gamma"])
def test_tensors_that_change_no_text_are_let_pass(tensor: str) -> None:
    assert _one({**open_clip(), tensor: (WIDTH,)}).dialect == "open_clip"


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("text_model.embeddings.token_embedding.weight", (ROWS,)),
        ("text_model.embeddings.position_embedding.weight", (CONTEXT, WIDTH, 1)),
        ("text_model.embeddings.position_embedding.weight", None),
        ("text_model.encoder.layers.0.mlp.fc1.weight", ()),
    ],
)
def test_shapes_that_make_no_tower_are_refused_by_name(
    tensor: str, shape: tuple[int, ...] | None
) -> None:
    shapes = {**clip(), tensor: shape}
    with pytest.raises(MalformedFileError, match="looks like it holds a text tower") as caught:
        _found({name: size for name, size in shapes.items() if size is not None})
    assert tensor.removeprefix("text_model.") in str(caught.value)


def test_a_file_of_more_towers_than_a_pipeline_has_is_refused() -> None:
    prefixes = [f"{number}.text_model." for number in range(9)]
    towers = [clip(prefix, 1) for prefix in prefixes]
    assert len(_found({k: v for tower in towers[:8] for k, v in tower.items()})) == 8
    with pytest.raises(MalformedFileError, match="9 tables of tokens"):
        _found({k: v for tower in towers for k, v in tower.items()})


def test_a_stack_of_a_million_layers_with_gaps_is_refused() -> None:
    tables = {n: s for n, s in clip(layers=1).items() if ".layers." not in n}
    for numbers in ((0, 999_999), range(0, 200_000, 2)):
        layers = {f"text_model.encoder.layers.{n}.mlp.fc1.weight": (2, 2) for n in numbers}
        with pytest.raises(MalformedFileError, match="no complete stack"):
            _found({**tables, **layers})
