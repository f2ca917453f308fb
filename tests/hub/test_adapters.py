from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.adapters import (
    EMBEDDED,
    MAX_RANK,
    declared_base,
    declared_revision,
    is_adapter,
    parts_of,
)
from hf_amdet.hub.files import AdapterPart, LowRank, TensorInfo

FILE = "adapter_model.safetensors"
MODULE = "encoder.layers.0.self_attn.q_proj"
PEFT = f"base_model.model.text_model.{MODULE}"
DIFFUSERS = f"text_encoder.text_model.{MODULE}"
KOHYA = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}

Shapes = dict[str, tuple[int, ...]]


def _header(shapes: Mapping[str, tuple[int, ...]], **dtypes: str) -> dict[str, TensorInfo]:
    """fp32 tensors; `dtypes` are of the names that end like their keyword."""
    return {
        name: TensorInfo(
            next((dtype for end, dtype in dtypes.items() if name.endswith(end)), "F32"),
            shape,
            (0, 0),
        )
        for name, shape in shapes.items()
    }


def _parts(
    shapes: Mapping[str, tuple[int, ...]],
    settings: Any = None,
    metadata: Mapping[str, str] | None = None,
    **dtypes: str,
) -> tuple[AdapterPart, ...]:
    return parts_of(_header(shapes, **dtypes), settings, FILE, metadata)


def _refused(
    named: str,
    shapes: Mapping[str, tuple[int, ...]],
    settings: Any = None,
    metadata: Mapping[str, str] | None = None,
    **dtypes: str,
) -> None:
    with pytest.raises(MalformedFileError, match=re.escape(named)) as error:
        _parts(shapes, settings, metadata, **dtypes)
    assert FILE in str(error.value)


PEFT_PAIR: Shapes = {f"{PEFT}.lora_A.weight": (4, 32), f"{PEFT}.lora_B.weight": (32, 4)}
DIFFUSERS_PAIR: Shapes = {
    f"{DIFFUSERS}.lora_linear_layer.down.weight": (4, 32),
    f"{DIFFUSERS}.lora_linear_layer.up.weight": (32, 4),
}
KOHYA_PAIR: Shapes = {f"{KOHYA}.lora_down.weight": (4, 32), f"{KOHYA}.lora_up.weight": (32, 4)}
ELSEWHERE: Shapes = {
    "unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 8),
    "transformer.context_embedder.time_text_embed.text_embedder.lora_A.weight": (4, 8),
    "lora_unet_down_blocks_0_proj_in.lora_down.weight": (4, 8, 3, 3),
    "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": (4, 8),
    "base_model.model.visual_projection.lora_B.weight": (4, 8),
    "lora_unet_down_blocks_0_proj_in.hada_w1_a": (4, 8),
}


@pytest.mark.parametrize(
    ("pair", "settings", "component", "scale"),
    [
        (PEFT_PAIR, SETTINGS, "", 2.0),
        (DIFFUSERS_PAIR, None, "text_encoder", None),
        (KOHYA_PAIR, None, "text_encoder", None),
    ],
    ids=["peft", "diffusers", "kohya"],
)
def test_text_tower_is_found_among_other_parts(
    pair: Shapes, settings: Any, component: str, scale: float | None
) -> None:
    (part,) = _parts(ELSEWHERE | pair, settings)
    down, up = pair
    assert part == AdapterPart(component, (LowRank(MODULE, down, up, None, scale),))


def test_alpha_belongs_to_its_module() -> None:
    (part,) = _parts(KOHYA_PAIR | {f"{KOHYA}.alpha": ()})
    assert part.changes[0].alpha == f"{KOHYA}.alpha"


@pytest.mark.parametrize(
    "other",
    [
        {},
        ELSEWHERE,
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 8)},
        {"base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight": (4, 8)},
        {"down_blocks.0.attentions.0.processor.to_q_lora.down.weight": (4, 8)},
        {"diffusion_model.blocks.0.text_embedding.lora_up.weight": (4, 8)},
    ],
)
def test_adapter_of_other_parts_changes_no_text_tower(other: Shapes) -> None:
    assert _parts(other) == ()
    assert _parts(other, SETTINGS) == ()


