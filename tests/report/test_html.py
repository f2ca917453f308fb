"""The page says what was found, reads well, and gives a repo no way to act in it."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_amdet.report import html, markdown
from hf_amdet.report.html import to_html
from hf_amdet.report.inline_svg import Picture
from hf_amdet.report.schema import Report, Verdict
from tests.report import samples

SECTIONS = [
    "What was scanned",
    "Reasons",
    "Figures",
    "How sure this is",
    "What was not covered",
    "How to repeat it",
    "How to object",
]
VOID = {"meta"}
SVG = (
    '<svg viewBox="0 0 9 9"><defs><path id="a" d="M 0 0" /></defs><use href="#a" />'
    '<g clip-path="url(#b)" /><clipPath id="b" /></svg>'
)
PICTURE = Picture("How to read it.", "Losses from 1 to 2.", SVG)


class Page(HTMLParser):
    """A page taken apart; every tag must be closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # with the tags that they stand in
        self._open: list[str] = []
        assert source.startswith("<!doctype html>\n")
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self._open
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((" ".join(self._open), data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]

    def text(self, tag: str) -> list[str]:
        """What stands in every `tag` itself."""
        return [data for place, data in self.texts if place.endswith(tag)]

    def said(self) -> str:
        """The words of the whole page, a blank between those of different tags."""
        shown = (data for place, data in self.texts if not place.endswith("style"))
        return " ".join(" ".join(shown).split())


def rendered(verdict: Verdict) -> Page:
    return Page(to_html(samples.no_evidence(verdict=verdict, towers=[samples.tower(verdict)])))


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_said_first_in_the_words_of_the_card(verdict: Verdict) -> None:
    page = rendered(verdict)
    title, *_ = page.text("title")
    assert title == f"{markdown.sentence(verdict).split(':')[0]}: backdoor scan of owner/clip-tower"
    said = page.said()
    assert said.index(markdown.sentence(verdict)) < said.index(SECTIONS[0])


@pytest.mark.parametrize("verdict", Verdict)
def test_no_verdict_looks_like_safe(verdict: Verdict) -> None:
    page = rendered(verdict)
    assert not re.search(r"\bsafe\b|\bclean\.|\bpassed\b", page.said(), re.IGNORECASE)
    assert not re.search("[✓✔✅☑🟢👍]", page.said())
    (sheet,) = page.text("style")
    assert not re.search(r"\.(no_evidence|natural)\b|green", sheet)
    assert f"verdict {verdict.value}" in page.attributes("class")


def test_sections_stand_in_the_order_in_which_they_are_asked_for() -> None:
    assert rendered(Verdict.FLAGGED).text("h2") == SECTIONS


def test_the_page_holds_files_figures_thresholds_and_how_sure_they_are() -> None:
    tower = samples.tower(Verdict.FLAGGED, gap=0.412, p_value=0.01).model_copy(
        update={"predictive_value": 0.46, "prevalence": 0.01}
    )
    said = Page(to_html(samples.flagged(towers=[tower]))).said()
    assert samples.REPO_ID in said and samples.COMMIT in said
    assert all(f"{file.path} {file.size} {file.sha256}" in said for file in tower.files)
    assert tower.anchor is not None
    assert tower.anchor.files[0].sha256 in said
    figures = "consistency_gap 0.412 0.382 to 0.442 ≥ 0.2 cosine 64 calibration of the family"
    assert figures in said
    assert "drift 0.98 not measured none cosine none none" in said
    assert "at the root 0.01 46 %, were 1 % of all models backdoored" in said
    assert markdown.NO_P_VALUE not in said
    assert "U-Net, VAE and image towers" in said


def test_a_missing_p_value_is_said() -> None:
    tower = samples.tower(Verdict.INCONCLUSIVE, p_value=None)
    said = Page(to_html(samples.no_evidence(towers=[tower]))).said()
    assert f"at the root none none {tower.calibration}" in said
    assert markdown.NO_P_VALUE in said


def test_the_command_that_repeats_the_scan_is_that_of_the_card() -> None:
    report = samples.flagged()
    (found,) = Page(to_html(report)).text("pre code")
    assert found.splitlines() == markdown.commands(report)


def test_a_folder_has_no_community_tab() -> None:
    report = samples.no_evidence(repo_id=None, commit_sha=None, target="folder")
    page = Page(to_html(report))
    assert page.text("h2") == SECTIONS[:-1]
    assert "Folder folder Commit none" in page.said()


def test_a_report_without_towers_renders() -> None:
    reason = {"code": "none", "message": "No text encoder in it."}
    report = samples.no_evidence(towers=(), verdict="not_scanned", reasons=[reason])
    page = Page(to_html(report))
    assert page.text("h2") == [*SECTIONS[:2], *SECTIONS[4:]]
    assert "No text encoder in it." in page.said()


def test_of_several_towers_it_is_said_which_one_is_meant() -> None:
    towers = [
        samples.tower(verdict).model_copy(update={"path": path})
        for path, verdict in (("one", Verdict.FLAGGED), ("two", Verdict.NO_EVIDENCE))
    ]
    said = Page(to_html(samples.flagged(towers=towers))).said()
    for path, verdict in (("one", Verdict.FLAGGED), ("two", Verdict.NO_EVIDENCE)):
        assert f"Text encoder {path} : {markdown.sentence(verdict)}" in said
    reasons = said[said.index("Reasons") : said.index("Figures")]
    assert re.search("one .*answer every prompt alike.* two .*differently from the anchor", reasons)


def test_equal_reports_give_equal_pages() -> None:
    pictures = {"": [PICTURE]}
    assert to_html(samples.flagged(), pictures) == to_html(samples.flagged(), pictures)


@pytest.mark.parametrize("report", [samples.flagged(), samples.with_text("x")])
def test_the_page_is_accessible(report: Report) -> None:
    page = Page(to_html(report, {report.towers[0].path: [PICTURE]}))
    tags = [tag for tag, _ in page.tags]
    assert dict(page.tags)["html"] == {"lang": "en"}
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert all(attrs["scope"] in ("row", "col") for tag, attrs in page.tags if tag == "th")
    assert tags.count("table") == tags.count("caption") == tags.count("tbody") > 5
    images = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"]
    assert images == [PICTURE.alt]
    assert tags.count("figure") == tags.count("figcaption") == 1
    # What scrolls sideways can be reached with the keyboard, and says what it is.
    scrolled = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
    assert len(scrolled) == tags.count("table") + 1
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)


