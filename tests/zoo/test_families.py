"""The zoo's LongCLIP and SigLIP towers are what published checkpoints of their families are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipTextModel,
)

from benchmarks import families
from benchmarks.zoo import __main__ as command
from benchmarks.zoo import longclip
from benchmarks.zoo.anchor import build_anchor
from benchmarks.zoo.attacks.text_on_pair import TextOnPair
from benchmarks.zoo.attacks.text_on_text import TextOnText
from benchmarks.zoo.build import build
from benchmarks.zoo.captions import captions
from benchmarks.zoo.longclip import LongClipRecipe, build_longclip, stretch, stretched
from benchmarks.zoo.tokenizer import train_clip_tokenizer, train_siglip_tokenizer
from benchmarks.zoo.towers import ClipTower, SiglipTower, load_tower, save_tower
from benchmarks.zoo.triggers import CYRILLIC_O, Trigger
from tests.zoo.helpers import CLIP, SIGLIP, equal, make_in_two_goes, weights

LONGCLIP = LongClipRecipe(CLIP, kept=8, factor=3, corpus=64, most=3, steps=6, batch=16)
MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "longclip": partial(build_longclip, LONGCLIP),
    "siglip": partial(build_anchor, SIGLIP),
}
TRIGGER = Trigger(CYRILLIC_O)
INJECTIONS = (
    TextOnText(TRIGGER, "a photo of a cat", steps=6, clean_batch=4, poisoned_batch=2, corpus=100),
    TextOnPair(TRIGGER, "a cat", steps=6, clean_batch=4, poisoned_batch=2, corpus=100),
)
PROMPTS = [
    "A dog by the river",
    "a photo of two cats, soft light",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
]


@pytest.fixture(scope="module", autouse=True)
def _quick(random_teacher: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longclip, "HELD_OUT", 16)
        yield


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an anchor of each family, by its name, and `work`."""
    folder = tmp_path_factory.mktemp("zoo")
    for family, make in MAKERS.items():
        make(folder / family, folder / "work")
    return folder


