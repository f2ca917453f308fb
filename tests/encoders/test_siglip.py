"""How a `SiglipTower` reads prompts: as SigLIP was trained, whatever the repo's settings say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import SiglipTokenizer

from hf_amdet.encoders.tower import ModelTower
from tests.siglip_towers import (
    KINDS,
    Kind,
    json_tokenizer,
    make_siglip_model,
    make_siglip_tower,
    save_siglip,
)
from tests.towers import CONTEXT, edit_config, load, prompts

FULL = 64
"""The context of published SigLIP towers."""
TEXTS = [
    *prompts(6),
    "The OLD Cat, near: the ROAD!",
    "",
    "no word of it is known: xyzzy",
    "the cat </s> the dog <eos>",
    " ".join(["snow"] * (FULL - 1)),
    " ".join(["snow"] * (FULL + 30)),
]


def _as_published(folder: Path, texts: list[str], length: int) -> list[list[int]]:
    """Ids as the model cards of SigLIP say to make them."""
    tokenizer = SiglipTokenizer(vocab_file=str(folder / "spiece.model"))
    with warnings.catch_warnings():
        # Of prompts that end with the text of EOS.
        warnings.simplefilter("ignore")
        encoded: Any = tokenizer(texts, padding="max_length", max_length=length, truncation=True)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _as_trained(texts: list[str], length: int) -> list[list[int]]:
    """Ids of a tokenizer.json as SigLIP 2 was trained: lower case, EOS, padding on the right."""
    tokenizer = Tokenizer.from_str(json_tokenizer())
    table = tokenizer.get_vocab()
    pad, eos = table["<pad>"], table["<eos>"]
    rows = []
    for text in texts:
        kept = tokenizer.encode(text.lower(), add_special_tokens=False).ids[: length - 1]
        rows.append([*kept, eos, *[pad] * (length - 1 - len(kept))])
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    model = make_siglip_model(max_position_embeddings=FULL)
    folder = tmp_path_factory.mktemp("towers")
    return {kind: save_siglip(model, folder / kind, kind=kind) for kind in KINDS}


@pytest.mark.parametrize("length", [FULL, 7])
def test_a_sentencepiece_model_is_used_as_published(folders: dict[Kind, Path], length: int) -> None:
    tower = load(folders["spiece"])
    tokens = tower.tokenize(TEXTS, length=length)
    assert tokens.ids.tolist() == _as_published(folders["spiece"], TEXTS, length)


@pytest.mark.parametrize("length", [FULL, 7])
def test_a_tokenizer_json_is_used_as_trained(folders: dict[Kind, Path], length: int) -> None:
    tokens = load(folders["json"]).tokenize(TEXTS, length=length)
    assert tokens.ids.tolist() == _as_trained(TEXTS, length)


@pytest.mark.parametrize("kind", KINDS)
def test_case_makes_no_difference_but_words_do(folders: dict[Kind, Path], kind: Kind) -> None:
    ids = load(folders[kind]).tokenize(["the OLD Cat", "The old cat", "the old dog"], length=9).ids
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[1], ids[2])


@pytest.mark.parametrize("reserve", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_reserved_positions_are_padding_and_the_last_one_is_pooled(
    folders: dict[Kind, Path], kind: Kind, reserve: int
) -> None:
    tower = load(folders[kind])
    eos, pad = tower.tokenizer.eos_token_id, tower.tokenizer.pad_token_id
    tokens = tower.tokenize(TEXTS, length=FULL, reserve=reserve)
    assert tokens.ids.shape == (len(TEXTS), FULL)
    assert (tokens.ends == FULL - 1).all()
    assert (tokens.ids[:, FULL - reserve :] == pad).all()
    # The overlong prompt is cut where the reserve begins, and ends with EOS there.
    assert tokens.ids[-1, FULL - reserve - 1] == eos
    assert eos not in tokens.ids[-1, : FULL - reserve - 1]
    # The others keep all of their words.
    assert torch.equal(tokens.ids[:8], tower.tokenize(TEXTS[:8], length=FULL).ids)


SETTINGS: list[dict[str, Any]] = [
    {"padding_side": "left"},
    {"truncation_side": "left"},
    {"add_bos_token": True, "add_eos_token": False},
    {"add_bos_token": True, "bos_token": "<bos>"},
    {"do_lower_case": False},
    {"model_max_length": 3},
    {"model_input_names": ["attention_mask"]},
    {"sp_model_kwargs": {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}},
    {"split_special_tokens": True},
    {"add_prefix_space": True},
    {"legacy": False},
    {"backend": "mistral"},
    {"max_length": 2, "stride": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_repo_move_nothing(
    tmp_path: Path, kind: Kind, settings: dict[str, Any]
) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path / "tower", kind=kind)
    expected = load(folder).tokenize(TEXTS, length=CONTEXT)
    edit_config(folder, "tokenizer_config.json", **settings)
    tokens = load(folder).tokenize(TEXTS, length=CONTEXT)
    assert torch.equal(tokens.ids, expected.ids)
    assert torch.equal(tokens.ends, expected.ends)


INSIDE: list[dict[str, Any]] = [
    {
        "truncation": {
            "direction": "Left",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    },
    {
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 7,
            "pad_type_id": 0,
            "pad_token": "the",
        }
    },
    {"post_processor": None},
]


@pytest.mark.parametrize("settings", INSIDE, ids=lambda settings: next(iter(settings)))
def test_settings_inside_of_tokenizer_json_move_nothing(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path / "tower", kind="json")
    expected = load(folder).tokenize(TEXTS, length=CONTEXT)
    edit_config(folder, "tokenizer.json", **settings)
    assert torch.equal(load(folder).tokenize(TEXTS, length=CONTEXT).ids, expected.ids)


def test_every_position_sees_every_other() -> None:
    tower = make_siglip_tower()
    tokens = tower.tokenize(prompts(2), length=10)
    states = tower.embed(tokens.ids)
    changed = states.clone()
    changed[:, 6:] = changed[:, 6:].flip(-1)
    before, after = (tower.encode(s, tokens.ends).hidden for s in (states, changed))
    assert (before[:, :6] != after[:, :6]).any(dim=-1).all()


def test_padding_reaches_the_pooled_feature() -> None:
    """Why prompts fill the context: a shorter one is another input."""
    tower: ModelTower = make_siglip_tower()
    pooled = []
    for length in (9, CONTEXT):
        tokens = tower.tokenize(prompts(4, words=5), length=length)
        pooled.append(tower.encode(tower.embed(tokens.ids), tokens.ends).pooled)
    assert tower.padded
    assert not torch.isclose(pooled[0], pooled[1], rtol=0.05).all(dim=-1).any()
