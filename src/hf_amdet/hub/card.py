"""Edit a model card as text: our metadata key and our section, and not one byte besides.

A card is somebody else's file. Reading its YAML and writing it back would drop comments and turn
`no` into `false`, so the key `amdet` and the section between two HTML comments are spliced into
the bytes, and what was written is read again to make sure that nothing else moved.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from markdown_it import MarkdownIt

from hf_amdet.errors import CardError, PublishError
from hf_amdet.hub import frontmatter
from hf_amdet.hub.frontmatter import KEY, FrontMatter
from hf_amdet.report import markdown
from hf_amdet.report.schema import Report

MAX_BYTES = 2 * 1024 * 1024
"""Largest README.md that is edited."""

BEGIN = b"<!-- amdet:begin -->"
END = b"<!-- amdet:end -->"

_BOM = codecs.BOM_UTF8
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NEWLINE = rb"(?:\r\n|\r|\n)"
# As huggingface_hub's own pattern, but for blanks behind the opening dashes and for an empty block.
_OPENING = re.compile(rb"\s*---[ \t]*" + _NEWLINE)
_CLOSING = re.compile(rb"(?:(?<=\n)|(?<=\r))---[ \t]*(?:" + _NEWLINE + rb"|\Z)")


@dataclass(frozen=True)
class CardMetadata:
    """What stands under the key `amdet`: the last scan, for machines and for ourselves."""

    schema_version: int
    verdict: str
    commit: str
    date: str
    tool_version: str
    report: str
    files: str | None
    """Digest of all files that the verdict rests on; None where a tower could not be read."""


@dataclass(frozen=True)
class CardChange:
    """README.md before and after a report is published; equal where nothing is to be done."""

    before: bytes | None
    """None where there is no README.md."""
    after: bytes | None


@dataclass(frozen=True)
class _Card:
    """The parts of a card; concatenated they are its bytes again."""

    head: bytes
    """Byte order mark, blank lines and the opening line of the front matter."""
    yaml: bytes | None
    """What stands between the dashes; None without front matter."""
    closing: bytes
    body: bytes


def splice(card: bytes | None, metadata: CardMetadata, section: str, new_card: str) -> bytes:
    """`card` with our key and our section in it, every other byte as before; twice is once.

    Args:
        card: README.md as it stands, None or empty where there is none.
        metadata: what to put under the key `amdet`.
        section: Markdown between our markers, without them, with plain newlines.
        new_card: the card to start from where there is none.

    Raises:
        CardError: the card cannot be edited without losing something; says what to mend.
    """
    before = card or new_card.encode()
    newline = _newline(before)
    parts = _split(before)
    front = _front_matter(parts)
    mapping = {key: value for key, value in asdict(metadata).items() if value is not None}
    head = _with_key(parts, front, mapping, newline)
    wrapped = _wrapped(section, newline)
    for candidate in _with_section(head, parts.body, wrapped, newline):
        if _is_as_meant(candidate, front, mapping, wrapped):
            return candidate
    raise CardError(
        "README.md cannot be edited safely: after the edit its metadata or its sections would not "
        f"read as before. Put the key `{KEY}:` on a line of its own at the end of the metadata, "
        f"and the lines `{BEGIN.decode()}` and `{END.decode()}` where the report shall stand"
    )


def read_metadata(card: bytes) -> dict[str, Any] | None:
    """The mapping under the key `amdet`, or None without one.

    Raises:
        CardError: the front matter does not parse, or the key holds no mapping.
    """
    front = _front_matter(_split(card))
    return None if front is None else frontmatter.read_key(front)


def read_base_models(card: bytes) -> list[str]:
    """What the card names under `base_model`: the owner's word for what the model was made from.

    Raises:
        CardError: the front matter does not parse.
    """
    yaml_bytes = _split(card).yaml
    if yaml_bytes is None:
        return []
    return frontmatter.strings_under(yaml_bytes, "base_model", first_line=2)


def opted_out(metadata: Mapping[str, Any] | None) -> bool:
    """Whether the owner wrote `amdet: {opt_out: true}`; anything but a plain no counts as yes."""
    return (metadata or {}).get("opt_out") not in (None, False, "false", "no")


def metadata_of(report: Report, report_path: str) -> CardMetadata:
    """What the card is to say about a report of a commit, which stands at `report_path`."""
    return CardMetadata(
        schema_version=report.schema_version,
        verdict=report.verdict.value,
        commit=report.commit_sha or "",
        date=report.created_at[:10],
        tool_version=report.environment.hf_amdet,
        report=report_path,
        files=_files_digest(report),
    )


def states(found: Mapping[str, Any], new: CardMetadata) -> bool:
    """Whether the metadata of a card says what `new` says: the same of the same model."""
    if new.files is None:
        same = found.get("commit") == new.commit
    else:
        same = found.get("files") == new.files
    return (
        same
        and found.get("verdict") == new.verdict
        and found.get("tool_version") == new.tool_version
    )


def says_already(card: bytes | None, new: CardMetadata, place: str) -> bool:
    """Whether a card states what `new` does; `place` names its repo or folder in messages.

    Raises:
        PublishError: the owner opted out.
        CardError: the front matter does not parse, or our key holds no mapping.
    """
    found = None if card is None else read_metadata(card)
    if opted_out(found):
        raise PublishError(
            f"the owner of {place} opted out of published reports (`amdet: {{opt_out: true}}`"
            " in the card): nothing was published, and the report is kept"
        )
    return states(found or {}, new)


def with_report(card: bytes | None, report: Report, metadata: CardMetadata, place: str) -> bytes:
    """README.md as it is published with a report.

    Raises:
        CardError: as `splice` says, or README.md is not UTF-8.
    """
    readme = splice(card, metadata, markdown.section(report), markdown.new_card(report))
    try:
        readme.decode()
    except UnicodeDecodeError as error:
        raise CardError(
            f"{place}: README.md is not UTF-8 at byte {error.start}, and cannot be sent to the "
            "Hub: save it as UTF-8"
        ) from error
    return readme


def change(card: bytes | None, report: Report, metadata: CardMetadata, place: str) -> CardChange:
    """What publishing a report makes of a card.

    Raises:
        PublishError: as `says_already` says.
        CardError: as `says_already` and `with_report` say.
    """
    if says_already(card, metadata, place):
        return CardChange(card, card)
    return CardChange(card, with_report(card, report, metadata, place))


def _files_digest(report: Report) -> str | None:
    """One digest of all that was compared, and how; None where a tower could not be read.

    Our own commit moves main, and so does every edit of the card. By this digest a scan of the
    new commit is known to be about the same model.
    """
    if not report.towers or not all(tower.files for tower in report.towers):
        return None
    rows = []
    for tower in report.towers:
        anchor = tower.anchor.files if tower.anchor else ()
        base = tower.base.files if tower.base else ()
        for role, files in (("suspect", tower.files), ("base", base), ("anchor", anchor)):
            rows += [[tower.path, role, file.path, file.sha256] for file in files]
    settings = report.config.model_dump(exclude={"anchor"})
    key = json.dumps([sorted(rows), settings], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()


def _newline(card: bytes) -> bytes:
    """The line break that the card uses most."""
    crlf = card.count(b"\r\n")
    counts = {b"\n": card.count(b"\n") - crlf, b"\r\n": crlf, b"\r": card.count(b"\r") - crlf}
    return max(counts, key=counts.__getitem__)


def _split(card: bytes) -> _Card:
    if card.startswith(_UTF_16):
        raise CardError("README.md is stored as UTF-16: save it as UTF-8")
    mark = _BOM if card.startswith(_BOM) else b""
    opening = _OPENING.match(card, len(mark))
    closing = _CLOSING.search(card, opening.end()) if opening else None
    if opening is None or closing is None:
        return _Card(mark, None, b"", card[len(mark) :])
    return _Card(
        head=card[: opening.end()],
        yaml=card[opening.end() : closing.start()],
        closing=closing.group(),
        body=card[closing.end() :],
    )


def _front_matter(parts: _Card) -> FrontMatter | None:
    if parts.yaml is None:
        return None
    return frontmatter.read(parts.yaml, first_line=len(parts.head.splitlines()) + 1)


def _with_key(
    parts: _Card, front: FrontMatter | None, mapping: Mapping[str, str | int], newline: bytes
) -> bytes:
    """Everything before the body, with our key in it."""
    # A JSON string is a quoted YAML string too: a sha of digits stays a string in every parser.
    lines = [f"{KEY}:", *(f"  {key}: {json.dumps(value)}" for key, value in mapping.items())]
    indent = " " * (front.column if front else 0)
    block = b"".join((indent + line).encode() + newline for line in lines)
    if front is None:
        return parts.head + b"---" + newline + block + b"---" + newline
    start, end = front.block or (len(front.text), len(front.text))
    text = front.text[:start].encode() + block + front.text[end:].encode()
    return parts.head + text + parts.closing


def _wrapped(section: str, newline: bytes) -> bytes:
    inner = section.strip("\n").encode().replace(b"\n", newline)
    return (newline * 2).join([BEGIN, inner, END])


def _with_section(head: bytes, body: bytes, wrapped: bytes, newline: bytes) -> list[bytes]:
    """Where our section can stand, best first."""
    span = _section_span(body)
    if span is not None:
        return [head + body[: span[0]] + wrapped + body[span[1] :]]
    whole = head + body
    gap = b"" if whole.endswith((b"\n", b"\r")) else newline
    at_end = whole + gap + newline + wrapped + newline
    # At the end of some cards everything is code, since a fence was never closed.
    at_start = head + newline + wrapped + newline + newline + body
    return [at_end, at_start]


def _section_span(body: bytes) -> tuple[int, int] | None:
    """Start of our opening marker's line and end of our closing one's, without its line break.

    Raises:
        CardError: the markers are no single pair.
    """
    begins, ends = _marker_lines(body, BEGIN), _marker_lines(body, END)
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise CardError(
            f"README.md has {len(begins)} line(s) `{BEGIN.decode()}` and {len(ends)} line(s) "
            f"`{END.decode()}`: keep one of each, in this order, or none"
        )
    lines = body.splitlines(keepends=True)
    start = sum(map(len, lines[: begins[0]]))
    end = sum(map(len, lines[: ends[0]])) + len(lines[ends[0]].rstrip(b"\r\n"))
    return start, end


def _marker_lines(body: bytes, marker: bytes) -> list[int]:
    """Numbers of the lines that are this marker; those in code, lists or comments are not."""
    if marker not in body:
        return []
    # Line breaks count alike for this parser and for bytes.splitlines. Inline markup is not read.
    parser = MarkdownIt("commonmark").disable(["inline", "reference"])
    text = body.decode(errors="surrogateescape")
    return [
        token.map[0]
        for token in parser.parse(text)
        if token.type == "html_block"
        and token.level == 0
        and token.map is not None
        and token.content.strip(" \n\t") == marker.decode()
    ]


def _is_as_meant(
    candidate: bytes, front: FrontMatter | None, mapping: Mapping[str, str | int], wrapped: bytes
) -> bool:
    """Read the edited card as anybody would: is only ours new, and is it found again?"""
    try:
        parts = _split(candidate)
        after = _front_matter(parts)
        span = _section_span(parts.body)
        if after is None or span is None:
            return False
        return (
            after.others == (front.others if front else ())
            and frontmatter.read_key(after) == mapping
            and parts.body[slice(*span)] == wrapped
        )
    except CardError:
        return False
