"""What is said to have changed is what was changed, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from markdown_it import MarkdownIt

from hf_amdet.report import files
from hf_amdet.report.diff import ReportDiff, compare, to_json
from hf_amdet.report.diff_text import Row, sections, summary, to_markdown
from hf_amdet.report.schema import Report, Verdict
from tests.report import samples

OTHER_COMMIT = "f" * 40
Tower = dict[str, Any]
Figures = tuple[float, float | None, float | None]
"""Value, low and high."""


def changed(edit: Callable[[Tower], object] = lambda tower: None, **changes: Any) -> Report:
    """The report that found nothing, with its tower edited and fields of the report replaced."""
    tower: Tower = samples.no_evidence().towers[0].model_dump(mode="json")
    edit(tower)
    return samples.no_evidence(**{"towers": [tower], **changes})


def measured(figures: Figures) -> Report:
    """The report with these figures for the one statistic that has a threshold, >= 0.2."""
    named = dict(zip(("value", "low", "high"), figures, strict=True))
    return changed(lambda tower: tower["statistics"]["consistency_gap"].update(named))


def against_the_first(new: Report) -> ReportDiff:
    return compare(samples.no_evidence(), new)


def rows(diff: ReportDiff, title: str) -> dict[str, Row]:
    (section,) = (section for section in sections(diff) if section.title == title)
    return {row.what: row for row in section.rows}


def test_equal_reports_have_no_difference_whenever_they_were_made() -> None:
    later = samples.no_evidence(created_at="2027-01-01T00:00:00Z", timings={"detect": 99.0})
    diff = against_the_first(later)
    assert diff.is_empty and not diff.verdict_changed
    assert (diff.model, diff.anchor, diff.scanner) == ("same", "same", "same")
    assert summary(diff) == ["Nothing changed."]
    assert sections(diff) == []


def test_a_verdict_its_reasons_and_its_figures_are_told() -> None:
    diff = against_the_first(samples.flagged())
    assert diff.verdict_changed and not diff.is_empty
    (tower,) = diff.towers
    assert (diff.old.verdict, diff.new.verdict) == ("no_evidence", "flagged")
    assert (tower.old, tower.new) == ("no_evidence", "flagged")
    assert [reason.code for reason in tower.reasons.gone] == ["below_thresholds"]
    assert [reason.code for reason in tower.reasons.added] == ["consistency_gap"]
    (moved,) = tower.statistics
    assert moved.old is not None and moved.new is not None
    assert (moved.name, moved.old.value, moved.new.value) == ("consistency_gap", 0.021, 0.412)
    assert {change.name for change in tower.fields} == {"candidates", "p_value", "score"}
    assert diff.model == diff.anchor == diff.scanner == "same"


@pytest.mark.parametrize(
    ("before", "after", "crossed"),
    [
        ((0.1, 0.05, 0.15), (0.3, 0.25, 0.35), [(">=", "missed", "met")]),
        ((0.3, 0.25, 0.35), (0.1, 0.05, 0.15), [(">=", "met", "missed")]),
        ((0.21, 0.19, 0.23), (0.22, 0.2, 0.24), [(">=", "unclear", "met")]),
        ((0.1, None, None), (0.2, None, None), [(">=", "missed", "met")]),
        ((0.1, 0.05, 0.15), (0.12, 0.07, 0.17), []),
        ((0.3, 0.25, 0.35), (0.5, 0.45, 0.55), []),
    ],
)
def test_a_threshold_is_crossed_where_value_or_interval_meet_it_otherwise(
    before: Figures, after: Figures, crossed: list[tuple[str, str, str]]
) -> None:
    diff = compare(measured(before), measured(after))
    (statistic,) = diff.towers[0].statistics
    assert [(c.comparison, c.old, c.new) for c in statistic.crossed] == crossed
    assert not diff.verdict_changed


def test_a_threshold_that_moved_past_a_statistic_is_crossed_too() -> None:
    def lower(tower: Tower) -> None:
        tower["thresholds"][0] |= {"value": -0.5, "source": "another calibration"}

    (tower,) = against_the_first(changed(lower)).towers
    (statistic,) = tower.statistics
    assert statistic.old == statistic.new
    (crossed,) = statistic.crossed
    assert (crossed.old_limit, crossed.new_limit) == (0.2, -0.5)
    assert (crossed.old, crossed.new) == ("missed", "met")
    assert {change.name: (change.old, change.new) for change in tower.thresholds} == {
        "consistency_gap >=": (0.2, -0.5),
        "consistency_gap >= (source)": ("calibration of the family", "another calibration"),
    }


def test_figures_are_shown_with_the_digits_that_tell_them_apart() -> None:
    diff = compare(measured((0.021, -0.009, 0.051)), measured((0.0210004, -0.009, 0.051)))
    row = rows(diff, "Text encoder at the root")["consistency_gap"]
    assert (row.old, row.new) == ("0.021 [-0.009, 0.051]", "0.0210004 [-0.009, 0.051]")


def test_statistics_that_came_and_went_are_told() -> None:
    def rename(tower: Tower) -> None:
        tower["statistics"]["novel"] = tower["statistics"].pop("drift")

    diff = against_the_first(changed(rename))
    found = rows(diff, "Text encoder at the root")
    assert (found["drift"].old, found["drift"].new) == ("0.98", None)
    assert (found["novel"].old, found["novel"].new) == (None, "0.98")
    assert not diff.verdict_changed


def test_towers_that_came_and_went_change_the_verdict() -> None:
    one = samples.tower(Verdict.NO_EVIDENCE).model_dump()
    two = {**one, "path": "text_encoder_2"}
    old, new = samples.no_evidence(), samples.no_evidence(towers=[one, two])
    came, went = compare(old, new), compare(new, old)
    for diff in (came, went):
        assert diff.verdict_changed
        assert diff.old.verdict == diff.new.verdict
        assert summary(diff)[0] == "The verdict is still no evidence, but not that of every tower."
        assert [tower.path for tower in diff.towers] == ["text_encoder_2"]
    assert (came.towers[0].old, came.towers[0].new) == (None, "no_evidence")
    assert (went.towers[0].old, went.towers[0].new) == ("no_evidence", None)
    assert [change.old for change in came.towers[0].files] == [None, None]


def test_an_unread_variant_beside_a_tower_is_not_taken_for_it() -> None:
    tower = samples.tower(Verdict.NO_EVIDENCE).model_dump()
    unread = {**tower, "verdict": "not_scanned", "files": [], "statistics": {}, "thresholds": []}
    (found,) = against_the_first(changed(towers=[unread, tower])).towers
    assert (found.path, found.old, found.new) == ("", None, "not_scanned")


def test_files_that_changed_came_and_went_are_told_with_their_digests() -> None:
    def edit(tower: Tower) -> None:
        model, config = tower["files"]
        model["sha256"] = samples.digest("trained on")
        config["path"] = "tokenizer.json"

    diff = against_the_first(changed(edit, commit_sha=OTHER_COMMIT))
    config = samples.digest("config.json")
    assert [(change.path, change.old, change.new) for change in diff.towers[0].files] == [
        ("config.json", config, None),
        ("model.safetensors", samples.digest("model.safetensors"), samples.digest("trained on")),
        ("tokenizer.json", None, config),
    ]
    assert (diff.model, diff.scanner, diff.verdict_changed) == ("changed", "same", False)


def test_of_a_file_read_in_part_only_its_tensors_say_whether_the_model_changed() -> None:
    def with_tensors(content: str, tensor: str) -> Report:
        def edit(tower: Tower) -> None:
            tower["files"][0] |= {
                "sha256": samples.digest(content),
                "tensors": {"text.a": samples.digest("a"), "text.b": samples.digest(tensor)},
            }

        return changed(edit, repo_id=None, commit_sha=None)

    first = with_tensors("one", "b")
    elsewhere = compare(first, with_tensors("other image tower", "b"))
    within = compare(first, with_tensors("other text tower", "c"))
    lied_about = compare(first, with_tensors("one", "c"))

    assert (elsewhere.model, within.model, lied_about.model) == ("same", "changed", "changed")
    (file,) = elsewhere.towers[0].files
    assert file.is_read_alike and file.old != file.new
    for diff in (within, lied_about):
        assert diff.towers[0].files[0].tensors == ("text.b",)
        row = rows(diff, "Text encoder at the root")["file model.safetensors"]
        assert row.note == "other tensors: text.b"


def test_a_scanner_that_reads_a_file_more_of_one_commit_did_not_change_the_model() -> None:
    def read_more(tower: Tower) -> None:
        record = samples.file_record("added_tokens.json").model_dump()
        tower["files"].append(record)
        tower["anchor"]["files"].append(record)

    same_commit = against_the_first(changed(read_more))
    other_commit = against_the_first(changed(read_more, commit_sha=OTHER_COMMIT))
    assert (same_commit.model, same_commit.anchor) == ("same", "same")
    assert other_commit.model == "changed"
    assert [change.path for change in same_commit.towers[0].files] == ["added_tokens.json"]


def test_a_commit_whose_bytes_changed_is_a_changed_model() -> None:
    def edit(tower: Tower) -> None:
        tower["files"][0]["sha256"] = samples.digest("rewritten")

    assert against_the_first(changed(edit)).model == "changed"


def test_of_a_tower_that_was_not_read_no_change_can_be_told() -> None:
    unread = changed(lambda tower: tower.update(files=[]), commit_sha=OTHER_COMMIT)
    assert against_the_first(unread).model == "unknown"
    assert compare(unread, samples.no_evidence()).model == "unknown"


def test_a_changed_base_of_an_adapter_is_a_changed_model() -> None:
    def on(content: str) -> Report:
        base = {"repo_id": "base/model", "commit_sha": samples.digest(content)[:40]}
        record = samples.file_record("model.safetensors").model_dump()
        record["sha256"] = samples.digest(content)
        return changed(lambda tower: tower.update(base={**base, "files": [record]}))

    diff = compare(on("one"), on("other"))
    (tower,) = diff.towers
    assert diff.model == "changed"
    assert [change.name for change in tower.base] == ["commit_sha"]
    assert [change.path for change in tower.base_files] == ["model.safetensors"]


def test_another_anchor_is_no_changed_model() -> None:
    def edit(tower: Tower) -> None:
        tower["anchor"] |= {"repo_id": "anchors/other", "distance": 0.5}
        tower["anchor"]["files"][0]["sha256"] = samples.digest("other")

    diff = against_the_first(changed(edit))
    assert (diff.model, diff.anchor, diff.scanner) == ("same", "changed", "same")
    (tower,) = diff.towers
    assert {change.name: change.new for change in tower.anchor} == {
        "repo_id": "anchors/other",
        "distance": 0.5,
    }
    assert [change.path for change in tower.anchor_files] == ["anchor/model.safetensors"]


@pytest.mark.parametrize(
    ("part", "edit", "name"),
    [
        ("config", {"profile": "paper"}, "profile"),
        ("config", {"seed": 1}, "seed"),
        ("config", {"prompts": "mine.txt"}, "prompts"),
        ("config", {"settings": {"steps": 121, "learning_rate": 0.08}}, "settings.steps"),
        ("config", {"settings": {"steps": 120}}, "settings.learning_rate"),
        ("environment", {"hf_amdet": "0.2.0"}, "hf_amdet"),
        ("environment", {"device": "cuda"}, "device"),
        ("environment", {"dtype": "bf16"}, "dtype"),
        ("environment", {"novel": "unheard of"}, "novel"),
    ],
)
def test_a_changed_scanner_is_told_from_a_changed_model(
    part: str, edit: dict[str, Any], name: str
) -> None:
    before = getattr(samples.no_evidence(), part).model_dump()
    diff = against_the_first(samples.no_evidence(**{part: {**before, **edit}}))
    assert [change.name for change in getattr(diff, part)] == [name]
    assert (diff.model, diff.scanner, diff.verdict_changed) == ("same", "changed", False)


def test_the_anchor_that_was_asked_for_is_no_changed_scanner() -> None:
    config = {**samples.no_evidence().config.model_dump(), "anchor": "org/clean"}
    diff = against_the_first(samples.no_evidence(config=config))
    assert [change.name for change in diff.config] == ["anchor"]
    assert diff.scanner == "same"


def test_limits_are_told() -> None:
    limits = ("U-Net, VAE and image towers", "something new")
    diff = against_the_first(samples.no_evidence(not_covered=limits, out_of_scope=[]))
    assert diff.not_covered.gone == ("LoRA weights and prompt tuning",)
    assert diff.not_covered.added == ("something new",)
    assert [reason.code for reason in diff.out_of_scope.gone] == ["unet"]
    assert [row.what for section in sections(diff) for row in section.rows] == [
        *("out of scope", "not covered", "not covered"),
    ]


def test_fields_of_newer_reports_are_compared_under_their_names() -> None:
    def edit(tower: Tower) -> None:
        tower["novel"] = {"deep": [1, 2]}
        tower["statistics"]["drift"]["method"] = "another"
        tower["files"][0]["novel"] = True

    document = {**json.loads(files.to_json(changed(edit))), "signature": "abc"}
    newer = files.parse(json.dumps(document).encode(), "report.json")
    diff = against_the_first(newer)
    assert [(change.name, change.new) for change in diff.fields] == [("signature", "abc")]
    assert [(c.name, c.new) for c in diff.towers[0].fields] == [("novel", {"deep": [1, 2]})]
    note = rows(diff, "Text encoder at the root")["drift"].note
    assert note == "method was None, is another"
    assert not diff.verdict_changed


def test_two_models_can_be_compared() -> None:
    diff = against_the_first(samples.no_evidence(target="org/fork", repo_id="org/fork"))
    assert {change.name: change.new for change in diff.fields} == {
        "repo_id": "org/fork",
        "target": "org/fork",
    }
    assert diff.model == "same", "the files are"


def test_equal_pairs_give_equal_text() -> None:
    def reordered(report: Report) -> Report:
        document = json.loads(files.to_json(report))
        document = dict(reversed(document.items()))
        document["config"]["settings"] = dict(reversed(document["config"]["settings"].items()))
        statistics = document["towers"][0]["statistics"]
        document["towers"][0]["statistics"] = dict(reversed(statistics.items()))
        return Report.model_validate(document)

    one = against_the_first(samples.flagged())
    other = compare(reordered(samples.no_evidence()), reordered(samples.flagged()))
    assert to_json(one) == to_json(other)
    assert to_markdown(one) == to_markdown(other)
    assert ReportDiff.model_validate_json(to_json(one)) == one


@pytest.mark.parametrize(
    "hostile",
    ["a|b `c`", "<script>x</script>", "\n# Safe\n", "[x](https://evil.example)", "\x1b[31m\u202e"],
)
def test_what_a_repo_says_stays_text_in_markdown(hostile: str) -> None:
    def edit(value: str) -> Callable[[Tower], None]:
        def put(tower: Tower) -> None:
            tower["path"] = tower["reasons"][0]["message"] = tower["files"][0]["path"] = value
            tower["statistics"][value] = tower["statistics"].pop("drift")

        return put

    def page(value: str) -> str:
        return to_markdown(against_the_first(changed(edit(value), target=value)))

    parser = MarkdownIt("commonmark").enable("table")
    found, expected = parser.parse(page(hostile)), parser.parse(page("tame"))
    assert [token.type for token in found] == [token.type for token in expected]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page(hostile))
    assert {child.type for token in found for child in token.children or ()} <= {
        *("text", "code_inline", "strong_open", "strong_close", "text_special"),
    }


def test_reports_are_compared_without_torch() -> None:
    program = (
        "import sys, hf_amdet.report.diff_text\n"
        "print(not {'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"True"
