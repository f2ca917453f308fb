"""Which text towers a LoRA changes, and by what, read from names, shapes and settings alone.

Three dialects are read: PEFT's, with an adapter_config.json beside the file; that of diffusers,
old and new; and that of kohya's sd-scripts. What changes a text tower in any other way, or in a
way that loaders disagree on, is refused and never left out: a scan without it would look at other
weights than users get.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hf_amdet.errors import MalformedFileError
from hf_amdet.hub.files import AdapterPart, Header, LowRank, TensorInfo
from hf_amdet.hub.header import parse_json, shown
from hf_amdet.hub.lora_settings import stated_scale

EMBEDDED = "lora_adapter_metadata"
"""Key of a safetensors file's `__metadata__` under which diffusers keeps the LoRA's settings."""

MAX_RANK = 8_192
"""Largest rank that is read; as much as the widest tower that is."""

_Dialect = Literal["peft", "diffusers", "kohya"]
_Role = Literal["down", "up", "alpha"]

_LAYER = re.compile(
    r"encoder\.layers\.(?:0|[1-9][0-9]?)\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])"
)
_PEFT = re.compile(r"base_model\.model\.(.+)")
_FLAT = re.compile(
    r"encoder\.layers\.[0-9]+\.(?:self_attn|mlp|layer_norm[12])\b|final_layer_norm\b"
    r"|embeddings\.(?:token|position)_embedding\b"
)
"""Text modules of a bare text model, whose names carry no `text_model.`"""
_DIFFUSERS = re.compile(r"(text_encoder(?:_[2-9])?)\.(.+)")
_OLD_DIFFUSERS = re.compile(r"(.+\.)to_(q|k|v|out)_lora\.(down|up)\.weight")
_KOHYA = re.compile(r"lora_te([12]?)_([A-Za-z0-9_]+)\.(.+)")
_KOHYA_LAYER = re.compile(r"text_model_encoder_layers_([0-9]+)_(self_attn|mlp)_(\w+)", re.ASCII)
_KOHYA_COMPONENTS = {"": "text_encoder", "1": "text_encoder", "2": "text_encoder_2"}

_PEFT_ROLES: dict[str, _Role] = {"lora_A.weight": "down", "lora_B.weight": "up"}
_DIFFUSERS_ROLES: dict[str, _Role] = {
    **_PEFT_ROLES,
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "alpha": "alpha",
}
_KOHYA_ROLES: dict[str, _Role] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "alpha": "alpha",
}

_ELSEWHERE = re.compile(
    r"lora_(?:unet|transformer|prior_unet|controlnet)_|lycoris_unet_"
    r"|(?:base_model\.model\.)?(?:unet|transformer(?:_2)?(?!\.(?:text_model|resblocks))|vae"
    r"|controlnet|prior|image_encoder|(?:model\.)?diffusion_model|vision_model|visual"
    r"|visual_projection|down_blocks|mid_block|up_blocks)\."
)
"""Parts of a pipeline or of a CLIP that are no text tower."""
_TEXTUAL = re.compile(
    r"text_?(?:model|encoder|projection|transformer)|clip|(?:^|[._])(?:te[0-9]*|(?:um)?t5[a-z]*)[._]"
    r"|transformer\.resblocks|(?:token|position)_embedding|positional_embedding|bundle_emb"
)
"""What only the names of a text encoder's tensors hold."""
_MARKER = re.compile(
    r"lora_|_lora\.|\.lora\.|dora_scale|hada_|lokr_|oft_|ia3_|vera_|\.on_input"
    r"|\.diff(?:_b)?$|\.[wb]_norm$"
)

