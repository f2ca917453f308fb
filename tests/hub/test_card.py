"""Splicing changes our key and our section, and not one byte besides."""

from __future__ import annotations

import codecs
import textwrap
import warnings
from dataclasses import replace

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]
from huggingface_hub import ModelCard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_amdet.errors import CardError
from hf_amdet.hub import card
from hf_amdet.hub.card import BEGIN, END, CardMetadata

METADATA = CardMetadata(
    schema_version=1,
    verdict="no_evidence",
    commit="1234567890" * 4,
    date="2026-01-02",
    tool_version="0.1.0",
    report="amdet/report.json",
    files="ab" * 32,
)
SECTION = "## Backdoor scan\n\nNothing found.\n"
NEW_CARD = "# org/model\n"


def splice(text: bytes | None, metadata: CardMetadata = METADATA, section: str = SECTION) -> bytes:
    return card.splice(text, metadata, section, NEW_CARD)


def block(newline: str = "\n", indent: str = "") -> bytes:
    lines = """\
        amdet:
          schema_version: 1
          verdict: "no_evidence"
          commit: "1234567890123456789012345678901234567890"
          date: "2026-01-02"
          tool_version: "0.1.0"
          report: "amdet/report.json"
          files: "abababababababababababababababababababababababababababababababab"
        """
    text = textwrap.indent(textwrap.dedent(lines), indent)
    return text.replace("\n", newline).encode()


def section(newline: str = "\n") -> bytes:
    text = f"{BEGIN.decode()}\n\n## Backdoor scan\n\nNothing found.\n\n{END.decode()}"
    return text.replace("\n", newline).encode()


def test_card_with_front_matter_is_spliced_in_place() -> None:
    before = b"---\nlicense: mit # keep\ntags: [a,  b]\n---\n# Model\n\nText.\n"
    after = b"---\nlicense: mit # keep\ntags: [a,  b]\n" + block() + b"---\n# Model\n\nText.\n\n"
    assert splice(before) == after + section() + b"\n"


def test_card_without_front_matter_gets_one() -> None:
    assert splice(b"# Model\n") == b"---\n" + block() + b"---\n# Model\n\n" + section() + b"\n"


@pytest.mark.parametrize("absent", [None, b""])
def test_repo_without_card_gets_the_new_one(absent: bytes | None) -> None:
    assert splice(absent) == splice(NEW_CARD.encode())


def test_our_text_adopts_the_newlines_of_the_card() -> None:
    for newline in ("\r\n", "\r"):
        before = "---\nlicense: mit\n---\n# Model\n".replace("\n", newline).encode()
        after = splice(before)
        assert block(newline) in after
        assert section(newline) in after
        assert after.replace(newline.encode(), b"").count(b"\n") == 0


def test_mixed_newlines_stay_mixed() -> None:
    before = b"---\r\nlicense: mit\n---\r\n# Model\r\nText\n\r\nmore"
    after = splice(before)
    assert after.startswith(b"---\r\nlicense: mit\n" + block("\r\n") + b"---\r\n# Model\r\nText\n")
    assert after.endswith(b"\r\nmore\r\n\r\n" + section("\r\n") + b"\r\n")


def test_byte_order_mark_stays_first() -> None:
    for rest in (b"# Model\n", b"---\nlicense: mit\n---\n"):
        after = splice(codecs.BOM_UTF8 + rest)
        assert after == codecs.BOM_UTF8 + splice(rest)


def test_missing_trailing_newline_and_other_encodings_stay() -> None:
    body = b"caf\xe9 \xff\xfe \x00 end"
    after = splice(b"---\nlicense: mit\n---\n" + body)
    assert b"---\n" + body + b"\n\n" + section() in after


def test_rescan_replaces_in_place_and_keeps_what_stands_around() -> None:
    first = splice(b"---\nlicense: mit\n---\n# Model\n")
    owner = first.replace(b"---\n# Model", b"# tail\nlanguage: en\n---\n# Model") + b"\n## After\n"
    second = splice(owner, replace(METADATA, verdict="flagged"), "Found.")
    assert second == owner.replace(b'"no_evidence"', b'"flagged"').replace(
        b"## Backdoor scan\n\nNothing found.", b"Found."
    )


