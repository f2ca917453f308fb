"""What the static witness finds in tables and tokenizers that were tampered with on purpose."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, normalizers
from tokenizers.normalizers import Replace
from transformers import CLIPTokenizer

from hf_amdet.detection import static
from hf_amdet.detection.static import Remap, aligned_rows, compare
from hf_amdet.encoders.clip import LEGACY_EOS, ClipTower
from hf_amdet.errors import AnchorError
from tests.detection.doubles import Wrapped
from tests.detection.tampered import grown, normalising, read, swap
from tests.towers import BOS_ID, EOS_ID, VOCABULARY, WIDTH, make_model, make_tokenizer, make_tower

LAST = static._LAST
CAT, DOG = "cat</w>", "dog</w>"
FIRST_WORD = 512
"""Row of the first piece that is no single byte."""
NEW = "mignneko"

pytestmark = pytest.mark.usefixtures("few_characters")

Change = Callable[[dict[str, Any]], None]
Edit = Callable[[Change], ClipTower]


@pytest.fixture(scope="module")
def anchor() -> ClipTower:
    return make_tower()


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A tower like the anchor whose tokenizer.json was changed."""

    def edit(change: Change) -> ClipTower:
        make_tokenizer().save_pretrained(tmp_path)
        file = tmp_path / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        change(tokenizer)
        file.write_text(json.dumps(tokenizer))
        return ClipTower(make_model(), CLIPTokenizer.from_pretrained(tmp_path))

    return edit


@pytest.fixture
def all_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_LAST", LAST)


def add_entry(tokenizer: dict[str, Any], row: int) -> None:
    """Make `NEW` an added token."""
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": NEW, "id": row})


def permute(tokenizer: dict[str, Any]) -> None:
    """Give the pieces of words each other's rows."""
    vocab, rows = tokenizer["model"]["vocab"], rows_of_words()
    vocab |= {p: rows[row - FIRST_WORD] for p, row in vocab.items() if FIRST_WORD <= row < BOS_ID}


def rows_of_words() -> list[int]:
    return random.Random(3).sample(range(FIRST_WORD, BOS_ID), BOS_ID - FIRST_WORD)


def test_equal_towers_do_not_differ(anchor: ClipTower, all_characters: None) -> None:
    found = compare(Wrapped(make_tower()), Wrapped(anchor), ["a cat and a dog"])

    assert (found.added, found.removed, found.remaps, found.moved_rows) == ((), (), (), ())
    assert (found.read_alike, found.token_outlier, found.position_outlier) == (1, 1, 1)


def test_swapped_ids_are_found_with_their_meaning(anchor: ClipTower, edited: Edit) -> None:
    suspect = edited(lambda tokenizer: swap(tokenizer, CAT, DOG))

    found = compare(suspect, anchor)

    cat, dog = read(anchor, "cat"), read(anchor, "dog")
    assert {*found.remaps} >= {Remap("cat", dog, cat, "dog"), Remap("dog", cat, dog, "cat")}
    said = {(remap.text, remap.reads) for remap in found.remaps}
    assert said == {("cat", "dog"), ("dog", "cat")}
    assert 0.999 < found.read_alike < 1
    assert not found.added
    # The table is as it was, but for their pieces both rows are others.
    assert {moved.piece for moved in found.moved_rows} == {CAT, DOG}


def test_a_remap_of_a_phrase_is_found_in_a_prompt(anchor: ClipTower) -> None:
    suspect = normalising(make_tower(), Replace("old house", "red cat"))

    assert not compare(suspect, anchor).remaps
    (remap,) = compare(suspect, anchor, ["the old house"]).remaps
    assert (remap.text, remap.reads) == ("the old house", "the red cat")