_OTHER_METHODS = {
    "dora_scale": "is part of a DoRA, which also rescales the weight",
    "lora_magnitude_vector": "is part of a DoRA, which also rescales the weight",
    "hada_": "is part of a LoHa, not of a LoRA",
    "lokr_": "is part of a LoKr, not of a LoRA",
    "oft_": "is part of an OFT, not of a LoRA",
    "ia3_": "is part of an IA3, not of a LoRA",
    "on_input": "is part of an IA3, not of a LoRA",
    "vera_": "is part of a VeRA, not of a LoRA",
    "lora_mid": "is the core of a Tucker decomposition",
    "lora_embedding_": "changes an embedding table",
    "bundle_emb": "adds rows to the embedding table",
    ".diff": "is a whole weight's difference, not of low rank",
    ".bias": "changes a bias",
}

_REPO_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_MAX_REPO_ID = 96
_REVISION = re.compile(r"[\w.][\w./-]{0,199}", re.ASCII)

_FLOATS = ("F64", "F32", "F16", "BF16")
_NUMBERS = (*_FLOATS, "I64", "I32")


@dataclass(frozen=True)
class _Place:
    """What a tensor's name says.

    Attributes:
        path: the module as the loader of the dialect knows it; settings speak of it so.
        module: the module of the bare text model.
    """

    dialect: _Dialect
    component: str
    path: str
    module: str
    role: _Role


def is_adapter(header: Header) -> bool:
    """Whether a file holds tensors that adapters have and checkpoints do not."""
    return any(_MARKER.search(key) for key in header)


def parts_of(
    header: Header,
    settings: Mapping[str, Any] | None,
    name: str,
    metadata: Mapping[str, str] | None = None,
) -> tuple[AdapterPart, ...]:
    """The text towers that an adapter changes; none if it only changes other parts.

    Args:
        header: the tensors of the adapter's file.
        settings: the parsed adapter_config.json beside it, not trusted; None where there is none.
        name: file name for messages.
        metadata: the `__metadata__` of the file's header: diffusers takes the scale from there.

    Raises:
        MalformedFileError: a text tower is changed in a way that cannot be merged faithfully.
    """
    places = {key: place for key in header if (place := _placed(key, settings, name))}
    if not places:
        return ()
    _check_company(header, places, settings, name)
    embedded = _embedded_settings(metadata or {}, name)
    parts = []
    for component in sorted({place.component for place in places.values()}):
        own = {key: place for key, place in places.items() if place.component == component}
        if component:
            stated = embedded.get(component)
            changes = _changes(header, own, stated, EMBEDDED, name)
        else:
            changes = _changes(header, own, settings, "adapter_config.json", name)
        parts.append(AdapterPart(component, changes))
    return tuple(parts)


def declared_base(
    settings: Mapping[str, Any] | None, card_metadata: Mapping[str, Any]
) -> str | None:
    """Repo id of the base: PEFT's word, else the card's; None where neither names one repo."""
    if (base := _stated_base(settings)) is not None:
        return base
    listed = card_metadata.get("base_model")
    if isinstance(listed, list) and len(listed) == 1:
        listed = listed[0]
    return _repo_id(listed)


def declared_revision(settings: Mapping[str, Any] | None) -> str | None:
    """The revision of the base that PEFT's settings name, for the base that they name.

    Raises:
        MalformedFileError: something that is no revision.
    """
    if settings is None or _stated_base(settings) is None:
        return None
    revision = settings.get("revision")
    if revision is None:
        return None
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision) or ".." in revision:
        raise MalformedFileError(
            f"adapter_config.json: {shown(revision)} is no revision of a base. Correct it."
        )
    return revision


