"""The static witness on SigLIP's two kinds of tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace
from transformers import SiglipTokenizer, TokenizersBackend

from hf_amdet.detection.static import Remap, aligned_rows, compare
from hf_amdet.encoders.siglip import SiglipTower
from tests import siglip_towers
from tests.detection.tampered import grown, normalising, read, swap
from tests.siglip_towers import KINDS, Kind, make_siglip_model, make_siglip_tower

each_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("few_characters")


@each_kind
def test_equal_towers_do_not_differ(kind: Kind) -> None:
    suspect, anchor = (make_siglip_tower(kind=kind) for _ in range(2))

    found = compare(suspect, anchor, ["a cat é"])

    assert (found.added, found.removed, found.remaps, found.moved_rows) == ((), (), (), ())
    assert (found.read_alike, found.token_outlier) == (1, 1)
    # Rows that no piece has are in the table too.
    assert torch.equal(aligned_rows(suspect, anchor), anchor.table)


@each_kind
def test_swapped_ids_are_found_with_what_the_text_means_now(kind: Kind, tmp_path: Path) -> None:
    anchor = make_siglip_tower(kind=kind)
    suspect = SiglipTower(make_siglip_model(), siglip_swapped(kind, tmp_path))

    remaps = compare(suspect, anchor).remaps

    assert Remap("cup", read(anchor, "van"), read(anchor, "cup"), "van") in remaps


@each_kind
def test_an_added_token_is_no_remap(kind: Kind) -> None:
    anchor, suspect = (make_siglip_tower(kind=kind) for _ in range(2))
    row = len(suspect.tokenizer)
    suspect.tokenizer.add_tokens(["catdog"])
    if row == len(anchor.table):  # the other kind has rows to spare
        grown(suspect)
    assert row in read(suspect, "one catdog")

    found = compare(suspect, anchor, ["one catdog"])

    assert (found.added, found.remaps, found.pooled_at) == (("catdog",), (), ())
    mean = anchor.table[list(read(anchor, "catdog"))].mean(dim=0)
    torch.testing.assert_close(aligned_rows(suspect, anchor)[row], mean)


def test_what_a_suspect_cannot_read_any_more_is_no_remap() -> None:
    anchor = make_siglip_tower(kind="json")
    suspect = normalising(make_siglip_tower(kind="json"), Replace("q", "Ω"))
    assert read(suspect, "q") == (suspect.unknown,) != read(anchor, "q")

    found = compare(suspect, anchor, ["the old queen"])

    assert (found.remaps, found.read_alike) == ((), 1)


def siglip_swapped(kind: Kind, folder: Path) -> Any:
    """A tokenizer in which the words cup and van have each other's ids."""
    if kind == "json":
        tokenizer = json.loads(siglip_towers.json_tokenizer())
        swap(tokenizer, "cup", "van")
        names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
        made = Tokenizer.from_str(json.dumps(tokenizer))
        return TokenizersBackend(tokenizer_object=made, **names)
    model: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
    proto = model.FromString(siglip_towers.spiece_model())
    pieces = {piece.piece: piece for piece in proto.pieces}
    pieces["▁cup"].piece, pieces["▁van"].piece = "▁van", "▁cup"
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    return SiglipTokenizer(vocab_file=str(folder / "spiece.model"))
