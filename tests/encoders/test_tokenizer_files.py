"""A tokenizer that does not fit its tower is refused, whatever its files claim."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import MalformedFileError, TowerError
from tests.siglip_towers import make_siglip_tower
from tests.towers import BOS, EOS, EOS_ID, edit_config, load, make_model, make_tower, save

SENTENCES = ["the old cat waits", "one boat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(make_model(), tmp_path / "tower")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    parsed = json.loads((folder / "tokenizer.json").read_text())
    change(parsed)
    (folder / "tokenizer.json").write_text(json.dumps(parsed))


def _load_unless_refused(folder: Path) -> ModelTower | None:
    try:
        return load(folder)
    except TowerError:
        return None


class TestContradictions:
    """Loaders differ in which of the files they read, so these must say the same."""

    @pytest.fixture
    def pieces(self, folder: Path) -> dict[str, int]:
        parsed = json.loads((folder / "tokenizer.json").read_text())
        pieces: dict[str, int] = parsed["model"]["vocab"]
        return pieces

    def test_files_that_agree_are_read(self, folder: Path, pieces: dict[str, int]) -> None:
        (folder / "vocab.json").write_text(json.dumps(pieces))
        merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
        lines = [m if isinstance(m, str) else " ".join(m) for m in merges]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
        assert load(folder).has_tokenizer

    def test_two_ids_for_a_piece_are_refused(self, folder: Path, pieces: dict[str, int]) -> None:
        first, second = list(pieces)[:2]
        swapped = {**pieces, first: pieces[second], second: pieces[first]}
        (folder / "vocab.json").write_text(json.dumps(swapped))
        with pytest.raises(MalformedFileError, match="different ids"):
            load(folder)

    def test_other_merges_are_refused(self, folder: Path) -> None:
        (folder / "merges.txt").write_text("#version: 0.2\nz z\n")
        with pytest.raises(MalformedFileError, match="merge pieces differently"):
            load(folder)

    def test_a_text_that_is_replaced_by_another_is_refused(self, folder: Path) -> None:
        rule = {"type": "Replace", "pattern": {"String": "mignneko"}, "content": "cat"}
        nested = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, rule]}
        _edit(folder, lambda parsed: parsed.update(normalizer=nested))
        with pytest.raises(MalformedFileError, match="'mignneko'"):
            load(folder)


class TestMissing:
    """Without a tokenizer a tower is whole, but reads no prompt until it is lent one."""

    @pytest.fixture
    def mute(self, folder: Path) -> ModelTower:
        (folder / "tokenizer.json").unlink()
        return load(folder)

    def test_a_tower_without_a_tokenizer_reads_no_prompt(self, mute: ModelTower) -> None:
        assert not mute.has_tokenizer
        with pytest.raises(MalformedFileError, match="no tokenizer beside the weights"):
            mute.tokenize(SENTENCES, length=9)

    def test_it_tokenises_as_the_tower_that_lends(self, mute: ModelTower) -> None:
        lender = make_tower(1)
        mute.borrow_tokenizer(lender)
        assert mute.has_tokenizer
        ours, theirs = (tower.tokenize(SENTENCES, length=9) for tower in (mute, lender))
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.ends, theirs.ends)

    @pytest.mark.parametrize("pooled", [EOS_ID, 2], ids=["named", "legacy"])
    def test_it_is_pooled_at_the_eos_of_the_lender(self, folder: Path, pooled: int) -> None:
        (folder / "tokenizer.json").unlink()
        edit_config(folder, eos_token_id=pooled)
        tower = load(folder)
        tower.borrow_tokenizer(make_tower(1))
        assert tower.tokenize(SENTENCES, length=9).ends.tolist() == [5, 3]

    def test_more_tokens_than_rows_are_not_lent(self, tmp_path: Path) -> None:
        sizes = {"vocab_size": EOS_ID, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 1}
        tower = load(save(make_model(**sizes), tmp_path, tokenizer=None))
        with pytest.raises(MalformedFileError, match=f"does not fit.*{EOS_ID + 1} tokens"):
            tower.borrow_tokenizer(make_tower(vocab_size=EOS_ID + 1))
        assert not tower.has_tokenizer

    @pytest.mark.parametrize("pooled", [0, EOS_ID - 7], ids=str)
    def test_an_eos_that_the_tower_does_not_pool_is_not_lent(
        self, folder: Path, pooled: int
    ) -> None:
        """Every prompt would be pooled at its first position, where none differs."""
        (folder / "tokenizer.json").unlink()
        edit_config(folder, eos_token_id=pooled)
        tower = load(folder)
        with pytest.raises(MalformedFileError, match=f"does not fit.*pools at token {pooled}"):
            tower.borrow_tokenizer(make_tower())

    def test_another_family_lends_nothing(self, mute: ModelTower) -> None:
        with pytest.raises(MalformedFileError, match="does not fit"):
            mute.borrow_tokenizer(make_siglip_tower())

    def test_who_has_none_lends_none(self, mute: ModelTower, tmp_path: Path) -> None:
        other = load(save(make_model(), tmp_path / "other", tokenizer=None))
        with pytest.raises(MalformedFileError, match="no tokenizer beside the weights"):
            mute.borrow_tokenizer(other)
        assert not mute.has_tokenizer

    def test_settings_alone_are_no_tokenizer(self, mute: ModelTower, folder: Path) -> None:
        assert (folder / "tokenizer_config.json").exists()
        assert not mute.has_tokenizer

    def test_half_a_tokenizer_is_refused(self, folder: Path) -> None:
        """A loader would look elsewhere for the vocabulary, or make one up."""
        (folder / "tokenizer.json").unlink()
        (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
        with pytest.raises(MalformedFileError, match=r"merges\.txt"):
            load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[1]", b"\xff\xfe", b"[" * 200_000, b'"text"'],
    ids=lambda c: ascii(c[:5]),
)
def test_a_file_that_is_no_json_object_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(MalformedFileError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda parsed: parsed.clear(),
        lambda parsed: parsed.update(model=[]),
        lambda parsed: parsed["model"].update(vocab="words"),
        lambda parsed: parsed["model"].update(merges=[["cat"]]),
        lambda parsed: parsed["model"].update(merges=[["no", "piece"]]),
        lambda parsed: parsed.update(added_tokens=3),
    ],
    ids=["empty", "no model", "no vocabulary", "half a merge", "merge of nothing", "no list"],
)
def test_a_tokenizer_that_does_not_build_is_malformed(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    _edit(folder, change)
    with pytest.raises(MalformedFileError):
        load(folder)


def test_a_two_token_tokenizer_is_refused(folder: Path) -> None:
    _edit(folder, lambda parsed: parsed["model"].update(vocab={BOS: 0, EOS: 1}, merges=[]))
    with pytest.raises(MalformedFileError, match="2 tokens"):
        load(folder)


def test_a_tokenizer_larger_than_the_table_is_refused(folder: Path) -> None:
    added = {str(EOS_ID + 1): {"content": "trigger", "special": True}}
    edit_config(folder, "tokenizer_config.json", added_tokens_decoder=added)
    with pytest.raises(MalformedFileError, match=f"{EOS_ID + 2} tokens"):
        load(folder)


def test_no_id_lies_beyond_the_table(folder: Path) -> None:
    """As many tokens as rows, but one of them has a far id."""
    _edit(folder, lambda parsed: parsed["model"]["vocab"].update({"the</w>": 5_000}))
    tower = _load_unless_refused(folder)
    if tower is not None:
        assert tower.tokenize(SENTENCES, length=9).ids.max() < tower.vocabulary


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_side": "left"},
        {"truncation_side": "left"},
        {"pad_token": None},
        {"pad_token": "the</w>"},
        {"model_max_length": 3},
        {"add_eos_token": False},
        {"add_bos_token": False},
        {"model_input_names": ["attention_mask"]},
    ],
    ids=str,
)
def test_settings_of_the_repo_do_not_move_the_pooled_position(
    folder: Path, settings: dict[str, Any]
) -> None:
    expected = load(folder).tokenize(SENTENCES, length=9)
    edit_config(folder, "tokenizer_config.json", **settings)
    tower = _load_unless_refused(folder)
    if tower is not None:
        tokens = tower.tokenize(SENTENCES, length=9)
        assert tokens.ends.tolist() == expected.ends.tolist()
        for row, end in enumerate(tokens.ends.tolist()):
            assert torch.equal(tokens.ids[row, : end + 1], expected.ids[row, : end + 1])


@pytest.mark.parametrize("pooled", [EOS_ID, 2], ids=["named", "legacy"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_an_eos_that_is_not_the_towers_is_refused(folder: Path, name: str, pooled: int) -> None:
    """The model pools at the EOS of its config, or at the highest id where that is old.

    Padded with the same word, every prompt would be pooled at BOS: alike in both towers.
    """
    edit_config(folder, eos_token_id=pooled)
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit_config(folder, name, eos_token="the</w>", pad_token="the</w>")
    with pytest.raises(TowerError):
        load(folder)


@pytest.mark.parametrize("pooled", [EOS_ID, 2], ids=["named", "legacy"])
def test_added_words_and_other_padding_are_not_refused(tmp_path: Path, pooled: int) -> None:
    """Textual inversion adds ids above EOS; Stable Diffusion 2 pads with "!"."""
    folder = save(make_model(vocab_size=EOS_ID + 4), tmp_path)
    edit_config(folder, eos_token_id=pooled)
    added = {str(EOS_ID + 1): {"content": "<style>", "special": False}}
    edit_config(folder, "tokenizer_config.json", added_tokens_decoder=added, pad_token="!</w>")
    tokens = load(folder).tokenize(SENTENCES, length=9)
    assert tokens.ends.tolist() == [5, 3]


def test_vocab_and_merges_files_serve_as_well(folder: Path) -> None:
    expected = load(folder).tokenize(SENTENCES, length=9)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert torch.equal(load(folder).tokenize(SENTENCES, length=9).ids, expected.ids)


def test_a_vocabulary_without_its_merges_is_refused(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(MalformedFileError):
        load(folder)


@pytest.mark.parametrize("eos", [EOS_ID, 2], ids=["named", "legacy"])
def test_a_bos_that_is_eos_is_refused(folder: Path, eos: int) -> None:
    """Every prompt would be pooled at its first position, where none differs from another."""
    edit_config(folder, eos_token_id=eos)
    edit_config(folder, "tokenizer_config.json", bos_token="<|endoftext|>")
    with pytest.raises(TowerError):
        load(folder)


def test_paths_in_the_settings_are_not_opened(folder: Path) -> None:
    """`vocab` and `merges` are arguments of the tokenizer, `gguf_file` one of the loader."""
    expected = load(folder).tokenize(SENTENCES, length=9)
    settings = {"vocab": "/dev/zero", "merges": "/etc/passwd", "gguf_file": "../../etc/passwd"}
    edit_config(folder, "tokenizer_config.json", **settings)
    assert torch.equal(load(folder).tokenize(SENTENCES, length=9).ids, expected.ids)


def test_a_tokenizer_that_cannot_encode_is_named(folder: Path) -> None:
    table = json.loads((folder / "tokenizer.json").read_text())
    table["model"]["unk_token"] = "<nope>"
    del table["model"]["vocab"]["a</w>"]
    (folder / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(TowerError) as caught:
        load(folder)
    assert str(folder) not in str(caught.value)