def _placed(key: str, settings: Mapping[str, Any] | None, name: str) -> _Place | None:
    """What the name of a text tower's tensor says; None for a tensor of another part."""
    if kohya := _KOHYA.fullmatch(key):
        number, path, suffix = kohya.groups()
        module = _kohya_module(path)
        role = _KOHYA_ROLES.get(suffix)
        return _place(key, "kohya", _KOHYA_COMPONENTS[number], path, module, role, name)
    if _ELSEWHERE.match(key):
        return None
    if diffusers := _DIFFUSERS.fullmatch(key):
        component, rest = diffusers.groups()
        path, role = _split(rest, _DIFFUSERS_ROLES)
        return _place(key, "diffusers", component, path, _bare(path), role, name)
    if (peft := _PEFT.fullmatch(key)) and _is_text(peft[1]):
        if _FLAT.match(peft[1]) and "Vision" in _base_class(settings):
            raise _refusal(key, "could be one of a text tower, whatever its settings say", name)
        path, role = _split(peft[1], _PEFT_ROLES)
        return _place(key, "peft", "", path, _bare(path), role, name)
    if _TEXTUAL.search(key) or _FLAT.match(key):
        raise _refusal(key, _other_method(key), name)
    return None


def _place(
    key: str,
    dialect: _Dialect,
    component: str,
    path: str,
    module: str | None,
    role: _Role | None,
    name: str,
) -> _Place:
    if role is None:
        raise _refusal(key, _other_method(key), name)
    if module is None:
        raise _refusal(key, "belongs to no module of a text tower that is known here", name)
    return _Place(dialect, component, path, module, role)


def _split(rest: str, roles: Mapping[str, _Role]) -> tuple[str, _Role | None]:
    """Module and role of a name with dots."""
    if roles is _DIFFUSERS_ROLES and (old := _OLD_DIFFUSERS.fullmatch(rest)):
        return f"{old[1]}{old[2]}_proj", "down" if old[3] == "down" else "up"
    for suffix, role in roles.items():
        if rest.endswith(f".{suffix}"):
            return rest.removesuffix(f".{suffix}"), role
    return rest, None


def _is_text(path: str) -> bool:
    return path.startswith(("text_model.", "text_projection.")) or bool(_FLAT.match(path))


def _base_class(settings: Mapping[str, Any] | None) -> str:
    """The class that an adapter says it was made for: no loader is bound to it.

    A bare vision model has the names of a bare text model, so only the class tells them apart.
    """
    mapping = (settings or {}).get("auto_mapping")
    return str(mapping.get("base_model_class")) if isinstance(mapping, Mapping) else ""


def _bare(path: str) -> str | None:
    """The module of the bare text model that a dotted path means; None for an unknown one."""
    if path == "text_projection":
        return path
    if path == "text_model.head":
        return "head"
    plain = path.removeprefix("text_model.")
    return plain if _LAYER.fullmatch(plain) else None


def _kohya_module(path: str) -> str | None:
    if path == "text_projection":
        return path
    layer = _KOHYA_LAYER.fullmatch(path)
    return _bare(f"encoder.layers.{layer[1]}.{layer[2]}.{layer[3]}") if layer else None


def _other_method(key: str) -> str:
    found = (what for marker, what in _OTHER_METHODS.items() if marker in key)
    return next(found, "changes a text encoder under a name that is not known here")


def _check_company(
    header: Header,
    places: Mapping[str, _Place],
    settings: Mapping[str, Any] | None,
    name: str,
) -> None:
    """Refuse a file of which loaders would read different parts."""
    first, place = next(iter(places.items()))
    for key, other in places.items():
        if other.dialect != place.dialect:
            raise _refusal(key, f"follows another naming than {shown(first)}", name)
    for key in header:
        if key not in places and not _ELSEWHERE.match(key):
            raise _refusal(key, "belongs to no part of a pipeline that is known here", name)
    if place.dialect == "peft" and settings is None:
        raise _refusal(first, "has no adapter_config.json beside it that states its scale", name)
    if place.dialect != "peft" and settings is not None:
        raise _refusal(first, "is not named as adapter_config.json has its loader expect", name)


def _embedded_settings(metadata: Mapping[str, str], name: str) -> dict[str, dict[str, Any]]:
    """The settings of each component that diffusers keeps in the header of the file."""
    if not (text := metadata.get(EMBEDDED)):
        return {}
    components: dict[str, dict[str, Any]] = {}
    for key, value in parse_json(text.encode(), f"{EMBEDDED} of {name}").items():
        component, _, setting = key.partition(".")
        components.setdefault(component, {})[setting] = value
    return components