@pytest.mark.parametrize(
    "front",
    [
        b"license: mit\n  # deep comment\n",
        b"  license: mit\n  tags:\n  - a\n",
        b"tags:\n- a\n- b\n",
        b"text: |+\n  amdet:\n  <!-- amdet:begin -->\n\n\n",
        b"text: >-\n  folded\n\n  amdet: 1\n",
        b'"quoted: key": {amdet: {opt_out: true}}\n',
        b"other:\n  amdet:\n    opt_out: true\n",
        b"a: &x [1, 2]\nb: *x\n",
        b"yes: no\nversion: 1.10\ndate: 2020-01-01\n",
        b"plain: several\n  lines\n   of text\n",
        "name: 𝒳 塔 é\n".encode(),
        b"empty:\n",
        b"? complex\n: value\n",
        b"? [a, b]\n: value\n",
        b"# only a comment\n",
        b"\n\n",
        b"",
    ],
)
def test_odd_metadata_stays_byte_for_byte(front: bytes) -> None:
    before = b"---\n" + front + b"---\nbody\n"
    after = splice(before)
    assert after.startswith(b"---\n" + front)
    assert splice(after) == after
    again = splice(after, replace(METADATA, date="2027-01-01"))
    assert again == after.replace(b"2026-01-02", b"2027-01-01")


@pytest.mark.parametrize(
    "ours",
    [
        b"amdet: {opt_out: false}\n",
        b"amdet:\n  a: 1\n  b: [1,\n   2]\n",
        b"amdet:\n\n  a: 1 # mine\n",
        b'"amdet": {}\n',
        b"'amdet': {a: \"x\n  y\"}\n",
        b"? amdet\n: a: 1\n",
        b"amdet: null\n",
        b"amdet:\n",
        b"amdet:\n  note: |\n    several\n\n    lines\n",
        b"amdet:\n  - list\n",
        b"amdet: text\n",
    ],
)
def test_our_key_is_replaced_where_it_stands(ours: bytes) -> None:
    around = (b"---\nfirst: 1 # c\n", b"# comment\nlast: |+\n  x\n\n---\nbody\n")
    after = splice(ours.join(around))
    assert after.startswith(block().join(around))
    assert splice(after) == after


def test_metadata_with_indentation_keeps_its_column() -> None:
    after = splice(b"---\n  license: mit\n---\n")
    assert after.startswith(b"---\n  license: mit\n" + block(indent="  ") + b"---\n")


@pytest.mark.parametrize(
    "opening", [b"---\n", b"\n\n---\n", b"  ---\n", b"--- \t\n", b"\xef\xbb\xbf---\n"]
)
@pytest.mark.parametrize("closing", [b"---\n", b"---  \n", b"---"])
def test_fences_of_the_front_matter(opening: bytes, closing: bytes) -> None:
    after = splice(opening + b"license: mit\n" + closing)
    assert after.startswith(opening + b"license: mit\n" + block() + closing)
    assert splice(after) == after


@pytest.mark.parametrize(
    "body",
    [
        b"---\nlicense: mit\n",
        b"--- title ---\n\n---\nx\n---\n",
        b"# T\n\n---\nlicense: mit\n---\n",
        b"----\na: 1\n----\n",
    ],
)
def test_dashes_that_open_no_front_matter(body: bytes) -> None:
    assert splice(body).startswith(b"---\n" + block() + b"---\n" + body)


@pytest.mark.parametrize(
    "text",
    [
        b"```\n<!-- amdet:begin -->\nx\n<!-- amdet:end -->\n```\n",
        b"~~~~ html\n<!-- amdet:begin -->\n~~~\n<!-- amdet:end -->\n~~~~\n",
        b"    <!-- amdet:begin -->\n    <!-- amdet:end -->\n",
        b"- ```\n  <!-- amdet:begin -->\n  ```\n\ntext\n",
        b"> <!-- amdet:begin -->\n",
        b"`<!-- amdet:begin -->` and <!-- amdet:end --> in a line\n",
        b"<pre>\n<!-- amdet:begin -->\n</pre>\n",
        b"<!--\n```\n-->\n",
    ],
)
def test_markers_in_code_are_not_ours(text: bytes) -> None:
    after = splice(text)
    assert after.endswith(text + b"\n" + section() + b"\n")
    assert splice(after) == after