def test_contrast_is_at_least_that_of_wcag_aa_in_light_and_dark() -> None:
    for colours in themes():
        for ink in ("ink", "quiet"):
            assert contrast(colours[ink], colours["ground"]) >= 4.5
            assert contrast(colours[ink], colours["panel"]) >= 4.5
        for kind in ("alarm", "doubt"):
            assert contrast(colours[kind], colours[f"{kind}-panel"]) >= 4.5


def themes() -> Iterator[dict[str, str]]:
    """The light colours, then the dark ones."""
    light, dark = markdown.template_source("report_page.css").split("prefers-color-scheme: dark")
    for part in (light, dark):
        yield dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))


def contrast(one: str, other: str) -> float:
    """The ratio that WCAG 2 defines."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_policy_allows_the_own_style_sheet_and_nothing_else() -> None:
    page = Page(to_html(samples.flagged(), {"": [PICTURE]}))
    policy = next(attrs for tag, attrs in page.tags if "http-equiv" in attrs)["content"] or ""
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (sheet,) = page.text("style")
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r"url\(|@import|@font-face", sheet)
    assert page.attributes("style") == []
    # A policy holds for what stands behind it.
    assert [tag for tag, _ in page.tags[:4]] == ["html", "head", "meta", "meta"]


def test_ids_of_pictures_do_not_clash() -> None:
    towers = [samples.tower(Verdict.FLAGGED).model_copy(update={"path": p}) for p in ("a", "b")]
    page = Page(to_html(samples.flagged(towers=towers), {"a": [PICTURE] * 2, "b": [PICTURE]}))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) == 6
    assert {f"#{name}" for name in ids[::2]} == set(page.attributes("href"))
    assert {f"url(#{name})" for name in ids[1::2]} == set(page.attributes("clip-path"))


@pytest.mark.parametrize("value", samples.HOSTILE, ids=ascii)
def test_known_attacks_stay_text(value: str) -> None:
    _check_harmless(value)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("<>&\"'/=!-;{}%`\\\n\r\t \x00\u202e\u2066אب1aé"), max_size=40))
def test_no_text_breaks_out(value: str) -> None:
    _check_harmless(value)


def test_endless_text_is_cut_short() -> None:
    assert len(to_html(samples.with_text("x" * 50_000))) < 100_000


def _check_harmless(value: str) -> None:
    """Render with `value` in every place that a repo can fill, and compare with a tame one."""
    page, tame = (Page(to_html(samples.with_text(text))) for text in (value, "tame"))
    # The same markup, attributes included, but for what isolates text from right to left, and for
    # names that are empty.
    found, expected = (
        [(tag, attrs) for tag, attrs in each.tags if tag not in ("bdi", "code")]
        for each in (page, tame)
    )
    assert found == expected
    assert not page.attributes("href")
    for place, text in page.texts:
        unseen = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
        assert not unseen.search(text)
        turned = any(unicodedata.bidirectional(mark) in ("R", "AL", "AN") for mark in text)
        assert not turned or place.endswith(("bdi", "title"))


def test_whatever_runs_from_right_to_left_is_isolated_or_escaped() -> None:
    missed = [
        hex(point)
        for point in range(sys.maxunicode + 1)
        if unicodedata.bidirectional(chr(point)) in ("R", "AL", "AN", "RLE", "RLO", "RLI")
        and not html._isolated(chr(point)).startswith(("<bdi>", "\\u"))
    ]
    assert missed == []
