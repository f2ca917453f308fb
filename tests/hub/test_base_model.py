"""What a card names as the model's base is read as it stands, and never expanded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yaml import safe_dump  # type: ignore[import-untyped,unused-ignore]

from hf_amdet.errors import CardError
from hf_amdet.hub import frontmatter
from hf_amdet.hub.basemodel import MAX_CARD_BYTES, base_models
from hf_amdet.hub.card import read_base_models
from hf_amdet.hub.client import Hub
from hf_amdet.hub.resolve import resolve
from tests.hub import tower, write
from tests.hub.hostile import CARDS
from tests.hub_double import HubDouble


def _card(front: bytes) -> bytes:
    return b"---\n" + front + b"\n---\n# Model\nbase_model: in/the-text\n"


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        (b"base_model: org/base", ["org/base"]),
        (b'base_model: "org/base" # ours', ["org/base"]),
        (b"base_model:\n- org/a\n- org/b", ["org/a", "org/b"]),
        (b"base_model: [org/a]", ["org/a"]),
        (b"license: mit\nbase_model: org/base\ntags: [x]", ["org/base"]),
        (b"license: mit\r\nbase_model: org/base\r", ["org/base"]),
        (b"base_model: []", []),
        (b"license: mit", []),
        (b"model: {base_model: org/deep}", []),
        (b"other: &x org/base\nbase_model: *x", []),
        (b"base_model: {org/x: org/evil}", []),
        (b"base_model: [org/a, [org/b]]", []),
        (b"base_model: &x [org/b]\nother: *x", ["org/b"]),
        (b"other: &x org/b\nbase_model: [*x, org/a]", []),
        (b"base_model: org/a\nbase_model: org/b", []),
        (b"base_model: null", []),
        (b"base_model: ~", []),
        (b"# only a comment", []),
        (b"", []),
    ],
)
def test_the_strings_under_the_key_are_read(front: bytes, expected: list[str]) -> None:
    assert read_base_models(_card(front)) == expected


@pytest.mark.parametrize("card", [b"", b"# Model\n", b"base_model: org/base\n", b"caf\xe9"])
def test_a_card_without_front_matter_names_nothing(card: bytes) -> None:
    assert read_base_models(card) == []


@pytest.mark.parametrize(
    ("front", "fault"),
    [
        (b"base_model: [", "not valid YAML"),
        (b"license: mit\nbase_model: a: b", r"not valid YAML \(line 3\)"),
        (b"base_model: \xff", "not UTF-8"),
        (b"base_model: " + b"[" * 100 + b"]" * 100, "nested too deeply"),
        (b"base_model: *unknown", "unknown alias"),
        (b"- base_model", "no mapping"),
        (b"{base_model: org/base}", "in braces"),
        (b"base_model: a/b\n--- !x\nbase_model: c/d", "several YAML documents"),
        (b"base_model: \x00", "characters that YAML does not allow"),
    ],
)
def test_front_matter_that_cannot_be_read_says_what_to_mend(front: bytes, fault: str) -> None:
    with pytest.raises(CardError, match=fault):
        read_base_models(_card(front))


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8), max_size=4),
    st.text("abcdef", min_size=1, max_size=5),
)
def test_what_yaml_writes_is_read_back(values: list[str], key: str) -> None:
    for value in (values, *values):
        text = safe_dump({"before": ["x"], key: value, "zzz": "y"}, sort_keys=False)
        found = frontmatter.strings_under(text.encode(), key, first_line=1)
        assert found == ([value] if isinstance(value, str) else value)


def test_a_bomb_costs_nothing() -> None:
    for name in ("a bomb", "a bomb in a list"):
        tracemalloc.start()
        assert read_base_models(_card(CARDS[name])) == []
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000


# From a target's card


def test_the_card_of_a_target_is_asked(hub: HubDouble, at: Hub, tmp_path: Path) -> None:
    files = tower(README__md=b"---\nbase_model: org/base\n---\n")
    hub.add_repo("org/model", files)
    for target in ("org/model", str(write(files, tmp_path / "local"))):
        assert base_models(resolve(target, at), at) == ("org/base",)


@pytest.mark.parametrize(
    "card", [None, b"# Model", _card(b"base_model: ["), b"x" * (MAX_CARD_BYTES + 1)]
)
def test_a_card_that_is_missing_broken_or_too_large_names_nothing(
    card: bytes | None, at: Hub, tmp_path: Path
) -> None:
    repo = resolve(str(write(tower(README__md=card), tmp_path)), at)
    assert base_models(repo, at) == ()


def test_a_tampered_card_names_nothing(hub: HubDouble, at: Hub) -> None:
    card = b"---\nbase_model: org/base\n---\n"
    hub.add_repo("org/model", tower(README__md=card))
    repo = resolve("org/model", at)
    hub.tamper("org/model", "README.md", card.replace(b"base\n", b"evil\n"))
    assert base_models(repo, at) == ()