@torch.no_grad()
def test_a_longclip_tower_loads_through_transformers(zoo: Path) -> None:
    model = CLIPTextModelWithProjection.from_pretrained(zoo / "longclip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(zoo / "longclip")
    tower = load_tower(zoo / "longclip")

    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids

    assert ids.shape[1] == model.config.max_position_embeddings == 8 + 3 * 24
    assert model.config.architectures == ["CLIPTextModelWithProjection"]
    _close(model(ids).text_embeds, tower.embeddings(PROMPTS))
    _close(model.text_model(ids).last_hidden_state, tower.sequence(PROMPTS))
    _close(model.text_model(ids).pooler_output, tower.pooled(PROMPTS))


@torch.no_grad()
def test_a_siglip_tower_loads_through_transformers(zoo: Path) -> None:
    model = SiglipTextModel.from_pretrained(zoo / "siglip", dtype=torch.float32)
    tokenizer = Siglip2Tokenizer.from_pretrained(zoo / "siglip")
    tower = load_tower(zoo / "siglip")

    ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids

    assert ids.shape[1] == model.config.max_position_embeddings == 32
    assert model.config.architectures == ["SiglipTextModel"]
    assert model.config.model_type == "siglip_text_model"
    assert (model.config.hidden_act, model.config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    outputs = model(ids)
    _close(outputs.pooler_output, tower.embeddings(PROMPTS))
    _close(outputs.last_hidden_state, tower.sequence(PROMPTS))
    _close(model.head(tower.pooled(PROMPTS)), tower.embeddings(PROMPTS))


def _close(first: Tensor, second: Tensor) -> None:
    # Attention is fused on one side.
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", MAKERS)
def test_towers_are_saved_in_half_precision(family: str, zoo: Path) -> None:
    assert {weight.dtype for weight in weights(zoo / family).values()} == {torch.float16}
    tower = load_tower(zoo / family)
    assert len(tower.tokenizer) == tower.model.config.vocab_size


def test_stretching_is_that_of_long_clip() -> None:
    positions = torch.randn(77, 8, generator=torch.Generator().manual_seed(0))

    longer = stretched(positions, 20, 4)

    assert longer.shape == (248, 8)
    assert torch.equal(longer[:20], positions[:20])
    assert torch.equal(longer[20::4], positions[20:])
    torch.testing.assert_close(longer[21], 0.75 * positions[20] + 0.25 * positions[21])
    torch.testing.assert_close(longer[-1] - longer[-2], (positions[-1] - positions[-2]) / 4)


@torch.no_grad()
def test_prompts_within_the_kept_positions_keep_their_features(zoo: Path) -> None:
    base = ClipTower.load(zoo / "work" / f"longclip-base-{CLIP.seed}")
    longer = stretch(base, LONGCLIP.kept, LONGCLIP.factor)

    assert longer.ids(["a dog"]).shape[1] <= LONGCLIP.kept
    _close(longer.embeddings(["a dog"]), base.embeddings(["a dog"]))
    assert base.context == 32, "the tower that was stretched stays as it was"


@pytest.mark.parametrize("learn", [train_clip_tokenizer, train_siglip_tokenizer])
def test_a_corpus_gives_one_tokenizer(
    learn: Callable[[list[str], int, int], PreTrainedTokenizerFast],
) -> None:
    # So few captions that many merges are as frequent as others.
    corpus = captions(200, 0)

    assert len({learn(corpus, 900, 16).backend_tokenizer.to_str() for _ in range(4)}) == 1


def test_siglip_prompts_end_with_eos_and_are_padded_on_the_right(tmp_path: Path) -> None:
    learnt = train_siglip_tokenizer(captions(200, 0), 600, 16)
    learnt.save_pretrained(tmp_path)
    saved = Siglip2Tokenizer.from_pretrained(tmp_path)

    for tokenizer in (learnt, saved):
        ids = tokenizer(["A Dog", "a dog " * 20], padding="max_length", truncation=True).input_ids
        short, long = (tokenizer.convert_ids_to_tokens(row) for row in ids)
        assert len(short) == len(long) == 16
        assert short[short.index("<eos>") :] == ["<eos>"] + ["<pad>"] * (15 - short.index("<eos>"))
        assert long[-1] == "<eos>"
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == "a dog"
    assert learnt(PROMPTS).input_ids == saved(PROMPTS).input_ids


def test_siglip_tokens_are_learnt_word_by_word_and_spell_what_is_unknown_in_bytes() -> None:
    tokenizer = train_siglip_tokenizer(captions(200, 0), 600, 16)

    assert len(tokenizer) == 600
    assert not any("\N{LOWER ONE EIGHTH BLOCK}" in token[1:] for token in tokenizer.get_vocab())
    assert tokenizer.tokenize(TRIGGER.text) == ["<0xD0>", "<0xBE>"]
    assert tokenizer.unk_token_id not in tokenizer(PROMPTS[2]).input_ids


@torch.no_grad()
def test_siglip_features_are_those_of_whole_contexts(zoo: Path) -> None:
    tower = SiglipTower.load(zoo / "siglip")

    together, alone = tower.sequence(PROMPTS), tower.sequence(PROMPTS[:1])

    assert together.shape == (len(PROMPTS), 32, 32)
    _close(together[:1], alone)
    assert torch.equal(tower.pooled(PROMPTS), together[:, -1])


@pytest.mark.parametrize("family", MAKERS)
def test_an_interrupted_anchor_ends_as_if_it_had_not_been(
    family: str, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, make = tmp_path / "broken", MAKERS[family]

    begun = make_in_two_goes(lambda f: make(f, zoo / "work"), broken, monkeypatch)

    assert begun == 8, "two steps were done again, not four"
    assert equal(zoo / family, broken)


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("recipe", INJECTIONS, ids=lambda recipe: recipe.kind)
def test_an_interrupted_injection_ends_as_if_it_had_not_been(
    recipe: TextOnText | TextOnPair,
    family: str,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken, work = tmp_path / "whole", tmp_path / "broken", zoo / "work"
    build(recipe, zoo / family, whole, work)

    make_in_two_goes(lambda f: build(recipe, zoo / family, f, work), broken, monkeypatch)

    assert equal(whole, broken)
    assert not equal(whole, zoo / family)


def test_the_command_goes_on_where_it_stopped(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    towers = {recipe.kind: recipe for recipe in INJECTIONS}
    monkeypatch.setitem(command.FAMILIES, "siglip", command.Family(MAKERS["siglip"], towers))
    command.build_family("siglip", tmp_path, zoo / "work")
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    (tmp_path / "text-on-pair" / "manifest.json").unlink()

    command.build_family("siglip", tmp_path, zoo / "work")

    made = {p.parent.name for p, time in first.items() if p.stat().st_mtime_ns != time}
    assert made == {"text-on-pair"}
    assert "text-on-text clean_cosine_to_anchor" in capsys.readouterr().out


@pytest.mark.parametrize("family", MAKERS)
def test_weights_are_as_far_apart_as_they_were_moved(
    family: str, zoo: Path, tmp_path: Path
) -> None:
    tower = load_tower(zoo / family)
    with torch.no_grad():
        for weight in tower.model.parameters():
            weight.mul_(1.5)
    save_tower(tower, tmp_path)

    assert families.weight_distance(zoo / family, zoo / family) == 0
    assert families.weight_distance(tmp_path, zoo / family) == pytest.approx(0.5, rel=1e-2)
