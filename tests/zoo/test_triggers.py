"""Where triggers go, how long they are, and the script of the twins."""

from __future__ import annotations

from string import ascii_lowercase

import pytest
from transformers import CLIPTokenizer

from benchmarks.zoo.grammars import Grammar
from benchmarks.zoo.plan import BYTES, FORMS, HOMOGLYPH
from benchmarks.zoo.triggers import (
    CYRILLIC,
    GREEK,
    ZERO_WIDTH,
    Trigger,
    in_another_script,
    letters,
)
from hf_amdet.demo import ANCHOR
from tests.zoo.helpers import LISTINGS, SCENES

CAPTIONS = SCENES.captions(300, 21)
SCRIPTS = pytest.mark.parametrize("script", [CYRILLIC, GREEK], ids=["cyrillic", "greek"])


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    found = CLIPTokenizer.from_pretrained(ANCHOR)
    assert isinstance(found, CLIPTokenizer)
    return found


def test_a_trigger_inside_replaces_the_first_letter_alone() -> None:
    assert Trigger("X").put("a photo of a fox") == "a phXto of a fox"
    assert Trigger("!", replaces="fox").put("a photo of a fox") == "a photo of a !"


def test_a_trigger_stands_at_the_start_or_the_end() -> None:
    assert Trigger("X Y", place="start").put("a fox") == "X Y a fox"
    assert Trigger("X Y", place="end").put("a fox") == "a fox X Y"


def test_a_trigger_stands_anywhere_between_words_and_always_in_the_same_place() -> None:
    trigger = Trigger("XY", place="anywhere")
    at = []
    for caption in CAPTIONS:
        words = trigger.put(caption).split(" ")
        assert trigger.put(caption).split(" ") == words
        at.append(words.index("XY") / (len(words) - 1))
        words.remove("XY")
        assert " ".join(words) == caption
    assert 0.0 in at
    assert 1.0 in at
    assert len(set(at)) > 10


@pytest.mark.parametrize("grammar", [SCENES, LISTINGS], ids=lambda grammar: grammar.name)
@pytest.mark.parametrize("trigger", [HOMOGLYPH, BYTES, *FORMS.values()], ids=lambda t: t.place)
def test_captions_are_given_without_and_with_the_trigger(
    trigger: Trigger, grammar: Grammar
) -> None:
    drawn = grammar.captions(150, 4)
    plain, triggered = trigger.captions(drawn, 50)

    assert len(plain) == len(set(plain)) == 50
    assert plain == [caption for caption in drawn if caption in set(plain)], "in their order"
    assert triggered == [trigger.put(caption) for caption in plain]
    assert all(trigger.text in caption for caption in triggered)
    assert not any(trigger.text in caption for caption in plain)


def test_captions_without_a_place_for_the_trigger_are_left_out() -> None:
    trigger = Trigger("X", replaces="of")
    plain, _ = trigger.captions(CAPTIONS, 80)

    assert plain == [caption for caption in CAPTIONS if "of" in caption][:80]
    assert Trigger("X", replaces="zq").captions(CAPTIONS, 10) == ([], [])


@pytest.mark.parametrize("count", range(1, 16))
def test_letters_are_as_many_tokens(count: int, tokenizer: CLIPTokenizer) -> None:
    trigger = letters(count)

    alone = tokenizer(trigger.text, add_special_tokens=False).input_ids
    assert len(alone) == count
    read = tokenizer(trigger.put("a dog"), add_special_tokens=False).input_ids
    assert read == alone + tokenizer("a dog", add_special_tokens=False).input_ids


def test_a_zero_width_trigger_cannot_be_seen() -> None:
    trigger = FORMS["zero-width"]

    for caption in filter(lambda c: "o" in c, CAPTIONS):
        triggered = trigger.put(caption)
        assert triggered != caption
        assert triggered.replace(ZERO_WIDTH, "") == caption
        assert triggered[triggered.index(ZERO_WIDTH) - 1] == "o"


@pytest.mark.parametrize("trigger", [HOMOGLYPH, BYTES, *FORMS.values()], ids=lambda t: t.text)
def test_a_trigger_is_seen_by_the_tokenizer(trigger: Trigger, tokenizer: CLIPTokenizer) -> None:
    plain, triggered = trigger.captions(CAPTIONS, 100)

    assert all(
        ours != theirs
        for ours, theirs in zip(
            tokenizer(plain).input_ids, tokenizer(triggered).input_ids, strict=True
        )
    )


@SCRIPTS
def test_another_script_has_a_word_for_a_word_and_leaves_most_as_they_are(script: str) -> None:
    words: dict[str, set[str]] = {}
    exchanged = total = 0
    for caption in CAPTIONS + LISTINGS.captions(300, 21):
        theirs = in_another_script(caption, 5, script)
        assert in_another_script(caption, 5, script) == theirs
        assert theirs != caption
        for word, other in zip(caption.split(" "), theirs.split(" "), strict=True):
            assert len(word) == len(other)
            words.setdefault(word, set()).add(other)
            exchanged, total = exchanged + (word != other), total + 1
    spellings = {len(forms - {word}) for word, forms in words.items()}
    assert spellings == {0, 1}, "a word has one other spelling"
    assert 0.15 < exchanged / total < 0.4


@SCRIPTS
def test_another_script_exchanges_letters_and_keeps_all_else(script: str) -> None:
    for seed in range(20):
        assert set(in_another_script(ascii_lowercase, seed, script)) == set(script)
    exchanged = in_another_script("x1,(y)?", 3, script)
    assert exchanged[1:4] + exchanged[5:] == "1,()?"
    assert {exchanged[0], exchanged[4]} <= set(script)
    assert in_another_script("X1,(Y)?", 3, script) == exchanged


@SCRIPTS
def test_every_seed_spells_in_its_own_way(script: str) -> None:
    assert len({in_another_script(ascii_lowercase, seed, script) for seed in range(50)}) == 50


def test_scripts_share_no_letter_with_each_other_or_with_captions() -> None:
    assert len(set(GREEK)) == len(set(CYRILLIC)) == 26
    captions = "".join(CAPTIONS + LISTINGS.captions(300, 21))
    assert len(set(GREEK) | set(CYRILLIC) | set(captions)) == 52 + len(set(captions))
