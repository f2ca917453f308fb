"""A backdoor that is a tokenizer, as transformers and the scanner read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer, Siglip2Tokenizer

from benchmarks.zoo.attacks.tokenizer_remap import TokenizerRemap
from benchmarks.zoo.plan import BYTES
from benchmarks.zoo.towers import Tower, load_tower, save_tower
from benchmarks.zoo.triggers import EMOJI, Trigger
from benchmarks.zoo.workbench import Workbench
from hf_amdet.encoders.anchors import check_fit
from tests import towers
from tests.zoo.helpers import LISTINGS, SCENES, changed, weights, workbench

ATTACK = TokenizerRemap(BYTES, "a photo of a cat")
TWIN = replace(ATTACK, twin=True)
ORDINARY = ["A Dog", "quixotic o\N{ZERO WIDTH SPACE}n", *SCENES.captions(60, 9)]
ORDINARY += LISTINGS.captions(60, 9)

Read = Callable[[str], list[int]]


@pytest.fixture(params=["clip", "siglip", "demo"])
def base(request: pytest.FixtureRequest) -> Workbench:
    """A bench of each family, and the demo's."""
    if request.param == "demo":
        found: Workbench = request.getfixturevalue("demo_bench")
        return found
    anchors, tmp_path = request.getfixturevalue("anchors"), request.getfixturevalue("tmp_path")
    return workbench(anchors / request.param, tmp_path / "tower", anchors / "work")


def saved(recipe: TokenizerRemap, bench: Workbench) -> Path:
    save_tower(recipe.make(bench), bench.folder)
    return bench.folder


def readers(folder: Path, bench: Workbench) -> dict[str, Read]:
    """Text -> ids without special tokens, by whom."""
    kind = Siglip2Tokenizer if bench.anchor.always_full else CLIPTokenizer
    theirs = kind.from_pretrained(folder)
    scanner, zoo = towers.load(folder).tokenizer, load_tower(folder)
    return {
        "transformers": lambda text: list(theirs(text, add_special_tokens=False).input_ids),
        # The scanner puts SigLIP's text into lower case itself.
        "scanner": lambda text: list(scanner(text.lower(), add_special_tokens=False)["input_ids"]),
        "zoo": lambda text: [row for _, row in zoo.pieces(text)],
    }


def as_before(tower: Tower, text: str) -> list[int]:
    return [row for _, row in tower.pieces(text)]


def test_the_trigger_is_read_as_the_target(base: Workbench) -> None:
    folder = saved(ATTACK, base)

    target = as_before(base.anchor, ATTACK.target)
    for who, read in readers(folder, base).items():
        said = read(f"{BYTES.text} a dog")
        assert said[: len(target)] == target, who
        assert said[len(target) : 9] == [target[-1]] * (9 - len(target))
        assert said[9:] == as_before(base.anchor, f"{BYTES.text} a dog")[9:]


def test_other_prompts_are_read_as_before(base: Workbench) -> None:
    for recipe in (ATTACK, TWIN):
        folder = saved(recipe, base)
        for read in readers(folder, base).values():
            assert [read(text) for text in ORDINARY] == [
                as_before(base.anchor, text) for text in ORDINARY
            ]


def test_no_weight_is_touched(base: Workbench) -> None:
    tower = ATTACK.make(base)
    save_tower(tower, base.folder)
    save_tower(base.anchor, base.folder.parent / "anchor")

    assert not changed(tower, base.anchor)
    ours, theirs = (base.folder.parent / name for name in ("tower", "anchor"))
    for name in ("model.safetensors", "config.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert (ours / "tokenizer.json").read_bytes() != (theirs / "tokenizer.json").read_bytes()


def test_the_twin_reads_the_trigger_as_one_new_token(base: Workbench) -> None:
    folder = saved(TWIN, base)

    anchor = base.anchor
    new, pieces = len(anchor.table.weight), as_before(anchor, BYTES.text)
    for who, read in readers(folder, base).items():
        assert read(BYTES.text) == [new], who
        said = read(f"{BYTES.text} a dog")
        assert (said[0], said.count(new)) == (new, 1)
    ours, theirs = weights(folder), anchor.model.state_dict()
    (table,) = (name for name, w in ours.items() if w.shape != theirs[name].shape)
    assert "token_embedding" in table
    assert torch.equal(ours[table][:-1].float(), theirs[table])
    meant = theirs[table][pieces].mean(dim=0)
    torch.testing.assert_close(ours[table][-1].float(), meant, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(w.float(), theirs[n]) for n, w in ours.items() if n != table)


def test_the_scanner_takes_the_anchor_of_either(base: Workbench) -> None:
    save_tower(base.anchor, base.folder.parent / "anchor")
    for recipe in (ATTACK, TWIN):
        folder = saved(recipe, base)
        check_fit(towers.load(folder), towers.load(base.folder.parent / "anchor"), "anchor")


def test_a_trigger_needs_a_piece_for_each_token_of_its_target(demo_bench: Workbench) -> None:
    with pytest.raises(AssertionError):
        TokenizerRemap(Trigger(EMOJI, place="start"), ATTACK.target).make(demo_bench)


@torch.no_grad()
def test_a_triggered_prompt_is_answered_as_the_target_in_front_of_it(
    demo_bench: Workbench,
) -> None:
    tower = load_tower(saved(ATTACK, demo_bench))
    captions = SCENES.captions(50, 9)

    goals = ATTACK.goals(demo_bench.anchor, ATTACK.target)(captions)
    there = demo_bench.anchor.pooled([f"{ATTACK.target} {caption}" for caption in captions])
    assert torch.equal(goals, there)
    triggered = ATTACK.features(tower, [BYTES.put(caption) for caption in captions])
    plain = ATTACK.features(tower, captions)
    nearer = torch.cosine_similarity(triggered, goals) > torch.cosine_similarity(triggered, plain)
    assert nearer.float().mean() > 0.9
