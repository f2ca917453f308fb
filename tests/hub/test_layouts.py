"""Folders and adapters of real repos, each with everything that is to be said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_amdet.hub import layouts as layouts_module
from hf_amdet.hub.client import Hub
from hf_amdet.hub.resolve import resolve
from tests.hub import write
from tests.hub.expected import Layout, Tower, check
from tests.hub.models import (
    BPE,
    WIDTH,
    as_json,
    clip,
    config,
    file,
    low_rank,
    other,
    sharded,
    siglip,
    within,
)
from tests.hub_double import HubDouble

CLIP_CONFIG = config("clip_text_model", "CLIPTextModel")
PROJECTED_CONFIG = config("clip_text_model", "CLIPTextModelWithProjection")
WEIGHTS = file(clip())
TEXT = {"config.json": CLIP_CONFIG, "model.safetensors": WEIGHTS}
TEXT_2 = {"config.json": PROJECTED_CONFIG, "model.safetensors": file(clip(projected=True))}
SPIECE = {"spiece.model": b"x", "tokenizer_config.json": b"{}"}
CARD = b"---\nbase_model: org/base\n---\n# LoRA\n"

MODULE = "text_model.encoder.layers.0.self_attn.q_proj"
PEFT = file(
    low_rank(f"base_model.model.{MODULE}.lora_A.weight", f"base_model.model.{MODULE}.lora_B.weight")
)
DIFFUSERS = file(
    low_rank(
        f"text_encoder.{MODULE}.lora_A.weight",
        f"text_encoder.{MODULE}.lora_B.weight",
        f"text_encoder_2.{MODULE}.lora_A.weight",
        f"text_encoder_2.{MODULE}.lora_B.weight",
        "unet.mid_block.attentions.0.lora_A.weight",
        "unet.mid_block.attentions.0.lora_B.weight",
    )
)
KOHYA_MODULE = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
KOHYA = file(
    low_rank(
        f"{KOHYA_MODULE}.lora_down.weight",
        f"{KOHYA_MODULE}.lora_up.weight",
        f"{KOHYA_MODULE}.alpha",
    )
)
UNET_LORA = file(low_rank("unet.mid.lora_A.weight", "unet.mid.lora_B.weight"))


def _settings(**changes: object) -> bytes:
    """An adapter_config.json."""
    return as_json(
        {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": "org/base",
            **changes,
        }
    )


def _bpe(folder: str = "") -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" if folder else name for name in BPE)


def _tower(folder: str, architecture: str, tokenizer: str) -> Tower:
    """A folder with a single weight file."""
    return Tower(
        architecture,
        (f"{folder}/model.safetensors",),
        _bpe(tokenizer),
        (f"{folder}/config.json",),
    )


def _shards(pattern: str) -> tuple[str, str]:
    return pattern.format(1), pattern.format(2)


PLAIN = _shards("model-0000{}-of-00002.safetensors")
FP16 = _shards("model.fp16-0000{}-of-00002.safetensors")
OLD_FP16 = _shards("model-0000{}-of-00002.fp16.safetensors")
INDEX = "model.safetensors.index.json"
FP16_INDEX = "model.safetensors.index.fp16.json"
OLD_FP16_INDEX = "model.safetensors.fp16.index.json"

FOLDERS = {
    "a text encoder without a pipeline": Layout(
        {**within("text_encoder_2", TEXT_2), **within("tokenizer_2", BPE)},
        {"text_encoder_2": _tower("text_encoder_2", "CLIPTextModelWithProjection", "tokenizer_2")},
    ),
    "sentence-transformers": Layout(
        {
            "modules.json": as_json(
                [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "models.CLIPModel"}]
            ),
            "config_sentence_transformers.json": b"{}",
            **within("0_CLIPModel", {**TEXT, "config.json": config("clip", "CLIPModel"), **BPE}),
            "0_CLIPModel/pytorch_model.bin": b"x",
        },
        {"0_CLIPModel": _tower("0_CLIPModel", "CLIPModel", "0_CLIPModel")},
        other=(("", "'0_CLIPModel/pytorch_model.bin'"),),
    ),
    "sentence-transformers at the root, with a dense layer": Layout(
        {
            "modules.json": as_json([{"idx": 0, "name": "0", "path": ""}]),
            **TEXT,
            "config.json": config("clip", "CLIPModel"),
            **BPE,
            "1_Dense/config.json": as_json({"in_features": 4}),
            "1_Dense/model.safetensors": file(other("linear.weight")),
        },
        {"": Tower("CLIPModel", ("model.safetensors",), _bpe(""), ("config.json",))},
        other=(("1_Dense", "without architecture in '1_Dense'"),),
    ),
    "LongCLIP in a folder": Layout(
        within(
            "long/clip",
            {
                "config.json": config("clip", "CLIPModel", max_position_embeddings=248),
                "model.safetensors": file(clip(projected=True), other("vision_model.x")),
                **BPE,
            },
        ),
        {"long/clip": _tower("long/clip", "CLIPModel", "long/clip")},
    ),
    "SigLIP": Layout(
        {
            "config.json": config("siglip"),
            "model.safetensors": file(siglip()),
            **SPIECE,
            "tokenizer.json": b"{}",
            "preprocessor_config.json": b"{}",
        },
        {
            "": Tower(
                "SiglipModel",
                ("model.safetensors",),
                ("tokenizer.json", "spiece.model", "tokenizer_config.json"),
                ("config.json",),
            )
        },
    ),
    "SigLIP 2 of fixed resolution": Layout(
        {
            "config.json": config("siglip", "SiglipModel"),
            "model.safetensors": file(siglip()),
            "tokenizer.json": b"{}",
            "tokenizer.model": b"x",
        },
        {"": Tower("SiglipModel", ("model.safetensors",), ("tokenizer.json",), ("config.json",))},
    ),
    "SigLIP 2 NaFlex": Layout(
        {
            "config.json": config("siglip2", "Siglip2Model"),
            "model.safetensors": file(siglip()),
            "tokenizer.json": b"{}",
        },
        {"": Tower("Siglip2Model", ("model.safetensors",), ("tokenizer.json",), ("config.json",))},
    ),
    "a repo of pickles": Layout(
        {"README.md": b"#", "model.ckpt": b"x", "sub/pytorch_model.bin": b"x"},
        unreadable=(("", None, "pickle_only", "'model.ckpt'"),),
    ),
    "a repo with nothing": Layout(
        {"README.md": b"#", ".gitattributes": b""},
        other=(("", "holds no model in a layout that is known here"),),
    ),
    "a language model of pickles and safetensors": Layout(
        {
            "config.json": config("llama", "LlamaForCausalLM"),
            "model.safetensors": file(other("model.embed_tokens.weight")),
            "pytorch_model.bin": b"x",
        },
        other=(("", "Architecture 'LlamaForCausalLM'"), ("", "'pytorch_model.bin'")),
    ),
    "shards of every spelling, each set a tower": Layout(
        {
            "config.json": CLIP_CONFIG,
            **BPE,
            **sharded(clip(), PLAIN, INDEX),
            **sharded(clip(), FP16, FP16_INDEX),
            **sharded(clip(), OLD_FP16, OLD_FP16_INDEX),
        },
        {
            "": Tower("CLIPTextModel", PLAIN, _bpe(), ("config.json", INDEX)),
            FP16_INDEX: Tower("CLIPTextModel", FP16, _bpe(), ("config.json", FP16_INDEX)),
            OLD_FP16_INDEX: Tower(
                "CLIPTextModel", OLD_FP16, _bpe(), ("config.json", OLD_FP16_INDEX)
            ),
        },
    ),
    "a broken index beside a variant that can be read": Layout(
        {
            "config.json": CLIP_CONFIG,
            PLAIN[0]: WEIGHTS,
            INDEX: b"{}",
            "model.fp16.safetensors": WEIGHTS,
        },
        {
            "model.fp16.safetensors": Tower(
                "CLIPTextModel", ("model.fp16.safetensors",), (), ("config.json",)
            )
        },
        unreadable=(("", "CLIPTextModel", "malformed_file", "has no weight_map"),),
    ),
    "shards without an index": Layout(
        {"config.json": CLIP_CONFIG, PLAIN[0]: WEIGHTS, PLAIN[1]: WEIGHTS},
        unreadable=(("", "CLIPTextModel", "no_text_tower", "neither model.safetensors nor"),),
    ),
    "a config beside weights of another name": Layout(
        {"config.json": CLIP_CONFIG, **BPE, "clip_l.safetensors": WEIGHTS},
        {"clip_l.safetensors": Tower("CLIPTextModel", ("clip_l.safetensors",))},
    ),
    "a weight file that no loader takes beside one that all take": Layout(
        {**TEXT, "model-ema.safetensors": WEIGHTS},
        {
            "": Tower("CLIPTextModel", ("model.safetensors",), (), ("config.json",)),
            "model-ema.safetensors": Tower("CLIPTextModel", ("model-ema.safetensors",)),
        },
    ),
}

ADAPTERS = {
    "PEFT": Layout(
        {"adapter_config.json": _settings(), "adapter_model.safetensors": PEFT},
        adapters=(("adapter_model.safetensors", "org/base", None, ("",)),),
    ),
    "PEFT with a revision, in a folder, and the card names another": Layout(
        {
            "README.md": b"---\nbase_model: org/other\n---\n",
            "lora/adapter_config.json": _settings(revision="v1"),
            "lora/adapter_model.safetensors": PEFT,
        },
        adapters=(("lora/adapter_model.safetensors", "org/base", "v1", ("",)),),
    ),
    "PEFT of pickles": Layout(
        {"adapter_config.json": _settings(), "adapter_model.bin": b"x"},
        unreadable=(("adapter_config.json", None, "pickle_only", "adapter_model.bin"),),
    ),
    "PEFT settings without weights": Layout(
        {"adapter_config.json": _settings()},
        unreadable=(("adapter_config.json", None, "no_text_tower", "no adapter_model"),),
    ),
    "PEFT whose base is only in the card": Layout(
        {
            "README.md": CARD,
            "adapter_config.json": _settings(
                base_model_name_or_path="/home/me/base", revision="v1"
            ),
            "adapter_model.safetensors": PEFT,
        },
        adapters=(("adapter_model.safetensors", "org/base", None, ("",)),),
    ),
    "PEFT beside a whole model": Layout(
        {**TEXT, "adapter_config.json": _settings(), "adapter_model.safetensors": PEFT},
        unreadable=(("", "CLIPTextModel", "malformed_file", "beside the model"),),
        adapters=(("adapter_model.safetensors", "org/base", None, ("",)),),
    ),
    "diffusers": Layout(
        {"README.md": CARD, "pytorch_lora_weights.safetensors": DIFFUSERS},
        adapters=(
            (
                "pytorch_lora_weights.safetensors",
                "org/base",
                None,
                ("text_encoder", "text_encoder_2"),
            ),
        ),
    ),
    "kohya": Layout(
        {"README.md": CARD, "my_style.safetensors": KOHYA},
        adapters=(("my_style.safetensors", "org/base", None, ("text_encoder",)),),
    ),
    "no base is named": Layout(
        {"README.md": b"# LoRA", "my_style.safetensors": KOHYA},
        unreadable=(("my_style.safetensors", None, "no_base", "Name it as base_model"),),
    ),
    "two bases are named": Layout(
        {
            "README.md": b"---\nbase_model: [org/a, org/b]\n---\n",
            "my_style.safetensors": KOHYA,
        },
        unreadable=(("my_style.safetensors", None, "no_base", "Name it as base_model"),),
    ),
    "of the U-Net alone": Layout(
        {"README.md": CARD, "unet_lora.safetensors": UNET_LORA},
        other=(("unet_lora.safetensors", "changes no text tower"),),
    ),
    "of another method": Layout(
        {
            "README.md": CARD,
            "loha.safetensors": file({f"{KOHYA_MODULE}.hada_w1_a": (WIDTH, 2)}),
        },
        unreadable=(("loha.safetensors", None, "malformed_file", "part of a LoHa"),),
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_found_with_everything_that_is_in_it(
    name: str, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    check(FOLDERS[name], hub, at, tmp_path / "local")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_found_with_its_base(
    name: str, hub: HubDouble, at: Hub, tmp_path: Path
) -> None:
    check(ADAPTERS[name], hub, at, tmp_path / "local")


def test_the_card_is_read_once_for_all_adapters(hub: HubDouble, at: Hub) -> None:
    hub.add_repo("org/model", {"README.md": CARD, **{f"{n}.safetensors": KOHYA for n in "abc"}})
    assert len(resolve("org/model", at).adapters) == 3
    assert sum("README.md" in request.path for request in hub.requests) == 1


LIMITS = [
    ("MAX_FOLDERS", "pipelines", {"model_index.json": b"{}", "x.safetensors": WEIGHTS}),
    ("MAX_FOLDERS", "folders with models", TEXT),
    (
        "MAX_FOLDERS",
        "folders with adapters",
        {"adapter_config.json": _settings(), "adapter_model.safetensors": PEFT},
    ),
    ("MAX_LOOSE_FILES", "weight files", {"x.safetensors": WEIGHTS}),
]


@pytest.mark.parametrize(("limit", "what", "files"), LIMITS)
def test_what_is_above_the_limits_is_named_and_not_read(
    limit: str,
    what: str,
    files: dict[str, bytes],
    hub: HubDouble,
    at: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layouts_module, limit, 2)
    tree = {path: data for n in "abcde" for path, data in within(n, files).items()}
    hub.add_repo("org/model", tree)
    for target in ("org/model", str(write(tree, tmp_path / "local"))):
        repo = resolve(target, at)
        assert len(repo.towers) + len(repo.adapters) == 2
        (rest,) = repo.unreadable
        assert rest.code == "too_many"
        assert rest.message.startswith(f"3 more {what} were not looked into: 'c")
        assert repo.out_of_scope == ()
    assert not [request for request in hub.requests if "/c/" in request.path]
