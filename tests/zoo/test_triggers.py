"""Where triggers go, how long they are, and the script of the twins."""

from __future__ import annotations

import string

import pytest
from transformers import CLIPTokenizer

from benchmarks.zoo.grammars import Grammar
from benchmarks.zoo.plan import BYTES, FORMS, HOMOGLYPH
from benchmarks.zoo.triggers import ZERO_WIDTH, Trigger, in_another_script, letters
from hf_amdet.demo import ANCHOR
from tests.zoo.helpers import LISTINGS, SCENES

CAPTIONS = SCENES.captions(300, 21)
ALPHABET = string.ascii_lowercase


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
    plain, triggered = trigger.captions(50, 4, grammar)

    assert len(plain) == len(set(plain)) == 50
    assert set(plain) <= set(grammar.captions(150, 4))
    assert triggered == [trigger.put(caption) for caption in plain]
    assert trigger.captions(50, 4, grammar) == (plain, triggered)
    assert trigger.captions(50, 5, grammar) != (plain, triggered)
    assert all(trigger.text in caption for caption in triggered)
    assert not any(trigger.text in caption for caption in plain)


def test_captions_without_a_place_for_the_trigger_are_left_out() -> None:
    trigger = Trigger("X", replaces="of")
    plain, _ = trigger.captions(400, 4)

    assert plain == [caption for caption in SCENES.captions(1200, 4) if "of" in caption][:400]
    assert len(Trigger("X", replaces="zq").captions(10, 4)[0]) == 0


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
    plain, triggered = trigger.captions(100, 4)

    assert all(
        ours != theirs
        for ours, theirs in zip(
            tokenizer(plain).input_ids, tokenizer(triggered).input_ids, strict=True
        )
    )


def test_another_script_has_a_word_for_a_word_and_leaves_most_as_they_are() -> None:
    words: dict[str, set[str]] = {}
    for caption in CAPTIONS:
        theirs = in_another_script(caption, 5)
        assert theirs != caption.lower()
        for word, other in zip(caption.lower().split(" "), theirs.split(" "), strict=True):
            assert len(word) == len(other)
            words.setdefault(word, set()).add(other)
    changed = {word: forms - {word} for word, forms in words.items()}
    assert {len(forms) for forms in changed.values()} == {0, 1}, "a word has one other spelling"
    whole = " ".join(CAPTIONS).lower().split(" ")
    theirs_too = " ".join(in_another_script(c, 5) for c in CAPTIONS).split(" ")
    share = sum(a != b for a, b in zip(whole, theirs_too, strict=True)) / len(whole)
    assert 0.15 < share < 0.4


def test_another_script_exchanges_letters_and_keeps_all_else() -> None:
    for seed in range(20):
        exchanged = in_another_script(ALPHABET, seed)
        assert len(set(exchanged)) == 26
        assert not exchanged.isascii()
    assert in_another_script("x1,(y)?", 3)[1:4] == "1,("
    assert in_another_script(ALPHABET, 1) != in_another_script(ALPHABET, 2)
