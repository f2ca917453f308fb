"""SARIF logs that dashboards accept, and in which no verdict reads as "safe"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator

from hf_amdet.cli.output import show
from hf_amdet.errors import ReportError
from hf_amdet.report.cyclonedx import to_cyclonedx
from hf_amdet.report.files import parse, to_json
from hf_amdet.report.html import to_html
from hf_amdet.report.sarif import to_sarif
from hf_amdet.report.schema import Reason, Report, TowerReport, Verdict
from tests.report import samples

_SCHEMA = json.loads(Path(__file__).with_name("sarif-schema-2.1.0.json").read_text())
_VALIDATOR = Draft4Validator(_SCHEMA, format_checker=Draft4Validator.FORMAT_CHECKER)

HOSTILE = [
    "\x00\x1b[31mred\x07",
    "\u202eevil\u200b\u2028\x85",
    "<script>alert(1)</script><!-- x -->",
    "[click](https://evil.example) ![x](https://evil.example/x.png) <https://evil.example>",
    "{0} {not} {{1}}",
    "../../../etc/passwd",
    "//evil.example/a",
    "javascript:alert(1)",
    "a#b?c=d%2e",
    "\n\n# No backdoor\n",
    "x" * 4_000,
    "",
]


def _log(report: Report) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(to_sarif(report))
    _VALIDATOR.validate(log)
    return log


def _run(report: Report) -> dict[str, Any]:
    (run,) = _log(report)["runs"]
    assert isinstance(run, dict)
    return run


def _of(verdict: Verdict, **changes: Any) -> Report:
    towers = [samples.tower(verdict).model_dump()]
    return samples.no_evidence(**{"verdict": verdict, "towers": towers, **changes})


def _tower(path: str, verdict: Verdict, *files: str) -> TowerReport:
    records = tuple(samples.file_record(name) for name in files)
    return samples.tower(verdict).model_copy(update={"path": path, "files": records})


def _with(*towers: TowerReport, **changes: Any) -> Report:
    return samples.no_evidence(towers=[tower.model_dump() for tower in towers], **changes)


def _local(**changes: Any) -> Report:
    return samples.flagged(target="my-model", repo_id=None, commit_sha=None, **changes)


def hostile(text: str) -> Report:
    """A report that says `text` wherever a repo can make it say something."""
    tower = samples.tower(Verdict.FLAGGED).model_dump(mode="json")
    reason = {"code": text, "message": text}
    tower |= {"path": text, "architecture": text, "calibration": text, "reasons": [reason]}
    tower["statistics"] = {text: {"value": 0.5, "unit": text}}
    tower["thresholds"][0] |= {"statistic": text, "unit": text, "source": text}
    tower["files"] = [{**samples.file_record(text).model_dump(), "tensors": {text: "0" * 64}}]
    tower["anchor"]["name"] = text
    unread = {**tower, "path": f"{text}#2", "verdict": "not_scanned", "files": []}
    return samples.flagged(
        target=text,
        repo_id=f"org/{text}x",
        towers=[tower, unread],
        reasons=[reason],
        out_of_scope=[reason],
        not_covered=[text],
    )


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string below `value`, keys included, with the name that it stands under."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield "key", key
            yield from _strings(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, name)


def _fingerprint(report: Report, number: int = 0) -> dict[str, str]:
    known = _run(report)["results"][number]["partialFingerprints"]
    assert isinstance(known, dict)
    return known


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_log_of_any_verdict_is_valid_and_names_its_rule(verdict: Verdict) -> None:
    run = _run(_of(verdict))
    (result,) = run["results"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert result["ruleId"] == rule["id"] == verdict.value
    assert rule["defaultConfiguration"]["level"] == result["level"]
    assert run["invocations"][0]["exitCode"] == verdict.exit_code


@pytest.mark.parametrize(
    ("verdict", "kind", "level"),
    [
        (Verdict.FLAGGED, "fail", "error"),
        (Verdict.INCONCLUSIVE, "fail", "warning"),
        (Verdict.NOT_SCANNED, "fail", "warning"),
        (Verdict.NATURAL, "open", "none"),
        (Verdict.NO_EVIDENCE, "open", "none"),
    ],
)
def test_levels_follow_the_exit_codes_and_nothing_passes(
    verdict: Verdict, kind: str, level: str
) -> None:
    (result,) = _run(_of(verdict))["results"]
    assert (result["kind"], result["level"]) == (kind, level)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_no_text_of_a_log_calls_a_model_safe(verdict: Verdict) -> None:
    texts = [text for name, text in _strings(_log(_of(verdict))) if name == "text"]
    assert not any(re.search(r"\bsafe\b|\bclean\.", text, re.IGNORECASE) for text in texts)


def test_no_evidence_says_that_it_is_no_proof() -> None:
    (result,) = _run(samples.no_evidence())["results"]
    assert "no proof that there is none" in result["message"]["text"]


def test_a_result_says_which_tower_of_which_commit_and_why() -> None:
    report = _with(_tower("text_encoder", Verdict.FLAGGED, "text_encoder/model.safetensors"))
    (result,) = _run(report)["results"]
    text = result["message"]["text"]
    assert text.startswith("Flagged: this scan found evidence of an injected backdoor.")
    assert f"Text encoder text_encoder of {samples.REPO_ID} at commit {samples.COMMIT}" in text
    assert report.towers[0].reasons[0].message in text
    (logical,) = result["locations"][0]["logicalLocations"]
    assert logical["name"] == "text_encoder"


def test_each_tower_has_a_result_and_each_file_one_artifact_with_its_hash() -> None:
    first = _tower("text_encoder", Verdict.FLAGGED, "tokenizer.json", "text_encoder/a.safetensors")
    second = _tower("text_encoder_2", Verdict.NATURAL, "tokenizer.json", "b.safetensors")
    third = _tower("sd.safetensors#cond.", Verdict.NOT_SCANNED)

    run = _run(_with(first, second, third))

    assert [r["ruleId"] for r in run["results"]] == ["flagged", "natural", "not_scanned"]
    hashes = {a["location"]["uri"]: a["hashes"]["sha-256"] for a in run["artifacts"]}
    paths = ["tokenizer.json", "text_encoder/a.safetensors", "b.safetensors"]
    assert hashes == {path: samples.digest(path) for path in paths}
    assert len(run["artifacts"]) == 3
    places = [r["locations"][0]["physicalLocation"]["artifactLocation"] for r in run["results"]]
    assert [place["uri"] for place in places] == [*paths[1:], "sd.safetensors"]
    for place in places[:2]:
        assert run["artifacts"][place["index"]]["location"]["uri"] == place["uri"]
    assert "index" not in places[2]


def test_tensors_that_several_towers_read_of_one_file_stand_at_its_artifact() -> None:
    def part(tensor: str) -> TowerReport:
        record = samples.file_record("sd.safetensors").model_dump()
        tower = samples.tower(Verdict.FLAGGED).model_dump(mode="json")
        tower |= {"path": f"sd.safetensors#{tensor}"}
        return TowerReport.model_validate(
            {**tower, "files": [{**record, "tensors": {tensor: samples.digest(tensor)}}]}
        )

    (artifact,) = _run(_with(part("one"), part("two")))["artifacts"]
    tensors = {"one": samples.digest("one"), "two": samples.digest("two")}
    assert artifact["properties"] == {"sha256_declared_by_the_hub": True, "tensors": tensors}


def test_a_repo_without_towers_is_an_incomplete_run_with_a_result() -> None:
    reason = Reason(code="no_text_tower", message="It holds no text tower.")
    run = _run(_of(Verdict.NOT_SCANNED, towers=(), reasons=[reason.model_dump()]))
    (result,) = run["results"]
    (invocation,) = run["invocations"]
    assert (result["ruleId"], result["level"]) == ("not_scanned", "warning")
    assert "It holds no text tower." in result["message"]["text"]
    assert result["locations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["level"] == "error"


def test_a_tower_that_was_not_scanned_makes_the_run_incomplete() -> None:
    read, unread = _tower("a", Verdict.NO_EVIDENCE), _tower("b", Verdict.NOT_SCANNED)
    report = _with(read, unread, verdict="inconclusive", out_of_scope=())
    (invocation,) = _run(report)["invocations"]
    assert invocation["executionSuccessful"] is True
    assert [n["level"] for n in invocation["toolExecutionNotifications"]] == ["error"]


def test_a_hub_repo_has_its_address_and_commit() -> None:
    run = _run(samples.flagged())
    (provenance,) = run["versionControlProvenance"]
    assert provenance["repositoryUri"] == f"https://huggingface.co/{samples.REPO_ID}"
    assert provenance["revisionId"] == samples.COMMIT
    assert provenance["mappedTo"]["uriBaseId"] in run["originalUriBaseIds"]
    assert run["automationDetails"]["id"] == f"hf-amdet/{samples.REPO_ID}/{samples.COMMIT}"


def test_a_local_folder_has_no_address_and_only_relative_places() -> None:
    run = _run(_local())
    assert "versionControlProvenance" not in run
    places = [text for name, text in _strings(run) if name == "uri"]
    assert places
    assert not any(re.match(r"/|\w+:|\.\.", place) for place in places)
    assert "huggingface.co" not in json.dumps(run)


def test_measurements_and_what_was_not_covered_stand_in_the_property_bags() -> None:
    report = samples.flagged()
    run = _run(report)
    bag = run["results"][0]["properties"]
    assert bag["statistics"]["consistency_gap"]["value"] == pytest.approx(0.412)
    assert bag["thresholds"][0]["comparison"] == ">="
    assert bag["p_value"] == pytest.approx(0.0004)
    assert bag["reasons"] == ["consistency_gap"]
    assert run["properties"]["not_covered"] == list(report.not_covered)
    assert run["properties"]["config"]["settings"] == report.config.settings
    (note,) = run["invocations"][0]["toolExecutionNotifications"]
    assert (note["level"], note["message"]["text"]) == ("note", report.out_of_scope[0].message)


def test_signs_of_comparison_and_special_tokens_stay_as_they_are() -> None:
    tower = samples.tower(Verdict.FLAGGED).model_dump(mode="json")
    tower["thresholds"][0]["comparison"] = "<="
    tower["reasons"] = [{"code": "c", "message": "the token <|endoftext|>, 1 < 2"}]
    (result,) = _run(samples.flagged(towers=[tower]))["results"]
    assert result["properties"]["thresholds"][0]["comparison"] == "<="
    assert "the token <|endoftext|>, 1 < 2" in result["message"]["text"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_repo_cannot_act(text: str) -> None:
    log = _log(hostile(text))
    for name, found in _strings(log):
        assert found.isprintable()
        assert not re.search(r"<[A-Za-z/!?]", found)
        if name == "text":
            assert "](" not in found
            assert not re.search(r"(?<!\{)\{(\{\{)*\d", found)
        if name == "uri":
            assert not re.match(r"/|\w+:", found)
            assert ".." not in found.split("/")
        elif name != "repositoryUri":
            assert len(found) < 3_500


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_any_text_of_a_repo_leaves_the_log_valid(text: str) -> None:
    _log(hostile(text))


def test_equal_reports_give_equal_bytes() -> None:
    report = samples.flagged()
    statistics = dict(reversed(report.towers[0].statistics.items()))
    other = report.towers[0].model_copy(update={"statistics": statistics})
    text = to_sarif(report)
    assert to_sarif(report.model_copy(update={"towers": (other,)})) == text
    assert to_sarif(parse(to_json(report).encode(), "here")) == text
    assert text.isascii()


def test_a_rescan_has_the_fingerprints_of_the_first_scan() -> None:
    first = samples.flagged()
    config = first.config.model_copy(update={"seed": 7}).model_dump()
    again = {"created_at": "2026-05-06T07:08:09+00:00", "timings": {"detect": 99.0}}
    assert _fingerprint(samples.flagged(**again, config=config)) == _fingerprint(first)


def test_a_commit_that_leaves_the_files_alone_keeps_the_fingerprints() -> None:
    assert _fingerprint(samples.flagged(commit_sha="f" * 40)) == _fingerprint(samples.flagged())


def test_other_weights_another_tower_and_another_repo_are_other_findings() -> None:
    towers = [_tower(path, Verdict.FLAGGED, "model.safetensors") for path in ("", "b")]
    changed = towers[0].model_dump(mode="json")
    changed["files"][0]["sha256"] = samples.digest("other weights")
    found = [
        *(_fingerprint(_with(*towers), number) for number in range(2)),
        _fingerprint(samples.no_evidence(towers=[changed])),
        _fingerprint(_with(towers[0], repo_id="somebody/else")),
        _fingerprint(_with(towers[0], repo_id=None, commit_sha=None, target="folder")),
    ]
    assert len({json.dumps(known) for known in found}) == len(found)


def test_where_no_file_was_read_a_new_commit_is_a_new_finding() -> None:
    tower = _tower("", Verdict.NOT_SCANNED)
    here, there = (_with(tower, commit_sha=sha * 40) for sha in "ab")
    assert _fingerprint(here) == _fingerprint(here)
    assert _fingerprint(here) != _fingerprint(there)


@pytest.mark.parametrize(
    ("created_at", "written"),
    [
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05Z"),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05Z"),
    ],
)
def test_the_end_of_the_scan_is_given_in_utc(created_at: str, written: str) -> None:
    (invocation,) = _run(samples.flagged(created_at=created_at))["invocations"]
    assert invocation["endTimeUtc"] == written


@pytest.mark.parametrize("created_at", ["yesterday", "", "0001-01-01T00:00:00+23:00"])
def test_a_report_without_a_date_is_refused_with_its_name(created_at: str) -> None:
    with pytest.raises(ReportError, match="created_at"):
        to_sarif(samples.flagged(created_at=created_at))


def test_the_command_prints_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    report = samples.flagged()
    for name, write in (("sarif", to_sarif), ("cyclonedx", to_cyclonedx), ("html", to_html)):
        show(report, name)
        assert capsys.readouterr().out == write(report)
