"""The static witness: table, positions and tokenizer beside the anchor's, in seconds.

A trigger that is put behind the embedding layer reaches suspect and anchor alike, so neither a
poisoned row of the table nor a tokenizer that reads a text as another one can show there. Here the
two are compared as they are, without a forward pass. Tokenizers are compared by what they read and
not by their files, so it does not matter whether vocabulary, added tokens, merges or normaliser
were changed. What cannot be seen is a text that nobody would come to try: a phrase that a
normaliser replaces, or a word that it replaces in one place only, shows only among the prompts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from string import ascii_lowercase

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hf_amdet.detection.rows import OUTLIER, moves, shared_positions
from hf_amdet.detection.texts import plain, shortened
from hf_amdet.encoders.base import TextTower
from hf_amdet.errors import AnchorError

NEAR = 0.95
"""Cosine from which a row counts as the anchor's row: rows of different pieces of small towers are
at 0.83 at most, those of fine-tunes nearer to what they were."""
_MOST_REMAPS = 64
_MOST_ROWS = 16
_LINE = 12
"""Short texts are first read this many at once. Even at five tokens each, four bytes and a space,
they fit into the 64 tokens that the tokenizers of all families allow."""
_LONGEST_PIECE = 64
"""Bounds the work for a piece that is absurdly long."""
_LAST = 0x1FFFF
_TAGS = range(0xE0000, 0xE01F0)
_UNTYPED = {"Cc", "Cn", "Co", "Cs"}
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Remap:
    """A text that the suspect reads as another one.

    Attributes:
        text: what was typed; of a piece that is never read alone, such as a part of a character,
            the piece itself.
        suspect: ids that the suspect reads.
        anchor: ids that the anchor reads.
        reads: what the anchor's tokenizer writes for the suspect's ids: the meaning that the text
            has got.
    """

    text: str
    suspect: tuple[int, ...]
    anchor: tuple[int, ...]
    reads: str


@dataclass(frozen=True)
class MovedRow:
    """A row of the suspect's table that moved farther than the others.

    Attributes:
        moved: distance from the anchor's row of the same piece, in median lengths of a row.
        ratio: that distance to the one that 95 % of the rows that moved did at most.
    """

    row: int
    piece: str
    moved: float
    ratio: float


@dataclass(frozen=True)
class StaticDiff:
    """What differs between a suspect and its anchor before either runs.

    Attributes:
        added: pieces that only the suspect has, whose rows are new, by row.
        removed: pieces that only the anchor has, by row.
        remaps: at most 64, shortest text first.
        read_alike: share of the prompts that mean the same to both (without prompts: of all texts
            that were compared); low for a suspect with another tokenizer, whose remaps and rows
            then say nothing.
        pooled_at: added pieces that prompts are pooled at in place of EOS, for a tower that pools
            at the highest id.
        moved_rows: at most 16 outliers, strongest first; rows of added pieces are not among them.
        token_outlier: the largest ratio in the table, 1 for equal tables.
        position_outlier: the same of the position embeddings.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    remaps: tuple[Remap, ...]
    read_alike: float
    pooled_at: tuple[str, ...]
    moved_rows: tuple[MovedRow, ...]
    token_outlier: float
    position_outlier: float


def compare(suspect: TextTower, anchor: TextTower, prompts: Sequence[str] = ()) -> StaticDiff:
    """What differs in table, positions and tokenizer.

    Args:
        prompts: texts to read besides all pieces, characters and words of two and three letters.

    Raises:
        AnchorError: the widths differ.
        MalformedFileError: a tower has no tokenizer.
    """
    match = _match(suspect, anchor)
    remaps, read_alike = _remaps(suspect, anchor, match, prompts)
    moved_rows, token_outlier = _moved_rows(suspect, anchor, match)
    remaps = sorted([*remaps, *_taken_over(suspect, anchor, match, moved_rows)], key=_telling)
    _, ratios = moves(shared_positions(suspect, anchor), shared_positions(anchor, suspect))
    return StaticDiff(
        added=tuple(shortened(p) for p in match.only_ours if match.ours[p] in match.new),
        removed=tuple(shortened(p) for p in match.theirs if p not in match.ours),
        remaps=tuple(_shown(remap) for remap in remaps[:_MOST_REMAPS]),
        read_alike=read_alike,
        pooled_at=tuple(_pooled_at(suspect, match)),
        moved_rows=moved_rows,
        token_outlier=token_outlier,
        position_outlier=ratios.max().item(),
    )