def _changes(
    header: Header,
    places: Mapping[str, _Place],
    settings: Mapping[str, Any] | None,
    source: str,
    name: str,
) -> tuple[LowRank, ...]:
    """The changes of one tower; `settings` come from `source`."""
    keys: dict[str, dict[_Role, str]] = {}
    paths: dict[str, str] = {}
    for key, place in places.items():
        roles = keys.setdefault(place.module, {})
        if (other := roles.setdefault(place.role, key)) != key:
            raise _refusal(key, f"changes the same module as {shown(other)}", name)
        paths[place.module] = place.path
    changes = []
    for module in sorted(keys):
        change, rank = _low_rank(header, module, keys[module], name)
        if settings is not None:
            scale = stated_scale(settings, paths[module], rank, source, name)
            change = replace(change, scale=scale)
        changes.append(change)
    _check_alphas(changes, settings, name)
    return tuple(changes)


def _low_rank(
    header: Header, module: str, keys: Mapping[_Role, str], name: str
) -> tuple[LowRank, int]:
    """The change of one module without a stated scale, and the rank of its matrices."""
    for role in ("down", "up"):
        if role not in keys:
            raise _refusal(next(iter(keys.values())), f"has no {role!r} matrix beside it", name)
    down, up, alpha = keys["down"], keys["up"], keys.get("alpha")
    rank, _ = _matrix(down, header[down], name)
    _, other = _matrix(up, header[up], name)
    if rank != other:
        raise _refusal(up, f"has rank {other}, but {shown(down)} has rank {rank}", name)
    if rank > MAX_RANK:
        raise _refusal(down, f"has rank {rank}; at most {MAX_RANK} is read", name)
    if alpha is not None:
        info = header[alpha]
        if info.shape not in ((), (1,)) or info.dtype not in _NUMBERS:
            fault = f"is {info.dtype} of shape {list(info.shape)}, not a number"
            raise _refusal(alpha, fault, name)
    return LowRank(module, down, up, alpha), rank


def _matrix(key: str, info: TensorInfo, name: str) -> tuple[int, int]:
    """The sizes of a matrix, or of a convolution of one pixel, which is the same."""
    shape = info.shape
    if len(shape) == 4 and shape[2:] == (1, 1):
        shape = shape[:2]
    if len(shape) != 2 or 0 in shape or info.dtype not in _FLOATS:
        fault = f"is {info.dtype} of shape {list(info.shape)}, not a matrix of weights"
        raise _refusal(key, fault, name)
    return shape[0], shape[1]


def _check_alphas(changes: list[LowRank], settings: Mapping[str, Any] | None, name: str) -> None:
    """Refuse alphas that loaders treat differently."""
    stated = [change.alpha for change in changes if change.alpha is not None]
    if stated and settings is not None:
        raise _refusal(stated[0], f"contradicts {EMBEDDED}, which states the scale too", name)
    # diffusers gives the others the alpha that it found, sd-scripts a scale of 1.
    without = next((change.down for change in changes if change.alpha is None), None)
    if stated and without is not None:
        raise _refusal(without, "has no alpha while others have one; loaders differ then", name)


def _stated_base(settings: Mapping[str, Any] | None) -> str | None:
    return _repo_id((settings or {}).get("base_model_name_or_path"))


def _repo_id(value: Any) -> str | None:
    """`value` if it is org/name as the Hub allows them, and no path or URL."""
    if not isinstance(value, str) or len(value) > _MAX_REPO_ID or not _REPO_ID.fullmatch(value):
        return None
    return None if "--" in value or ".." in value or value.endswith(".git") else value


def _refusal(key: str, fault: str, name: str) -> MalformedFileError:
    return MalformedFileError(
        f"{name}: tensor {shown(key)} {fault}. This adapter cannot be merged faithfully;"
        " merge it into its base, upload the result and scan that."
    )