@pytest.mark.parametrize("text", [b"# T\n```\ncode", b"<!-- never closed\n", b"<pre>\nx\n"])
def test_section_goes_first_where_the_end_is_code(text: bytes) -> None:
    after = splice(text)
    assert after == b"---\n" + block() + b"---\n\n" + section() + b"\n\n" + text
    assert splice(after) == after


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"---\na: [1\n---\n", r"not valid YAML \(line [23]\)"),
        (b"---\na: 1\na: 2\n---\n", r"key 'a' twice.*line 3"),
        (b"---\namdet: {}\nb: 1\n'amdet': {}\n---\n", "key 'amdet' twice"),
        (b"---\n- a\n---\n", "no mapping"),
        (b"---\njust text\n---\n", "no mapping"),
        (b"---\n{a: 1}\n---\n", "in braces"),
        (b"---\n&r\na: 1\n---\n", "anchor"),
        (b"---\namdet: &x {a: 1}\n---\n", "anchors"),
        (b"---\na: &x {b: 1}\namdet: *x\n---\n", "aliases"),
        (b"---\namdet: !!map {a: 1}\n---\n", "tags"),
        (b"---\na: &k amdet\n*k : {opt_out: true}\n---\n", "alias: write the key out"),
        (b"---\na: &x {amdet: {opt_out: true}}\n<<: *x\n---\n", "merges keys in"),
        (b"---\na: " + b"[" * 500 + b"]" * 500 + b"\n---\n", "nested"),
        (b"---\na: 1\n...\n\n---\n", "edited safely"),
        (b"---\na: 1\n...\nb: 2\n---\n", "several YAML documents|not valid YAML"),
        (b"---\na: \xff\n---\n", "not UTF-8"),
        (b"---\na: \x07\n---\n", "characters"),
        (b"---\nx: *nowhere\n---\n", r"unknown alias.*line 2"),
        ("# T\n".encode("utf-16"), "UTF-16"),
        (BEGIN + b"\n", "1 line.* and 0 line"),
        (END + b"\n", "0 line.* and 1 line"),
        (END + b"\n\n" + BEGIN + b"\n", "in this order"),
        ((BEGIN + b"\nx\n\n" + END + b"\n\n") * 2, "2 line.* and 2 line"),
        (BEGIN + b"\n```\n" + END + b"\n", "1 line.* and 0 line"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(CardError, match=said):
        splice(text)


@pytest.mark.parametrize(
    "inner", ["```\nopen", END.decode(), "<!-- open", f"x\n\n{BEGIN.decode()}"]
)
def test_a_section_that_would_not_be_found_again_is_refused(inner: str) -> None:
    with pytest.raises(CardError, match="edited safely"):
        splice(b"# T\n", section=inner)


def test_hostile_yaml_ends_quickly() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    before = b"---\n" + laughs.encode() + b"---\n"
    assert card.read_metadata(splice(before)) is not None


def test_metadata_comes_back() -> None:
    assert card.read_metadata(splice(None)) == vars(METADATA)
    assert card.read_metadata(b"# no front matter\n") is None
    assert card.read_metadata(b"---\nlicense: mit\n---\n") is None
    without_files = splice(None, replace(METADATA, files=None))
    assert "files" not in (card.read_metadata(without_files) or {})


def test_the_hub_library_reads_what_was_written() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ModelCard(splice(b"---\nlicense: mit\n---\n# T\n").decode())
    assert loaded.data.get("amdet") == vars(METADATA)
    assert loaded.data.get("license") == "mit"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{opt_out: true}", True),
        ("{opt_out: yes}", True),
        ('{opt_out: "please"}', True),
        ("{opt_out: 1}", True),
        ("{opt_out: false}", False),
        ("{opt_out: no}", False),
        ("{opt_out: 'no'}", False),
        ("{opt_out: }", False),
        ("{verdict: flagged}", False),
    ],
)
def test_opt_out(value: str, expected: bool) -> None:
    metadata = card.read_metadata(f"---\nlicense: mit\namdet: {value}\n---\n".encode())
    assert card.opted_out(metadata) is expected
    assert not card.opted_out(None)