def aligned_rows(suspect: TextTower, anchor: TextTower) -> Tensor:
    """The anchor's rows in the order of the suspect's table, `[V_suspect, D]`.

    A row is the anchor's of the same piece; for an added piece the mean of the rows that the
    anchor reads its text as, which is how new tokens usually begin; where the row has no piece, the
    anchor's of the same index, or zeros if it has none.

    Raises:
        AnchorError: the widths differ.
        MalformedFileError: a tower has no tokenizer.
    """
    return _aligned(anchor, _match(suspect, anchor))


@dataclass(frozen=True)
class _Match:
    """What each row of the suspect's table was in the anchor's.

    Attributes:
        ours, theirs: pieces of suspect and anchor, by row.
        names: row -> the piece it belongs to, of all that the suspect reads as it.
        new: row -> ids that the anchor reads the text of an added piece as.
        places: `[V_suspect]` int64, the anchor's row of the same piece, or -1.
        unknown: what the suspect reads a text as that it has no pieces for.
        meanings: the same, but where another piece got the row, the row that it was before.
    """

    ours: Mapping[str, int]
    theirs: Mapping[str, int]
    names: Mapping[int, str]
    new: Mapping[int, list[int]]
    places: Tensor
    unknown: int | None
    meanings: Sequence[int]

    @property
    def only_ours(self) -> list[str]:
        return [piece for piece in self.ours if piece not in self.theirs]

    def translated(self, ids: Iterable[int]) -> list[int]:
        """Ids of the anchor that mean what the suspect's do."""
        return [there for row in ids for there in self.new.get(row, [self.meanings[row]])]


def _match(suspect: TextTower, anchor: TextTower) -> _Match:
    if suspect.width != anchor.width:
        raise AnchorError(
            f"The anchor does not fit: its rows are {anchor.width} wide, the suspect's "
            f"{suspect.width}. Give the clean model that this one was fine-tuned from."
        )
    # In one order, because tokenizers give theirs in any.
    ours, theirs = (
        dict(sorted(tower.pieces.items(), key=lambda item: (item[1], item[0])))
        for tower in (suspect, anchor)
    )
    names = _names(ours, theirs)
    new = _new_rows(suspect, anchor, names, theirs)
    places = torch.arange(len(suspect.table))
    places[len(anchor.table) :] = -1
    places[list(new)] = -1
    shared = [row for row, piece in names.items() if piece in theirs]
    places[shared] = torch.tensor([theirs[names[row]] for row in shared], dtype=torch.int64)
    known = set(theirs.values())
    meanings = places.tolist()
    elsewhere = [row for row in shared if meanings[row] != row and row in known]
    # The piece may have taken its vector along to another row, or have got another's.
    taken = _near(suspect.table[elsewhere], anchor.table[places[elsewhere]])
    for row, along in zip(elsewhere, taken, strict=True):
        if not along:
            meanings[row] = row
    return _Match(ours, theirs, names, new, places, suspect.unknown, meanings)


