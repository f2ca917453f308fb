"""What a reader is told, and that a repo cannot put words into our mouth."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_amdet.hub import card
from hf_amdet.report import escaping, markdown
from hf_amdet.report.schema import (
    CandidateRecord,
    MovedRowRecord,
    RemapRecord,
    StaticRecord,
    TokenRecord,
    Verdict,
)
from tests.report import samples

VERDICTS = list(Verdict)


def test_flagged_section_says_what_was_found_and_how_sure() -> None:
    text = markdown.section(samples.flagged())
    assert "Flagged: this scan found evidence of an injected backdoor." in text
    assert samples.COMMIT in text
    assert "`model.safetensors`, `config.json`" in text
    assert "`consistency_gap` 0.412 (0.382 to 0.442), ≥ 0.2 | " not in text
    assert "| 0.412 | 0.0004 | `consistency_gap` 0.412 (0.382 to 0.442), ≥ 0.2 |" in text
    assert "(amdet/report.json)" in text
    assert "open a discussion" in text
    assert "U-Net, VAE and image towers" in text


def test_section_holds_the_command_that_repeats_the_scan() -> None:
    assert (
        f"hf-amdet scan {samples.REPO_ID} --revision {samples.COMMIT} --profile default "
        "--seed 0 --restarts 3 --device cpu --dtype fp32\n"
    ) in markdown.section(samples.flagged())


@pytest.mark.parametrize("verdict", VERDICTS)
def test_no_verdict_calls_a_model_safe(verdict: Verdict) -> None:
    report = samples.no_evidence(verdict=verdict, towers=[samples.tower(verdict).model_dump()])
    for text in (markdown.section(report), markdown.page(report), markdown.sentence(verdict)):
        assert not re.search(r"\bsafe\b|\bclean\.", text, re.IGNORECASE)
        assert markdown.sentence(verdict) in text


def test_a_missing_p_value_is_said() -> None:
    tower = samples.tower(Verdict.INCONCLUSIVE, p_value=None)
    text = markdown.section(samples.no_evidence(towers=[tower.model_dump()]))
    assert "| 0.021 | none |" in text
    assert "Where no p-value stands" in text
    assert "Where no p-value stands" not in markdown.section(samples.no_evidence())


def test_a_repo_without_towers_and_a_local_folder_render() -> None:
    report = samples.no_evidence(
        towers=(), repo_id=None, commit_sha=None, target="folder", verdict="not_scanned"
    )
    text = markdown.section(report)
    assert "Scanned: the folder `folder`" in text
    assert "report.json" not in text
    assert "| Text encoder" not in text
    assert "hf-amdet scan folder --profile" in text
    assert markdown.page(report).startswith("# Backdoor scan of folder")


def test_many_reasons_and_files_are_cut_short_in_the_section_only() -> None:
    reasons = [{"code": "c", "message": f"reason number {n}"} for n in range(9)]
    tower = samples.tower(Verdict.FLAGGED).model_dump()
    tower["files"] = [samples.file_record(f"part-{n}").model_dump() for n in range(9)]
    report = samples.flagged(reasons=reasons, towers=[tower])
    text = markdown.section(report)
    assert "reason number 5" in text
    assert "reason number 6" not in text
    assert "4 more in the full report" in text
    assert "9 files: `part-0`" in text
    assert "`part-5` and 3 more" in text
    assert "reason number 8" in markdown.page(report)
    assert "`part-8`" in markdown.page(report)


def test_page_holds_statistics_files_anchor_candidates_and_settings() -> None:
    text = markdown.page(samples.flagged())
    tower = samples.flagged().towers[0]
    assert "| `consistency_gap` | 0.412 | 0.382 to 0.442 | cosine | 64 | ≥ 0.2 |" in text
    assert "| `drift` | 0.98 | not measured | cosine | none | none | none |" in text
    assert all(file.sha256 in text for file in tower.files)
    assert tower.anchor is not None
    assert tower.anchor.files[0].sha256 in text
    assert "| `pooled` | 0 | none | -0.71 | 120 | `consistency_gap` 0.412 |" in text
    for row in ("`learning_rate` | `0.08`", "`torch` | `2.8.0`", "`detect` | 8.5"):
        assert f"| {row} |" in text


def test_counts_are_whole_and_measurements_have_three_digits() -> None:
    assert (escaping.number(4_000), escaping.number(0.012345)) == ("4000", "0.0123")


def test_what_was_found_in_tables_and_tokens_is_shown_and_cannot_act() -> None:
    hostile = "`|<b>\n# heading"
    tower = samples.tower(Verdict.FLAGGED)
    found = CandidateRecord(
        objective="real-token",
        restart=0,
        token=TokenRecord(id=336, text=hostile),
        loss=None,
        steps=0,
        statistics=tower.statistics,
    )
    static = StaticRecord(
        added=3,
        removed=1,
        added_tokens=(hostile,),
        read_alike=0.998,
        remaps=(RemapRecord(text=hostile, reads="a cat", ids=(1,), anchor_ids=(2,)),),
        moved_rows=(MovedRowRecord(row=336, piece=hostile, moved=7.5, ratio=41.0),),
        token_outlier=41.0,
        position_outlier=1.5,
    )
    tower = tower.model_copy(
        update={"candidates": (found,), "static": static, "witness": "real_token"}
    )
    text = markdown.page(samples.flagged(towers=[tower.model_dump()]))
    assert "| Rests on | real token |" in text
    assert "(no. 336) |" in text and "moved 41 times as far" in text
    assert "3 tokens added, 1 removed; 99.8 % of the prompts" in text
    assert "is read as `a cat`" in text
    assert "\n# heading" not in text and "|<b>" not in text.replace("\\|", "")


def test_a_predictive_value_is_said_with_the_prevalence_that_it_assumes() -> None:
    tower = samples.tower(Verdict.FLAGGED, p_value=0.01).model_copy(
        update={"predictive_value": 0.46, "prevalence": 0.01}
    )
    report = samples.flagged(towers=[tower.model_dump()])
    assert "Were 1 % of all models backdoored, 46 % of those" in markdown.section(report)
    assert "were 1 % of all models backdoored | 46 % |" in markdown.page(report)
    assert "all models backdoored" not in markdown.section(samples.flagged())


def test_rendering_is_pure() -> None:
    report = samples.flagged()
    assert markdown.section(report) == markdown.section(samples.flagged())
    assert report == samples.flagged()


@pytest.mark.parametrize("value", samples.HOSTILE, ids=ascii)
def test_known_attacks_stay_text(value: str) -> None:
    _check_harmless(value)


def test_endless_text_is_cut_short() -> None:
    _check_harmless("x" * 5_000)
    assert len(markdown.page(samples.with_text("x" * 50_000))) < 60_000


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("`|<>-!&[]()*_#\\\n\r .:/@waA1é\u202e~$\"'{}%=+"), max_size=40))
def test_no_text_breaks_out(value: str) -> None:
    _check_harmless(value)


@pytest.mark.parametrize("value", ["a b", "$(id)", "--token", "a'b", "x\ny", "`id`", "", "é"])
def test_what_a_shell_would_take_apart_is_not_in_the_command(value: str) -> None:
    config = {**samples.flagged().config.model_dump(), "prompts": value, "anchor": value}
    text = markdown.section(samples.flagged(config=config))
    assert "--prompts PROMPTS_FILE --anchor ANCHOR" in text


def test_templates_cannot_print_what_was_not_escaped() -> None:
    with pytest.raises(TypeError, match="not escaped"):
        escaping.only_escaped("plain")


def _check_harmless(value: str) -> None:
    """Render with `value` in every place that a repo can fill, and compare with a tame one."""
    hostile, tame = samples.with_text(value), samples.with_text("tame")
    for render in (markdown.section, markdown.page, markdown.new_card):
        _compare(_parse(render(hostile)), _parse(render(tame)))
    metadata = card.CardMetadata(1, "flagged", samples.COMMIT, "2026-01-02", "0.1.0", "r", None)
    spliced = card.splice(b"# Model\n", metadata, markdown.section(hostile), "")
    assert spliced.startswith(b"---\namdet:")
    assert spliced.count(b"<!--") == spliced.count(b"-->") == 2
    assert spliced.endswith(card.END + b"\n")


def _parse(text: str) -> list[Token]:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\x85\u2028\u202e]", text)
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def _compare(found: list[Token], expected: list[Token]) -> None:
    """The same blocks, no markup but ours, and no text that a renderer would make a link."""
    assert [token.type for token in found] == [token.type for token in expected]
    for token in found:
        assert token.type != "html_block"
        for child in token.children or ():
            assert child.type in {
                "text", "code_inline", "softbreak", "strong_open", "strong_close",
                "link_open", "link_close", "text_special",
            }  # fmt: skip
            if child.type == "link_open":
                assert child.attrs == {"href": "amdet/report.json"}
            if child.type == "text":
                assert not re.search(r"://|www\.|@", child.content, re.IGNORECASE)


def test_templates_of_the_installed_package_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = markdown._template_folder()
    names = {"safety_section.md.jinja", "new_card.md.jinja", "report_page.md.jinja"}
    assert names <= {entry.name for entry in source.iterdir()}
    (tmp_path / "templates").mkdir()
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert markdown._template_folder() == tmp_path / "templates"