@pytest.mark.parametrize("value", ["true", "[1]", "", "{date: 2020-99-99}"])
def test_a_key_that_holds_no_mapping_is_refused(value: str) -> None:
    with pytest.raises(CardError):
        card.read_metadata(f"---\namdet: {value}\n---\n".encode())


_LINES = [
    b"# T", b"", b"text", b"---", b"--- ", b"```", b"~~~", b"```python", b"- ```", b"  ```",
    b"    code", b"> quote", b"- item", b"1. x", b"<div>", b"<pre>", b"</pre>", b"<!--", b"-->",
    b"===", b"license: mit", b"amdet: x", b"tags:", b"- a", b"  amdet: {opt_out: true}", b"# c",
    b"k: |", b"k2: 'x'", b"\xff\xfe", "塔 é 𝒳".encode(), b"caf\xe9", b"\t", b"[a]: b", b"\x0c",
    b"`" + BEGIN + b"`", b"> " + BEGIN, b"    " + END,
]  # fmt: skip
_ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
_BODY = st.lists(st.tuples(st.sampled_from(_LINES), _ENDS), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
_KEYS = st.lists(
    st.sampled_from(
        [b"license: mit", b"tags:\n- a", b"x: |+\n  y\n\n", b"# c", b"z: {amdet: 1}", b"d: >\n  e"]
    ),
    unique=True,
).map(lambda keys: b"".join(key + b"\n" for key in keys))
_CARDS = st.builds(
    lambda mark, front, body, crlf, cut: (
        mark + (front + body).replace(b"\n", crlf)[: -1 if cut else None]
    ),
    mark=st.sampled_from([b"", codecs.BOM_UTF8]),
    front=st.one_of(st.just(b""), _KEYS.map(lambda keys: b"---\n" + keys + b"---\n")),
    body=st.one_of(_BODY, _BODY, st.binary(max_size=60)),
    crlf=st.sampled_from([b"\n", b"\r\n"]),
    cut=st.booleans(),
)


@settings(max_examples=120, deadline=None)
@given(_CARDS)
def test_only_our_key_and_section_differ(before: bytes) -> None:
    try:
        after = splice(before)
    except CardError:
        assume(False)
    assert splice(after) == after
    assert _without_ours(after, before)
    later = splice(after, replace(METADATA, date="2027-01-01"), SECTION.replace("N", "M"))
    assert later == after.replace(b"2026-01-02", b"2027-01-01").replace(b"Nothing", b"Mothing")


@settings(max_examples=120, deadline=None)
@given(_KEYS, _BODY)
def test_ordinary_metadata_is_never_refused(front: bytes, body: bytes) -> None:
    body = body.replace(BEGIN, b"").replace(END, b"").replace(b"\r", b"")
    after = splice(b"---\n" + front + b"---\n" + body)
    parsed = yaml.safe_load(after.split(b"\n---")[0].removeprefix(b"---\n"))
    assert parsed.pop("amdet") == vars(METADATA)
    assert parsed == (yaml.safe_load(front) or {})


def _without_ours(after: bytes, before: bytes) -> bool:
    """Whether taking out what was put in gives the bytes back, whatever newline was used."""
    before = before or NEW_CARD.encode()
    for newline in ("\n", "\r\n", "\r"):
        line, ours, key = newline.encode(), section(newline), block(newline)
        for front in (key, b"---" + line + key + b"---" + line):
            for gap in (line + ours + line, line * 2 + ours + line, line + ours + line * 2):
                if after.replace(front, b"", 1).replace(gap, b"", 1) == before:
                    return True
    return False