def test_bare_names_are_a_text_towers_whatever_class_the_settings_name() -> None:
    """No loader is bound to that class: it cannot hide a change of a text tower."""
    flat = {name.replace("text_model.", ""): shape for name, shape in PEFT_PAIR.items()}
    text, vision = (
        SETTINGS | {"auto_mapping": {"base_model_class": base}}
        for base in ("CLIPTextModel", "CLIPVisionModel")
    )
    assert len(_parts(flat, text)) == 1
    with pytest.raises(MalformedFileError, match="could be one of a text tower"):
        _parts(flat, vision)


LOHA = {f"{KOHYA}.hada_{half}": (4, 32) for half in ("w1_a", "w1_b", "w2_a", "w2_b")}


@pytest.mark.parametrize(
    ("reason", "tensor", "pair", "settings"),
    [
        ("DoRA", f"{KOHYA}.dora_scale", KOHYA_PAIR, None),
        ("DoRA", f"{PEFT}.lora_magnitude_vector", PEFT_PAIR, SETTINGS),
        ("LoHa", f"{KOHYA}.hada_w1_a", {}, None),
        ("LoKr", f"{KOHYA}.lokr_w1", {}, None),
        ("OFT", f"{KOHYA}.oft_blocks", {}, None),
        ("OFT", f"{PEFT}.oft_R.weight", {}, SETTINGS | {"peft_type": "OFT"}),
        ("IA3", f"{PEFT}.ia3_l", {}, SETTINGS | {"peft_type": "IA3"}),
        ("IA3", f"{KOHYA}.on_input", {}, None),
        ("Tucker", f"{KOHYA}.lora_mid.weight", KOHYA_PAIR, None),
        ("difference", f"{KOHYA}.diff", {}, None),
        ("difference", f"{KOHYA}.diff_b", KOHYA_PAIR, None),
        ("bias", f"{PEFT}.lora_B.bias", PEFT_PAIR, SETTINGS),
        ("bias", f"{DIFFUSERS}.bias", DIFFUSERS_PAIR, None),
        (
            "embedding table",
            "base_model.model.text_model.embeddings.token_embedding.lora_embedding_A",
            PEFT_PAIR,
            SETTINGS,
        ),
        ("embedding table", "bundle_emb.style.string_to_param.*", KOHYA_PAIR, None),
        ("name that is not known", "base_model.model.text_projection.weight", PEFT_PAIR, SETTINGS),
        ("name that is not known", f"{PEFT}.weight", PEFT_PAIR, SETTINGS),
        ("name that is not known", f"{PEFT}.lora_A.default.weight", {}, SETTINGS),
        ("name that is not known", "text_encoder:0:up", {}, None),
        ("name that is not known", "lora_te3_encoder_block_0.lora_up.weight", {}, None),
        ("name that is not known", "lora_prior_te_text_model_x.lora_up.weight", {}, None),
        ("name that is not known", "text_encoders.clip_l.x.lora_up.weight", {}, None),
        ("name that is not known", "transformer.resblocks.0.attn.lora_A.weight", {}, None),
        ("name that is not known", "transformer.text_model.x.lora_A.weight", {}, None),
        ("name that is not known", f"{MODULE}.lora_A.weight", {}, None),
        ("name that is not known", f"base_model.model.0.{PEFT[17:]}.lora_A.weight", {}, SETTINGS),
        ("no module", "text_encoder_3.encoder.block.0.q.lora_A.weight", DIFFUSERS_PAIR, None),
        ("no module", "text_encoder.text_model.encoder.layers.00.mlp.fc1.alpha", {}, None),
        ("no module", "text_encoder.text_model.encoder.layers.0.mlp.fc3.alpha", {}, None),
        ("no module", "lora_te_text_model_encoder_layers_0_mlp_fc9.alpha", {}, None),
        ("no module", "lora_te_text_model_encoder_layers_0_layer_norm1.alpha", {}, None),
        ("no part of a pipeline", "strange.lora_up.weight", KOHYA_PAIR, None),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_its_name(
    reason: str, tensor: str, pair: Shapes, settings: Any
) -> None:
    _refused(reason, pair | {tensor: (4, 4)}, settings)
    _refused(ascii(tensor)[:60], pair | {tensor: (4, 4)}, settings)


@pytest.mark.parametrize("pair", [PEFT_PAIR, DIFFUSERS_PAIR, KOHYA_PAIR])
def test_half_a_pair_is_refused(pair: Shapes) -> None:
    settings = SETTINGS if pair is PEFT_PAIR else None
    for name, missing in zip(pair, ("up", "down"), strict=True):
        _refused(f"no {missing!r} matrix", {name: pair[name]}, settings)
        _refused(ascii(name)[:60], {name: pair[name]}, settings)


@pytest.mark.parametrize(
    ("down", "up", "fault"),
    [
        ((4, 32), (32, 5), "rank 5"),
        ((4, 32, 3, 3), (32, 4, 1, 1), "not a matrix"),
        ((4, 32), (32, 4, 1), "not a matrix"),
        ((4,), (32, 4), "not a matrix"),
        ((), (), "not a matrix"),
        ((0, 32), (32, 0), "not a matrix"),
        ((MAX_RANK + 1, 32), (32, MAX_RANK + 1), f"at most {MAX_RANK}"),
    ],
)
def test_shapes_that_make_no_low_rank_change_are_refused(
    down: tuple[int, ...], up: tuple[int, ...], fault: str
) -> None:
    _refused(fault, dict(zip(KOHYA_PAIR, (down, up), strict=True)))


def test_convolution_of_one_pixel_is_a_matrix() -> None:
    shapes = dict(zip(KOHYA_PAIR, ((4, 32, 1, 1), (32, 4, 1, 1)), strict=True))
    assert _parts(shapes)[0].changes == _parts(KOHYA_PAIR)[0].changes


def test_other_numbers_than_weights_are_refused() -> None:
    _refused("I8", KOHYA_PAIR, weight="I8")
    _refused("BOOL", KOHYA_PAIR | {f"{KOHYA}.alpha": ()}, alpha="BOOL")
    _refused("not a number", KOHYA_PAIR | {f"{KOHYA}.alpha": (2,)})


def test_alpha_of_only_some_modules_is_refused() -> None:
    other = {name.replace("_q_", "_k_"): shape for name, shape in KOHYA_PAIR.items()}
    _refused("k_proj.lora_down", KOHYA_PAIR | other | {f"{KOHYA}.alpha": ()})


@pytest.mark.parametrize(
    "shapes",
    [
        {**KOHYA_PAIR, **{name.replace("_te_", "_te1_"): s for name, s in KOHYA_PAIR.items()}},
        {**DIFFUSERS_PAIR, f"{DIFFUSERS}.lora_A.weight": (4, 32)},
        {**DIFFUSERS_PAIR, f"{DIFFUSERS[:-6]}to_q_lora.up.weight": (32, 4)},
        {**DIFFUSERS_PAIR, f"text_encoder.{MODULE}.lora_A.weight": (4, 32)},
    ],
)
def test_module_that_is_changed_twice_is_refused(shapes: Shapes) -> None:
    _refused("changes the same module as", shapes)


def test_mixed_naming_is_refused() -> None:
    _refused("another naming", KOHYA_PAIR | DIFFUSERS_PAIR)
    _refused("another naming", PEFT_PAIR | DIFFUSERS_PAIR, SETTINGS)


def test_settings_and_names_must_be_of_one_format() -> None:
    _refused("adapter_config.json", PEFT_PAIR)
    _refused("adapter_config.json", KOHYA_PAIR, SETTINGS)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["text_projection"]),
        ("megatron_config", {"a": 1}),
        ("bias", "all"),
        ("lora_bias", True),
        ("layer_replication", [[0, 4]]),
        ("layers_to_transform", [0]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["x"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("a_setting_of_tomorrow", 3),
        ("peft_type", "ADALORA"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", []),
        ("target_modules", ["k_proj"]),
        ("target_modules", None),
        ("target_modules", 3),
        ("target_modules", [3]),
        ("target_modules", r".*\.k_proj"),
        ("target_modules", "(.*)*q_proj"),
        ("target_modules", ".*.*.*.*.*q_proj"),
        ("target_modules", "(q_proj"),
        ("exclude_modules", ["q_proj"]),
        ("exclude_modules", "["),
        ("r", 5),
        ("r", "4"),
        ("r", 4.0),
        ("rank_pattern", {"q_proj": 5}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"(.*)*": 5}),
        ("alpha_pattern", {"q_proj": "5"}),
        ("lora_alpha", "8"),
        ("lora_alpha", True),
        ("lora_alpha", 10**400),
        ("lora_alpha", float("inf")),
        ("lora_alpha", float("nan")),
    ],
)
def test_settings_that_do_more_than_scale_are_refused(setting: str, value: Any) -> None:
    settings = SETTINGS | {setting: value}
    _refused("adapter_config.json", PEFT_PAIR, settings)
    assert _parts(ELSEWHERE, settings) == ()


def test_settings_that_peft_writes_by_default_are_read() -> None:
    written: dict[str, Any] = {
        "auto_mapping": None, "bias": "none", "init_lora_weights": True, "loftq_config": {},
        "lora_dropout": 0.1, "megatron_core": "megatron.core", "peft_version": "0.21.2",
        "qalora_group_size": 16, "rank_pattern": {}, "revision": None, "task_type": "X",
        "use_dora": False,
    }  # fmt: skip
    assert _parts(PEFT_PAIR, SETTINGS | written) == _parts(PEFT_PAIR, SETTINGS)


def test_settings_in_the_file_belong_to_their_component() -> None:
    def embedded(component: str, **changes: Any) -> dict[str, str]:
        stated = {f"{component}.{key}": value for key, value in (SETTINGS | changes).items()}
        return {EMBEDDED: json.dumps(stated)}

    (part,) = _parts(DIFFUSERS_PAIR, None, embedded("text_encoder"))
    assert part.changes[0].scale == 2
    (part,) = _parts(DIFFUSERS_PAIR, None, embedded("unet", use_dora=True))
    assert part.changes[0].scale is None
    _refused(EMBEDDED, DIFFUSERS_PAIR, None, embedded("text_encoder", use_dora=True))
    alpha = {f"{DIFFUSERS}.alpha": ()}
    _refused("contradicts", DIFFUSERS_PAIR | alpha, None, embedded("text_encoder"))
    _refused(EMBEDDED, DIFFUSERS_PAIR, None, {EMBEDDED: "{"})


def test_only_files_with_adapter_tensors_are_adapters() -> None:
    for shapes in (PEFT_PAIR, DIFFUSERS_PAIR, KOHYA_PAIR, LOHA, ELSEWHERE):
        assert is_adapter(_header(shapes))
    assert is_adapter(_header({f"{DIFFUSERS[:-6]}to_q_lora.up.weight": (32, 4)}))
    for name in (
        f"text_model.{MODULE}.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "model.diffusion_model.input_blocks.0.0.bias",
        "transformer.resblocks.0.attn.in_proj_weight",
    ):
        assert not is_adapter(_header({name: (4, 4)}))


@pytest.mark.parametrize(
    ("stated", "card", "base"),
    [
        ("openai/clip-vit-large-patch14", None, "openai/clip-vit-large-patch14"),
        ("org/peft", "org/card", "org/peft"),
        (None, "org/card", "org/card"),
        (None, ["org/card"], "org/card"),
        ("/home/me/clip", "org/card", "org/card"),
        (None, ["org/one", "org/two"], None),
        (None, None, None),
        (None, [], None),
        (None, {"a": 1}, None),
        (None, [1], None),
        *(
            (wrong, wrong, None)
            for wrong in (
                "gpt2", "./org/model", "../model", "/org/model", "~/model", "C:\\org\\model",
                "https://huggingface.co/org/model", "org/model/sub", "org/model@main", "org/", "",
                "org/-model", "org/mo--del", "org/a..b", "org/model.git", "org/модель",
                "org/model\n", " org/model", "o/" + "m" * 95,
            )
        ),
    ],
)  # fmt: skip
def test_base_is_a_repo_on_the_hub_or_none(stated: Any, card: Any, base: str | None) -> None:
    assert declared_base({"base_model_name_or_path": stated}, {"base_model": card}) == base
    if stated is None:
        assert declared_base(None, {"base_model": card}) == base


def test_revision_is_of_the_base_that_the_settings_name() -> None:
    named = {"base_model_name_or_path": "org/clip", "revision": "refs/pr/1"}
    assert declared_revision(named) == "refs/pr/1"
    assert declared_revision(named | {"base_model_name_or_path": "/home/me/clip"}) is None
    assert declared_revision(named | {"revision": None}) is None
    assert declared_revision(None) is None
    for wrong in (3, "", "a b", "../x", "-x", "x\n"):
        with pytest.raises(MalformedFileError, match="revision"):
            declared_revision(named | {"revision": wrong})


_STEMS = st.sampled_from([
    PEFT, DIFFUSERS, KOHYA, KOHYA.replace("_te_", "_te2_"), DIFFUSERS.replace("er.", "er_2.", 1),
    f"base_model.model.{MODULE}", f"text_encoder.{MODULE}", "text_encoder_2.text_projection",
    "base_model.model.text_model.embeddings.token_embedding", "lora_te1_text_projection",
    f"{DIFFUSERS[:-7]}.to_q_lora", "unet.mid_block.to_q", "lora_unet_mid_block", "strange",
])  # fmt: skip
_SUFFIXES = st.sampled_from([
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "alpha", "down.weight",
    "lora_linear_layer.down.weight", "lora_linear_layer.up.weight", "lora_embedding_A", "bias",
    "up.weight", "weight", "dora_scale",
])  # fmt: skip
_NAMES = st.one_of(st.builds("{}.{}".format, _STEMS, _SUFFIXES), st.text(max_size=30))
_ENTRIES = st.builds(
    TensorInfo,
    st.sampled_from(["F32", "F16", "I64", "U8"]),
    st.sampled_from([(), (1,), (4, 32), (32, 4), (4, 32, 1, 1), (4, 4), (0, 4), (2**40, 2**40)]),
    st.just((0, 0)),
)
_PAIRS = st.sampled_from([PEFT_PAIR, DIFFUSERS_PAIR, KOHYA_PAIR, {}])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
_SETTINGS = st.none() | st.builds(
    lambda changes: SETTINGS | changes,
    st.dictionaries(
        st.sampled_from(
            "r lora_alpha target_modules exclude_modules rank_pattern alpha_pattern peft_type"
            " use_rslora auto_mapping init_lora_weights use_dora other".split()
        ),
        _JSON,
        max_size=2,
    ),
)
_OF_A_TEXT_TOWER = re.compile(
    r"(lora_te[12]?_|text_encoder(_2)?\.|base_model\.model\.(text_model|text_projection)\b).*",
    re.DOTALL,
)


@given(pair=_PAIRS, more=st.dictionaries(_NAMES, _ENTRIES, max_size=4), settings=_SETTINGS)
def test_every_tensor_of_a_text_tower_is_merged_or_refused(
    pair: Shapes, more: dict[str, TensorInfo], settings: dict[str, Any] | None
) -> None:
    header = _header(pair) | more
    try:
        parts = parts_of(header, settings, FILE)
    except MalformedFileError:
        return
    merged = [
        name
        for part in parts
        for change in part.changes
        for name in (change.down, change.up, change.alpha)
        if name is not None
    ]
    assert len(merged) == len(set(merged))
    assert set(merged) >= {name for name in header if _OF_A_TEXT_TOWER.fullmatch(name)}


@given(st.dictionaries(st.sampled_from(["base_model_name_or_path", "revision"]), _JSON), _JSON)
def test_declared_base_is_none_or_a_repo_id(settings: dict[str, Any], card: Any) -> None:
    base = declared_base(settings, {"base_model": card})
    assert base is None or base.count("/") == 1
