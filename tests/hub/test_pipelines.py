"""The pipelines of real repos, each with everything that is to be said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_amdet.hub.client import Hub
from hf_amdet.hub.resolve import resolve
from tests.hub.expected import Layout, Tower, check
from tests.hub.models import (
    BPE,
    clip,
    config,
    file,
    other,
    pipeline,
    sharded,
    within,
)
from tests.hub_double import HubDouble

CLIP = ("transformers", "CLIPTextModel")
PROJECTED = ("transformers", "CLIPTextModelWithProjection")
TOKENIZER = ("transformers", "CLIPTokenizer")
T5 = ("transformers", "T5EncoderModel")
T5_TOKENIZER = ("transformers", "T5TokenizerFast")
ABSENT = (None, None)

CLIP_CONFIG = config("clip_text_model", "CLIPTextModel")
PROJECTED_CONFIG = config("clip_text_model", "CLIPTextModelWithProjection")
WEIGHTS = file(clip())
TEXT = {"config.json": CLIP_CONFIG, "model.safetensors": WEIGHTS}
TEXT_2 = {"config.json": PROJECTED_CONFIG, "model.safetensors": file(clip(projected=True))}
FP16 = {"model.fp16.safetensors": file(clip(), dtype="fp16")}
LARGE = {
    "config.json": config("t5", "T5EncoderModel"),
    **sharded(
        other("encoder.a", "shared.weight"),
        ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "model.safetensors.index.json",
    ),
}
SPIECE = {"spiece.model": b"x", "tokenizer_config.json": b"{}"}
UNET = ("", "'unet' ('UNet2DConditionModel')")


def _bpe(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" if folder else name for name in BPE)


def _text(
    component: str = "text_encoder",
    architecture: str = "CLIPTextModel",
    weights: str = "model.safetensors",
    tokenizer: str | None = None,
) -> Tower:
    """A component of a pipeline, with the tokenizer of its number."""
    folder = component.replace("text_encoder", "tokenizer") if tokenizer is None else tokenizer
    return Tower(
        architecture,
        (f"{component}/{weights}",),
        _bpe(folder),
        (f"{component}/config.json",),
    )


PIPELINES = {
    "SD 1.5 with its checker, variants and a checkpoint": Layout(
        {
            **pipeline(
                {
                    "text_encoder": CLIP,
                    "tokenizer": TOKENIZER,
                    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
                    "feature_extractor": ("transformers", "CLIPImageProcessor"),
                    "requires_safety_checker": (None, None),
                },
                text_encoder={**TEXT, **FP16, "pytorch_model.bin": b"x"},
                tokenizer={**BPE, "special_tokens_map.json": b"{}"},
                safety_checker={
                    "config.json": config("clip", "StableDiffusionSafetyChecker"),
                    "model.safetensors": file(other()),
                },
                feature_extractor={"preprocessor_config.json": b"{}"},
            ),
            "v1-5-pruned-emaonly.ckpt": b"x",
            "README.md": b"# SD\n",
        },
        {
            "text_encoder": Tower(
                "CLIPTextModel",
                ("text_encoder/model.safetensors",),
                (*_bpe("tokenizer"), "tokenizer/special_tokens_map.json"),
                ("text_encoder/config.json",),
            ),
            "text_encoder/model.fp16.safetensors": Tower(
                "CLIPTextModel",
                ("text_encoder/model.fp16.safetensors",),
                (*_bpe("tokenizer"), "tokenizer/special_tokens_map.json"),
                ("text_encoder/config.json",),
            ),
        },
        other=(
            ("", "'safety_checker' ('StableDiffusionSafetyChecker'), 'unet'"),
            ("", "run code: 'text_encoder/pytorch_model.bin'."),
        ),
        unreadable=(("", None, "pickle_only", "not read: 'v1-5-pruned-emaonly.ckpt'"),),
    ),
    "SD 2.1 with 23 layers": Layout(
        pipeline(
            {"text_encoder": CLIP, "tokenizer": TOKENIZER},
            text_encoder={
                "config.json": config("clip_text_model", "CLIPTextModel", num_hidden_layers=23),
                "model.safetensors": file(clip(layers=23)),
            },
            tokenizer=BPE,
        ),
        {"text_encoder": _text()},
        other=(UNET,),
    ),
    "SDXL": Layout(
        pipeline(
            {
                "text_encoder": CLIP,
                "text_encoder_2": PROJECTED,
                "tokenizer": TOKENIZER,
                "tokenizer_2": TOKENIZER,
            },
            text_encoder={**TEXT, **FP16},
            text_encoder_2={**TEXT_2, **FP16},
            tokenizer=BPE,
            tokenizer_2=BPE,
        ),
        {
            "text_encoder": _text(),
            "text_encoder/model.fp16.safetensors": _text(weights="model.fp16.safetensors"),
            "text_encoder_2": _text("text_encoder_2", PROJECTED[1]),
            "text_encoder_2/model.fp16.safetensors": _text(
                "text_encoder_2", PROJECTED[1], "model.fp16.safetensors"
            ),
        },
        other=(UNET,),
    ),
    "SDXL refiner": Layout(
        pipeline(
            {
                "text_encoder": ABSENT,
                "tokenizer": ABSENT,
                "text_encoder_2": PROJECTED,
                "tokenizer_2": TOKENIZER,
            },
            text_encoder_2=TEXT_2,
            tokenizer_2=BPE,
        ),
        {"text_encoder_2": _text("text_encoder_2", PROJECTED[1])},
        other=(UNET,),
    ),
    "SD 3": Layout(
        pipeline(
            {
                "text_encoder": PROJECTED,
                "text_encoder_2": PROJECTED,
                "text_encoder_3": T5,
                "tokenizer": TOKENIZER,
                "tokenizer_2": TOKENIZER,
                "tokenizer_3": T5_TOKENIZER,
            },
            text_encoder=TEXT_2,
            text_encoder_2=TEXT_2,
            text_encoder_3=LARGE,
            tokenizer=BPE,
            tokenizer_2=BPE,
            tokenizer_3=SPIECE,
        ),
        {
            "text_encoder": _text(architecture=PROJECTED[1]),
            "text_encoder_2": _text("text_encoder_2", PROJECTED[1]),
        },
        other=(("", "'text_encoder_3' ('T5EncoderModel'), 'unet'"),),
    ),
    "FLUX with its own files at the root": Layout(
        {
            **pipeline(
                {
                    "text_encoder": CLIP,
                    "text_encoder_2": T5,
                    "tokenizer": TOKENIZER,
                    "tokenizer_2": T5_TOKENIZER,
                },
                text_encoder=TEXT,
                text_encoder_2=LARGE,
                tokenizer=BPE,
                tokenizer_2=SPIECE,
            ),
            "flux1-dev.safetensors": file(other("double_blocks.0.img_attn.qkv.weight")),
            "ae.safetensors": file(other("encoder.conv_in.weight")),
        },
        {"text_encoder": _text()},
        other=(
            ("", "'text_encoder_2' ('T5EncoderModel'), 'unet'"),
            ("", "No text tower in 'ae.safetensors', 'flux1-dev.safetensors'."),
        ),
    ),
    "Kolors": Layout(
        pipeline(
            {
                "text_encoder": ("kolors", "ChatGLMModel"),
                "tokenizer": ("kolors", "ChatGLMTokenizer"),
            },
            text_encoder={**LARGE, "config.json": config("chatglm", "ChatGLMModel")},
            tokenizer={"tokenizer.model": b"x"},
        ),
        other=(("", "'text_encoder' ('ChatGLMModel'), 'unet'"),),
    ),
    "Hunyuan-DiT": Layout(
        pipeline(
            {"text_encoder": ("transformers", "BertModel"), "text_encoder_2": T5},
            text_encoder={
                "config.json": config("bert", "BertModel"),
                "model.safetensors": file(other("embeddings.word_embeddings.weight")),
            },
            text_encoder_2=LARGE,
        ),
        other=(("", "'text_encoder' ('BertModel'), 'text_encoder_2' ('T5EncoderModel'), 'unet'"),),
    ),
    "a text encoder of the repo's own code": Layout(
        pipeline(
            {"text_encoder": ("my_encoder", "MyCLIP"), "tokenizer": TOKENIZER},
            text_encoder={**TEXT, "my_encoder.py": b"import os"},
            tokenizer=BPE,
        ),
        unreadable=(("text_encoder", None, "no_text_tower", "'MyCLIP' of 'my_encoder'"),),
        other=(UNET,),
    ),
    "a text encoder that is named but not there": Layout(
        pipeline({"text_encoder": CLIP, "tokenizer": TOKENIZER}, tokenizer=BPE),
        unreadable=(
            ("text_encoder", "CLIPTextModel", "no_text_tower", "model_index.json names the text"),
        ),
        other=(UNET,),
    ),
    "a text encoder without its config": Layout(
        pipeline({"text_encoder": CLIP}, text_encoder={"model.safetensors": WEIGHTS}),
        unreadable=(("text_encoder", "CLIPTextModel", "no_text_tower", "no config.json"),),
        other=(UNET,),
    ),
    "a text encoder of pickles only": Layout(
        pipeline(
            {"text_encoder": CLIP},
            text_encoder={"config.json": CLIP_CONFIG, "pytorch_model.bin": b"x"},
        ),
        unreadable=(("text_encoder", "CLIPTextModel", "pickle_only", "pytorch_model.bin"),),
        other=(UNET,),
    ),
    "two pipelines in folders": Layout(
        {
            **within("a", pipeline({"text_encoder": CLIP}, text_encoder=TEXT, tokenizer=BPE)),
            **within("b/c", pipeline({"text_encoder_2": CLIP}, text_encoder_2=TEXT)),
        },
        {
            "a/text_encoder": Tower(
                "CLIPTextModel",
                ("a/text_encoder/model.safetensors",),
                _bpe("a/tokenizer"),
                ("a/text_encoder/config.json",),
            ),
            "b/c/text_encoder_2": Tower(
                "CLIPTextModel",
                ("b/c/text_encoder_2/model.safetensors",),
                (),
                ("b/c/text_encoder_2/config.json",),
            ),
        },
        other=(("a", "'unet' ("), ("b/c", "'unet' (")),
    ),
    "a prior with a text encoder": Layout(
        pipeline(
            {"prior_text_encoder": PROJECTED, "prior_tokenizer": TOKENIZER},
            prior_text_encoder=TEXT_2,
            prior_tokenizer=BPE,
        ),
        {"prior_text_encoder": _text("prior_text_encoder", PROJECTED[1])},
        other=(UNET,),
    ),
    "files of other names in the folders of a pipeline": Layout(
        pipeline(
            {"text_encoder": CLIP},
            text_encoder={**TEXT, "model-ema.safetensors": WEIGHTS},
            tokenizer=BPE,
            unet={
                "config.json": b"{}",
                "diffusion_pytorch_model.safetensors": file(other()),
                "clip_l.safetensors": WEIGHTS,
                "deeper/more.safetensors": file(other()),
            },
        ),
        {
            "text_encoder": _text(),
            "text_encoder/model-ema.safetensors": Tower(
                "CLIPTextModel", ("text_encoder/model-ema.safetensors",)
            ),
            "unet/clip_l.safetensors": Tower("CLIPTextModel", ("unet/clip_l.safetensors",)),
        },
        other=(UNET, ("", "No text tower in 'unet/deeper/more.safetensors'.")),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_found_with_everything_that_is_in_it(
    name: str, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    check(PIPELINES[name], hub, at, tmp_path / "local")


def test_the_index_that_decides_the_class_is_one_of_the_files(hub: HubDouble, at: Hub) -> None:
    """Else a later scan from the cache would go by the config's own word."""
    hub.add_repo("org/model", PIPELINES["SDXL"].files)
    towers = resolve("org/model", at).towers
    assert towers
    for tower in towers:
        assert [file.path for file in tower.support].count("model_index.json") == 1