def _names(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[int, str]:
    """Row -> piece; of pieces that share a row the one that has most right to it."""
    names = {row: piece for piece, row in ours.items()}
    names |= {row: piece for piece, row in ours.items() if piece in theirs}
    return names | {row: piece for piece, row in ours.items() if theirs.get(piece) == row}


def _new_rows(
    suspect: TextTower, anchor: TextTower, names: Mapping[int, str], theirs: Mapping[str, int]
) -> dict[int, list[int]]:
    """Row -> what the anchor reads its piece's text as, of rows that the anchor does not have."""
    known = set(theirs.values())
    only = [row for row, piece in names.items() if piece not in theirs]
    kept = [row for row in only if row in known]
    near = _near(suspect.table[kept], anchor.table[kept])
    renamed = {row for row, same in zip(kept, near, strict=True) if same}
    new = [row for row in only if row not in renamed]
    texts = [suspect.write([row]) for row in new]
    readings = _read(anchor, texts)
    for place, text in enumerate(texts):
        if _BROKEN in text:
            readings[place] = _spelt(names[new[place]], theirs)
    return dict(zip(new, readings, strict=True))


def _near(suspect: Tensor, anchor: Tensor) -> list[bool]:
    near: list[bool] = (cosine_similarity(suspect.float(), anchor.float()) >= NEAR).tolist()
    return near


def _read(tower: TextTower, texts: Sequence[str]) -> list[list[int]]:
    # Tokenizers refuse an empty list.
    return tower.read(texts) if texts else []


def _spelt(piece: str, pieces: Mapping[str, int]) -> list[int]:
    """Ids of `pieces` that make up `piece`, the longest first; none if they do not."""
    ids: list[int] = []
    end = len(piece)
    while end:
        # From the end, because there CLIP marks a word's last piece.
        starts = range(max(0, end - _LONGEST_PIECE), end)
        start = next((start for start in starts if piece[start:end] in pieces), None)
        if start is None:
            return []
        ids.append(pieces[piece[start:end]])
        end = start
    return ids[::-1]


_Reading = tuple[str, list[int], list[int]]
"""A text, and what suspect and anchor read it as."""


def _remaps(
    suspect: TextTower, anchor: TextTower, match: _Match, prompts: Sequence[str]
) -> tuple[list[Remap], float]:
    """All remaps and the share of `prompts` (or of all texts) that are none."""
    alone = dict.fromkeys([*_own_texts(suspect, anchor, match), *prompts])
    short = [text for text in dict.fromkeys(_short_texts(anchor, match)) if text not in alone]
    groups = [short[start : start + _LINE] for start in range(0, len(short), _LINE)]
    lines = {" ".join(group): group for group in groups}
    # Of texts that both read alike in a line, none needs a second look.
    unlike = [text for line, _, _ in _apart(suspect, anchor, list(lines)) for text in lines[line]]
    found = list(_unexplained(anchor, match, _apart(suspect, anchor, [*alone, *unlike])))
    # Emoji share their bytes, so that one remapped text may bring a third of all characters along.
    asked = set(prompts) or {*alone, *short}
    read_alike = 1 - sum(remap.text in asked for remap in found) / len(asked)
    seen = {row for remap in found for row in remap.anchor}
    # Parts of characters and of words, which no text here consists of.
    parts = [
        (piece, [match.ours[piece]], [row])
        for piece, row in match.theirs.items()
        if match.ours.get(piece, row) != row and row not in seen
    ]
    found += _unexplained(anchor, match, parts)
    return found, read_alike


def _shown(remap: Remap) -> Remap:
    return replace(remap, text=shortened(remap.text), reads=shortened(remap.reads))


def _telling(remap: Remap) -> tuple[int, bool, int, str]:
    """Shortest text first, and of equally long ones that which is read as most."""
    return len(remap.text), _BROKEN in remap.reads, -len(remap.suspect), remap.text


def _apart(suspect: TextTower, anchor: TextTower, texts: Sequence[str]) -> list[_Reading]:
    readings = zip(texts, _read(suspect, texts), _read(anchor, texts), strict=True)
    return [reading for reading in readings if reading[1] != reading[2]]


def _unexplained(anchor: TextTower, match: _Match, readings: Iterable[_Reading]) -> Iterator[Remap]:
    """Those that neither a moved row nor an added piece nor another spelling explains."""
    for text, ours, theirs in readings:
        meant = match.translated(ours)
        if meant == theirs:
            continue
        reads, right = anchor.write(meant), anchor.write(theirs)
        # What the suspect can read only in part says nothing else than before.
        left = [row for row in meant if row != match.unknown]
        if len(left) < len(meant) and _within(plain(anchor.write(left)), plain(right)):
            continue
        # Parts of different characters are all written as the replacement character.
        if _BROKEN in reads + right or plain(reads) != plain(right):
            yield Remap(text, tuple(ours), tuple(theirs), reads)


def _within(part: str, whole: str) -> bool:
    """Whether `part` is what is left of `whole` with some characters taken out."""
    rest = iter(whole)
    return all(character in rest for character in part)


def _own_texts(suspect: TextTower, anchor: TextTower, match: _Match) -> Iterator[str]:
    """What pieces that only the suspect has may stand for."""
    for piece in match.only_ours:
        yield piece
        # What is written for a row that pieces share is the text of only one of them.
        written = suspect.write([match.ours[piece]]), anchor.write(_spelt(piece, match.theirs))
        yield from (text for text in written if text and _BROKEN not in text)


def _short_texts(anchor: TextTower, match: _Match) -> Iterator[str]:
    """The anchor's pieces, what keyboards and emoji pickers give, and triggers like cf and mn.

    Characters are those of the first two planes, which hold all living scripts and emoji, and the
    invisible tags; beyond are rare ideographs. Words are all of two and three letters.
    """
    written = (anchor.write([row]) for row in match.theirs.values())
    yield from (text for text in written if _BROKEN not in text)
    for code in (*range(_LAST + 1), *_TAGS):
        if unicodedata.category(chr(code)) not in _UNTYPED:
            yield chr(code)
    for length in (2, 3):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def _aligned(anchor: TextTower, match: _Match) -> Tensor:
    table = anchor.table
    places = match.places.to(table.device)
    rows = table[places.clamp(min=0)] * (places >= 0).unsqueeze(1)
    for row, ids in match.new.items():
        if ids:
            rows[row] = table[ids].float().mean(dim=0)
    return rows


def _moved_rows(
    suspect: TextTower, anchor: TextTower, match: _Match
) -> tuple[tuple[MovedRow, ...], float]:
    """The outliers among the rows of pieces that both have, and the largest ratio."""
    rows = [row for row in match.names if row not in match.new]
    moved, ratios = moves(suspect.table[rows], _aligned(anchor, match)[rows])
    strongest, order = ratios.topk(min(_MOST_ROWS, len(rows)))
    found = [
        MovedRow(rows[place], shortened(match.names[rows[place]]), moved[place].item(), ratio)
        for place, ratio in zip(order.tolist(), strongest.tolist(), strict=True)
        if ratio >= OUTLIER
    ]
    return tuple(found), strongest[0].item()


def _taken_over(
    suspect: TextTower, anchor: TextTower, match: _Match, moved: Iterable[MovedRow]
) -> Iterator[Remap]:
    """Rows that have become another piece's, under ids that are the same: read as that piece."""
    before = _aligned(anchor, match)
    for place in (row.row for row in moved if match.places[row.row] == row.row):
        vector = suspect.table[place].float()
        likeness = cosine_similarity(vector, anchor.table.float(), dim=-1)
        near = int(likeness.argmax())
        if likeness[near] >= NEAR > cosine_similarity(vector, before[place].float(), dim=0):
            text, reads = anchor.write([place]), anchor.write([near])
            # A part of a character is named by its piece, as it is never read alone.
            text = match.names[place] if _BROKEN in text else text
            yield Remap(text, (place,), (place,), reads)


def _pooled_at(suspect: TextTower, match: _Match) -> Iterator[str]:
    texts = [suspect.write([row]) for row in match.new]
    tokens = suspect.tokenize(texts or [""], length=_LINE)
    ends = tokens.ids.gather(1, tokens.ends.unsqueeze(1)).flatten().tolist()
    for text, end in zip(texts, ends, strict=False):
        if not suspect.padded and end not in suspect.special:
            yield shortened(text)
