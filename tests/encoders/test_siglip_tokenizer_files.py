"""Of either kind of SigLIP tokenizer, one that does not fit its tower is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from hf_amdet.encoders.tower import ModelTower
from hf_amdet.errors import MalformedFileError, TowerError
from tests.siglip_towers import (
    KINDS,
    VOCABULARY,
    Kind,
    make_siglip_model,
    make_siglip_tower,
    save_siglip,
    spiece_model,
)
from tests.towers import CONTEXT, edit_config, load

SENTENCES = ["the old cat waits", "one boat"]
MODEL, TABLE, SETTINGS = "spiece.model", "tokenizer.json", "tokenizer_config.json"


@pytest.fixture
def spiece(tmp_path: Path) -> Path:
    return save_siglip(make_siglip_model(), tmp_path / "spiece", kind="spiece")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return save_siglip(make_siglip_model(), tmp_path / "json", kind="json")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    parsed = json.loads((folder / TABLE).read_text())
    change(parsed)
    (folder / TABLE).write_text(json.dumps(parsed))


def _zipped(data: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(MODEL, data)
    return written.getvalue()


def _changed(change: Callable[[Any], object]) -> bytes:
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(spiece_model())  # type: ignore[attr-defined]
    change(proto)
    written: bytes = proto.SerializeToString()
    return written


def _without_a(parsed: dict[str, Any]) -> None:
    """Builds, but has no token for the letter a, nor the one that it names for such letters."""
    parsed["model"].update(unk_token="<nope>", merges=[])
    parsed["model"]["vocab"].pop("a")


def _ids(tower: ModelTower) -> torch.Tensor:
    return tower.tokenize(SENTENCES, length=CONTEXT).ids


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        bytes(range(256)) * 64,
        b"{}",
        _zipped(spiece_model()),
        spiece_model()[: len(spiece_model()) // 2],
        spiece_model()[:40],
        spiece_model() + b"\xff" * 9,
        _changed(lambda proto: proto.ClearField("pieces")),
        _changed(lambda proto: proto.pieces[1].ClearField("type")),
        _changed(lambda proto: setattr(proto.normalizer_spec, "precompiled_charsmap", b"\xff" * 9)),
        _changed(lambda proto: proto.pieces.add(piece="a" * 200_000)),
    ],
    ids="empty,null,noise,JSON,zip,half,start,more,no pieces,no unknown,no map,long".split(","),
)
def test_a_sentencepiece_model_that_is_none_is_malformed(spiece: Path, content: bytes) -> None:
    load(spiece)
    (spiece / MODEL).write_bytes(content)
    with pytest.raises(MalformedFileError, match="does not load") as caught:
        load(spiece)
    assert str(spiece) not in str(caught.value)


def test_what_a_sentencepiece_model_says_of_its_own_size_counts_for_nothing(spiece: Path) -> None:
    expected = _ids(load(spiece))
    claim = _changed(lambda proto: setattr(proto.trainer_spec, "vocab_size", 10**9))
    (spiece / MODEL).write_bytes(claim)
    assert torch.equal(_ids(load(spiece)), expected)


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_malformed_or_without_effect_on_the_bounds(spiece: Path, seed: int) -> None:
    """And never an end of the process: SentencePiece is native code."""
    generator = torch.Generator().manual_seed(seed)
    data = bytearray(spiece_model())
    for _ in range(8):
        place, value = (int(torch.randint(n, (), generator=generator)) for n in (len(data), 256))
        data[place] = value
    (spiece / MODEL).write_bytes(data)
    try:
        ids = _ids(load(spiece))
    except TowerError:
        return
    assert ids.min() >= 0 and ids.max() < VOCABULARY


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [TABLE, SETTINGS])
@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[1]", b"\xff\xfe", b"[" * 200_000, b'"text"'],
    ids=lambda c: ascii(c[:5]),
)
def test_a_file_that_is_no_json_object_is_named(
    tmp_path: Path, kind: Kind, name: str, content: bytes
) -> None:
    folder = save_siglip(make_siglip_model(), tmp_path / "tower", kind=kind)
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
        _without_a,
    ],
    ids="empty,no model,no words,half a merge,no such piece,no list,no such unknown".split(","),
)
def test_a_tokenizer_json_that_does_not_build_or_encode_is_malformed(
    table: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    load(table)
    _edit(table, change)
    with pytest.raises(MalformedFileError) as caught:
        load(table)
    assert str(table) not in str(caught.value)


class TestSize:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_tokenizer_larger_than_the_table_is_refused(self, tmp_path: Path, kind: Kind) -> None:
        rows = len(make_siglip_tower(0, kind).tokenizer) - 1
        folder = save_siglip(make_siglip_model(vocab_size=rows), tmp_path, kind=kind)
        with pytest.raises(MalformedFileError, match=f"{rows + 1} tokens .* {rows} rows"):
            load(folder)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_tokenizer_far_smaller_than_the_table_is_refused(
        self, tmp_path: Path, kind: Kind
    ) -> None:
        tokens = len(make_siglip_tower(0, kind).tokenizer)
        folder = save_siglip(make_siglip_model(vocab_size=2 * tokens + 2), tmp_path, kind=kind)
        with pytest.raises(MalformedFileError, match=f"{tokens} tokens"):
            load(folder)

    @pytest.mark.parametrize("role", ["eos_token", "pad_token", "unk_token"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_special_token_of_its_own_does_not_reach_beyond_the_table(
        self, tmp_path: Path, kind: Kind, role: str
    ) -> None:
        """transformers adds a token that is not in the vocabulary behind it."""
        tokens = len(make_siglip_tower(0, kind).tokenizer)
        folder = save_siglip(make_siglip_model(vocab_size=tokens), tmp_path, kind=kind)
        edit_config(folder, SETTINGS, **{role: "<brand-new>"})
        with pytest.raises(MalformedFileError, match=f"{tokens + 1} tokens"):
            load(folder)

    def test_no_id_lies_beyond_the_table(self, table: Path) -> None:
        """As many tokens as rows, but one of them has a far id."""
        _edit(table, lambda parsed: parsed["model"]["vocab"].update({"the": 5_000}))
        with pytest.raises(MalformedFileError):
            load(table)


class TestSpecialTokens:
    @pytest.mark.parametrize("role", ["eos_token", "pad_token"])
    @pytest.mark.parametrize("value", [None, "absent"], ids=str)
    def test_a_tokenizer_json_without_eos_or_padding_is_refused(
        self, table: Path, role: str, value: str | None
    ) -> None:
        settings = json.loads((table / SETTINGS).read_text()) | {role: value}
        if value is not None:
            del settings[role]
        (table / SETTINGS).write_text(json.dumps(settings))
        with pytest.raises(MalformedFileError, match=r"names no (EOS|padding) token"):
            load(table)

    def test_a_tokenizer_json_without_settings_is_refused(self, table: Path) -> None:
        (table / SETTINGS).unlink()
        with pytest.raises(MalformedFileError, match="names no EOS token"):
            load(table)

    def test_those_of_siglip_need_no_settings(self, spiece: Path) -> None:
        expected = _ids(load(spiece))
        (spiece / SETTINGS).unlink()
        assert torch.equal(_ids(load(spiece)), expected)

    def test_they_are_found_in_either_file(self, table: Path) -> None:
        expected = _ids(load(table))
        settings = json.loads((table / SETTINGS).read_text())
        moved = {role: {"content": settings.pop(role)} for role in ("eos_token", "pad_token")}
        (table / SETTINGS).write_text(json.dumps(settings))
        (table / "special_tokens_map.json").write_text(json.dumps(moved))
        assert torch.equal(_ids(load(table)), expected)


class TestMute:
    """A tokenizer to which all prompts are one would hide every backdoor in words."""

    def test_a_sentencepiece_model_that_knows_no_word_is_refused(self, spiece: Path) -> None:
        (spiece / MODEL).write_bytes(spiece_model(_FOREIGN))
        with pytest.raises(MalformedFileError, match="different prompts as the same"):
            load(spiece)

    def test_a_tokenizer_json_that_knows_no_word_is_refused(self, table: Path) -> None:
        def forget(parsed: dict[str, Any]) -> None:
            kept = ("<pad>", "<eos>", "<bos>", "<unk>")
            vocab = {token: row for row, token in enumerate(kept)}
            vocab |= {chr(0x4E00 + n): len(kept) + n for n in range(VOCABULARY - len(kept))}
            parsed["model"].update(vocab=vocab, merges=[])

        _edit(table, forget)
        with pytest.raises(MalformedFileError, match="different prompts as the same"):
            load(table)

    @pytest.mark.parametrize("content", ["", "a"])
    def test_a_normalizer_that_cuts_all_words_away_is_refused(
        self, table: Path, content: str
    ) -> None:
        cut = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": content}
        _edit(table, lambda parsed: parsed.update(normalizer=cut))
        with pytest.raises(MalformedFileError, match="different prompts as the same"):
            load(table)


_FOREIGN = " ".join(chr(0x4E00 + n) + chr(0x4E01 + n) for n in range(0, 120, 2))
"""Words of letters that no English prompt has, enough to fill half of the table."""


class TestPaths:
    PLANTED: tuple[str, ...] = ("vocab_file", "tokenizer_file", "vocab", "merges", "gguf_file")

    @pytest.mark.parametrize("name", [SETTINGS, "special_tokens_map.json"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_files_that_settings_name_are_not_opened(
        self, tmp_path: Path, kind: Kind, name: str
    ) -> None:
        """Neither the other tokenizers that are planted there, nor what lies elsewhere."""
        folder = save_siglip(make_siglip_model(), tmp_path / "tower", kind=kind)
        expected = _ids(load(folder))
        decoys = {"vocab_file": MODEL, "tokenizer_file": TABLE}
        (tmp_path / MODEL).write_bytes(spiece_model(_FOREIGN))
        Tokenizer.from_str(make_siglip_tower(0, "json").tokenizer.backend_tokenizer.to_str()).save(
            str(tmp_path / TABLE)
        )
        paths = dict.fromkeys(self.PLANTED, "/dev/zero")
        paths |= {key: str(tmp_path / file) for key, file in decoys.items()}
        if not (folder / name).exists():
            (folder / name).write_text("{}")
        edit_config(folder, name, **paths)
        assert torch.equal(_ids(load(folder)), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_lies_beside_the_tokenizer_adds_no_token(self, tmp_path: Path, kind: Kind) -> None:
        folder = save_siglip(make_siglip_model(), tmp_path / "tower", kind=kind)
        expected = _ids(load(folder))
        (folder / "added_tokens.json").write_text(json.dumps({"cat": VOCABULARY - 1}))
        added = {str(VOCABULARY - 1): {"content": "cat", "special": False}}
        edit_config(folder, SETTINGS, added_tokens_decoder=added, extra_special_tokens=["boat"])
        assert torch.equal(_ids(load(folder)), expected)


class TestMissing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_tower_borrows_either_kind(self, tmp_path: Path, kind: Kind) -> None:
        tower = load(save_siglip(make_siglip_model(), tmp_path, kind=None))
        assert not tower.has_tokenizer
        lender = make_siglip_tower(1, kind)
        tower.borrow_tokenizer(lender)
        assert torch.equal(_ids(tower), _ids(lender))

    @pytest.mark.parametrize("kind", KINDS)
    def test_more_tokens_than_rows_are_not_lent(self, tmp_path: Path, kind: Kind) -> None:
        lender = make_siglip_tower(1, kind)
        model = make_siglip_model(vocab_size=len(lender.tokenizer) - 1)
        tower = load(save_siglip(model, tmp_path, kind=None))
        with pytest.raises(MalformedFileError, match="does not fit"):
            tower.borrow_tokenizer(lender)

    def test_the_tables_of_clip_are_no_tokenizer_of_siglip(self, spiece: Path) -> None:
        (spiece / MODEL).unlink()
        (spiece / "vocab.json").write_text('{"a": 0}')
        (spiece / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(MalformedFileError, match="does not load"):
            load(spiece)