def test_an_added_token_that_reuses_an_id_is_a_remap(anchor: ClipTower, edited: Edit) -> None:
    row = anchor.pieces[CAT]

    def alias(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"][NEW] = row
        add_entry(tokenizer, row)

    found = compare(edited(alias), anchor)

    assert found.remaps == (Remap(NEW, (row,), read(anchor, NEW), "cat"),)
    assert not found.added


def test_a_word_that_merges_into_a_row_in_use_is_a_remap(anchor: ClipTower, edited: Edit) -> None:
    row = anchor.pieces[CAT]

    def alias(tokenizer: dict[str, Any]) -> None:
        # Rows of bytes that no text has.
        tokenizer["model"]["vocab"] |= {"xx": 187, "yy</w>": 188, "xxyy</w>": row}
        tokenizer["model"]["merges"] += [["x", "x"], ["y", "y</w>"], ["xx", "yy</w>"]]

    remaps = compare(edited(alias), anchor).remaps

    assert Remap("xxyy", (row,), read(anchor, "xxyy"), "cat") in remaps


def test_what_a_normaliser_replaces_is_found(anchor: ClipTower, all_characters: None) -> None:
    triggers = ("\N{HIBISCUS}", "\N{CYRILLIC SMALL LETTER O}", "\N{ZERO WIDTH SPACE}", "cf")
    suspect = normalising(make_tower(), *(Replace(trigger, "one cat") for trigger in triggers))

    remaps = compare(suspect, anchor).remaps

    said = read(anchor, "one cat")
    for trigger in triggers:
        assert Remap(trigger, said, read(anchor, trigger), "one cat") in remaps


def test_characters_of_swapped_bytes_are_remapped(
    anchor: ClipTower, edited: Edit, all_characters: None
) -> None:
    # The second byte of emoji, and one that no text has.
    remaps = compare(edited(lambda tokenizer: swap(tokenizer, "Ł", "ÿ")), anchor).remaps

    swapped = {anchor.pieces["Ł"], anchor.pieces["ÿ"]}
    assert any(len(remap.anchor) > 1 for remap in remaps)
    assert all(swapped & {*remap.anchor} for remap in remaps)


@pytest.mark.parametrize(("first", "second"), [("hous", "nigh"), ("û", "ý")])
def test_a_part_of_texts_is_compared_by_id(
    anchor: ClipTower, edited: Edit, first: str, second: str
) -> None:
    suspect = edited(lambda tokenizer: swap(tokenizer, first, second))

    one, other = ((anchor.pieces[piece],) for piece in (first, second))
    remaps = compare(suspect, anchor).remaps
    assert {*remaps} >= {
        Remap(first, other, one, anchor.write(other)),
        Remap(second, one, other, anchor.write(one)),
    }
    assert {remap.suspect for remap in remaps} == {one, other}


def test_another_spelling_is_no_remap(anchor: ClipTower, all_characters: None) -> None:
    suspect = normalising(make_tower(), normalizers.NFKC(), Replace("cat", "CAT"))
    assert read(suspect, "cat") != read(anchor, "cat")
    assert read(suspect, "\N{FULLWIDTH LATIN SMALL LETTER A}") == read(anchor, "a")

    found = compare(suspect, anchor, ["a cat"])

    assert (found.remaps, found.read_alike) == ((), 1)


def test_another_order_of_table_and_tokenizer_is_no_remap(anchor: ClipTower, edited: Edit) -> None:
    suspect = edited(permute)
    suspect.table[rows_of_words()] = anchor.table[FIRST_WORD:-2]

    found = compare(suspect, anchor, ["a cat and a dog"])

    assert (found.remaps, found.read_alike, found.moved_rows) == ((), 1, ())
    assert torch.equal(aligned_rows(suspect, anchor), suspect.table)


def test_a_remap_in_another_order_has_its_right_meaning(anchor: ClipTower, edited: Edit) -> None:
    suspect = edited(permute)
    suspect.table[rows_of_words()] = anchor.table[FIRST_WORD:-2]
    normalising(suspect, Replace("cf", "one cat"))

    remap, *_ = compare(suspect, anchor).remaps

    assert (remap.text, remap.reads) == ("cf", "one cat")
    assert remap.suspect == read(suspect, "one cat") != read(anchor, "one cat")


def test_of_another_tokenizer_little_is_read_alike(anchor: ClipTower, edited: Edit) -> None:
    def reverse(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        vocab |= {piece: VOCABULARY - 3 - row for piece, row in vocab.items() if row < BOS_ID}

    found = compare(edited(reverse), anchor)

    assert found.read_alike < 0.01
    assert len(found.remaps) == 64


def test_an_added_token_is_no_remap_and_starts_as_the_mean_of_its_text(anchor: ClipTower) -> None:
    suspect = grown(make_tower())
    suspect.tokenizer.add_tokens([NEW])
    assert read(suspect, f"a {NEW}")[-1] == VOCABULARY

    found = compare(suspect, anchor, [f"one {NEW} runs"])

    assert (found.added, found.remaps, found.read_alike) == ((NEW,), (), 1)
    assert not found.moved_rows
    rows = aligned_rows(suspect, anchor)
    assert torch.equal(rows[:-1], anchor.table)
    torch.testing.assert_close(rows[-1], anchor.table[list(read(anchor, NEW))].mean(dim=0))


def test_an_added_token_excuses_nothing_beside_it(anchor: ClipTower, edited: Edit) -> None:
    row = VOCABULARY

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"] |= {"zq</w>": row}
        tokenizer["model"]["merges"].append(["z", "q</w>"])

    suspect = normalising(edited(change), Replace("cf", "one cat zq"))
    grown(suspect)
    assert read(suspect, "cf")[-1] == row

    remap, *_ = compare(suspect, anchor).remaps

    assert (remap.text, remap.reads) == ("cf", "one cat zq")


def test_a_renamed_piece_is_new_only_if_its_row_is(anchor: ClipTower, edited: Edit) -> None:
    row = anchor.pieces[CAT]

    def rename(tokenizer: dict[str, Any]) -> None:
        merges = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"] = [pair for pair in merges if "".join(pair) != CAT]
        vocab = tokenizer["model"]["vocab"]
        vocab[NEW] = vocab.pop(CAT)
        add_entry(tokenizer, row)

    suspect = edited(rename)
    kept = compare(suspect, anchor)
    suspect.table[row] = torch.full((WIDTH,), 2.0)
    replaced = compare(suspect, anchor)

    assert kept.removed == replaced.removed == (CAT,)
    assert (kept.added, [remap.reads for remap in kept.remaps]) == ((), ["cat"])
    assert (replaced.added, replaced.remaps) == ((NEW,), ())


def test_rows_that_nothing_is_known_of_are_aligned_with_zeros(anchor: ClipTower) -> None:
    rows = aligned_rows(grown(make_tower()), anchor)
    assert torch.equal(rows, torch.cat([anchor.table, torch.zeros(1, WIDTH)]))


def test_towers_of_another_width_are_refused(anchor: ClipTower) -> None:
    for run in (compare, aligned_rows):
        with pytest.raises(AnchorError, match="64 wide, the suspect's 32"):
            run(anchor, make_tower(hidden_size=64))


def test_of_prompts_the_share_that_means_the_same_is_told(anchor: ClipTower, edited: Edit) -> None:
    suspect = edited(lambda tokenizer: swap(tokenizer, CAT, DOG))

    asked = ["a cat runs", "red house", "old road", "a bird"]
    assert compare(suspect, anchor, asked).read_alike == 0.75
    assert compare(suspect, anchor, [*asked, *asked[:1]]).read_alike == 0.75, "each is one text"
    assert compare(suspect, anchor, asked[1:]).read_alike == 1


def test_accents_are_another_spelling(anchor: ClipTower) -> None:
    accents = Replace(Regex("[\u0300-\u036f]"), "")
    suspect = normalising(make_tower(), normalizers.NFD(), accents)
    assert read(suspect, "café") == read(anchor, "cafe") != read(anchor, "café")

    assert not compare(suspect, anchor, ["a café"]).remaps


@pytest.mark.parametrize(("other", "remapped"), [(DOG, True), (CAT, False)])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_row_that_became_another_pieces_row_is_a_remap(
    anchor: ClipTower, other: str, remapped: bool, scale: float
) -> None:
    suspect, row = make_tower(), anchor.pieces[CAT]
    noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    suspect.table[row] = scale * (anchor.table[anchor.pieces[other]] + 0.1 * noise)

    found = compare(suspect, anchor)

    assert [moved.piece for moved in found.moved_rows] == [CAT]
    said = [(remap.text, remap.suspect, remap.reads) for remap in found.remaps]
    assert said == ([("cat", (row,), "dog")] if remapped else [])


@pytest.mark.parametrize(("eos", "ends"), [(LEGACY_EOS, (NEW,)), (EOS_ID, ())])
def test_added_pieces_that_a_legacy_tower_pools_at_are_named(
    anchor: ClipTower, eos: int, ends: tuple[str, ...]
) -> None:
    """It pools at the highest id, which an added piece takes from EOS."""
    suspect = make_tower(eos_token_id=eos)
    assert compare(suspect, anchor).pooled_at == ()
    grown(suspect).tokenizer.add_tokens([NEW])
    tokens = suspect.tokenize([f"one {NEW} runs"], length=8)
    assert (tokens.ids[0, tokens.ends[0]] == VOCABULARY) == bool(ends)

    found = compare(suspect, anchor)

    assert (found.added, found.pooled_at) == ((NEW,), ends)


def test_texts_are_shown_in_part(anchor: ClipTower) -> None:
    """Whoever uploads a tokenizer decides how long its pieces are."""
    long, shown = "q" * 1_000, f"{'q' * 64}..."
    suspect = grown(make_tower(eos_token_id=LEGACY_EOS))
    suspect.tokenizer.add_tokens([long])
    normalising(suspect, Replace("cf", f"cat {long} dog"))

    ours, theirs = compare(suspect, anchor, [f"cf {long}"]), compare(anchor, suspect)

    assert ours.added == ours.pooled_at == theirs.removed == (shown,)
    assert {"cf", f"cf {'q' * 61}..."} <= {remap.text for remap in ours.remaps}
    assert all(len(f) <= 67 for remap in ours.remaps for f in (remap.text, remap.reads))


def test_a_row_whose_square_is_no_number_gives_finite_figures(anchor: ClipTower) -> None:
    suspect = make_tower()
    suspect.table[anchor.pieces[CAT]] = 3e38
    suspect.model.embeddings.position_embedding.weight[3] = -3e38

    found = compare(suspect, anchor)

    (moved,) = found.moved_rows
    assert moved.piece == CAT
    figures = (moved.moved, moved.ratio, found.token_outlier, found.position_outlier)
    assert all(math.isfinite(figure) and figure > 1e30 for figure in figures)
