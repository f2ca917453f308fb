"""BOMs that the specification accepts, and in which no verdict reads as "not affected"."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from packageurl import PackageURL

from hf_amdet.errors import ReportError
from hf_amdet.report.cyclonedx import to_cyclonedx
from hf_amdet.report.files import parse, to_json, write_report
from hf_amdet.report.markdown import sentence
from hf_amdet.report.schema import Reason, Report, TowerReport, Verdict
from tests.report import samples
from tests.report.test_sarif import HOSTILE, hostile

_VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)


def _bom(report: Report) -> dict[str, Any]:
    text = to_cyclonedx(report)
    assert _VALIDATOR.validate_str(text) is None
    bom: dict[str, Any] = json.loads(text)
    return bom


def _model(report: Report) -> dict[str, Any]:
    model = _bom(report)["metadata"]["component"]
    assert isinstance(model, dict)
    return model


def _of(verdict: Verdict, **changes: Any) -> Report:
    towers = [samples.tower(verdict).model_dump()]
    return samples.no_evidence(**{"verdict": verdict, "towers": towers, **changes})


def _tower(path: str, verdict: Verdict, *files: str, **changes: Any) -> TowerReport:
    records = tuple(samples.file_record(name) for name in files)
    return samples.tower(verdict).model_copy(update={"path": path, "files": records, **changes})


def _with(*towers: TowerReport, **changes: Any) -> Report:
    return samples.no_evidence(towers=[tower.model_dump() for tower in towers], **changes)


def _parts(model: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in model["components"] if part["type"] == kind}


def _values(component: dict[str, Any], name: str) -> list[str]:
    return [p["value"] for p in component["properties"] if p["name"] == f"hf-amdet:{name}"]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_bom_of_any_verdict_is_valid_and_says_it_of_model_and_tower(verdict: Verdict) -> None:
    model = _model(_of(verdict))
    (tower,) = _parts(model, "machine-learning-model").values()
    for component in (model, tower):
        assert _values(component, "verdict") == [verdict.value]
        assert component["description"] == sentence(verdict)


@pytest.mark.parametrize("verdict", [Verdict.NATURAL, Verdict.NO_EVIDENCE])
def test_where_nothing_was_found_no_state_is_claimed(verdict: Verdict) -> None:
    text = to_cyclonedx(_of(verdict))
    assert "vulnerabilities" not in json.loads(text)
    assert "not_affected" not in text


@pytest.mark.parametrize("verdict", [Verdict.FLAGGED, Verdict.INCONCLUSIVE, Verdict.NOT_SCANNED])
def test_what_is_flagged_or_has_no_answer_waits_for_triage(verdict: Verdict) -> None:
    (found,) = _bom(_of(verdict))["vulnerabilities"]
    assert found["analysis"]["state"] == "in_triage"
    assert found["description"] == sentence(verdict)
    assert "ratings" not in found


@pytest.mark.parametrize(
    ("witness", "state"),
    [("real_token", "exploitable"), ("tokenizer", "exploitable"), ("embedding", "in_triage")],
)
def test_a_trigger_that_can_be_typed_is_exploitable(witness: str, state: str) -> None:
    tower = _tower("", Verdict.FLAGGED, "model.safetensors", witness=witness)
    (found,) = _bom(_with(tower, verdict="flagged"))["vulnerabilities"]
    assert found["analysis"]["state"] == state


def test_a_finding_names_commit_reasons_and_the_tower_that_it_affects() -> None:
    good, bad = _tower("a", Verdict.NO_EVIDENCE), _tower("b", Verdict.FLAGGED)
    bom = _bom(_with(good, bad, verdict="flagged"))
    (found,) = bom["vulnerabilities"]
    model = bom["metadata"]["component"]
    tower = _parts(model, "machine-learning-model")["b"]
    assert {a["ref"] for a in found["affects"]} == {model["bom-ref"], tower["bom-ref"]}
    assert samples.COMMIT in found["analysis"]["detail"]
    assert bad.reasons[0].message in found["analysis"]["detail"]
    assert _values(found, "reason_code") == ["consistency_gap"]


def test_a_repo_without_towers_is_no_empty_bom() -> None:
    reason = Reason(code="no_text_tower", message="It holds no text tower.")
    bom = _bom(_of(Verdict.NOT_SCANNED, towers=(), reasons=[reason.model_dump()]))
    (found,) = bom["vulnerabilities"]
    assert [a["ref"] for a in found["affects"]] == [bom["metadata"]["component"]["bom-ref"]]
    assert "It holds no text tower." in found["analysis"]["detail"]


def test_a_hub_repo_is_named_by_a_package_url_with_its_commit() -> None:
    model = _model(samples.flagged())
    assert model["type"] == "machine-learning-model"
    assert model["purl"] == f"pkg:huggingface/{samples.REPO_ID}@{samples.COMMIT}"
    assert model["version"] == samples.COMMIT
    (page,) = model["externalReferences"]
    assert page["url"] == f"https://huggingface.co/{samples.REPO_ID}"


def test_a_repo_without_an_owner_has_a_package_url_too() -> None:
    purl = PackageURL.from_string(_model(samples.flagged(repo_id="clip"))["purl"])
    assert (purl.type, purl.namespace, purl.name) == ("huggingface", None, "clip")


def test_a_local_folder_has_its_name_and_no_address() -> None:
    report = samples.flagged(target="my-model", repo_id=None, commit_sha=None)
    model = _model(report)
    assert model["name"] == "my-model"
    assert not {"group", "purl", "version", "externalReferences"} & set(model)
    assert "huggingface.co" not in to_cyclonedx(report)


@pytest.mark.parametrize("repo_id", ["", "owner/"])
def test_a_repo_id_that_names_nothing_is_refused(repo_id: str) -> None:
    with pytest.raises(ReportError, match="repo_id"):
        to_cyclonedx(samples.flagged(repo_id=repo_id))


def test_each_file_is_listed_once_with_its_hash() -> None:
    towers = [_tower(path, Verdict.FLAGGED, "tokenizer.json", f"{path}.st") for path in "ab"]
    found = _parts(_model(_with(*towers)), "file")
    hashes = {name: file["hashes"] for name, file in found.items()}
    assert hashes == {
        path: [{"alg": "SHA-256", "content": samples.digest(path)}]
        for path in ("tokenizer.json", "a.st", "b.st")
    }


def test_a_hash_that_only_the_hub_declared_is_said_to_be_that() -> None:
    record = samples.file_record("sd.safetensors").model_copy(update={"tensors": {"t": "0" * 64}})
    tower = _tower("", Verdict.FLAGGED).model_copy(update={"files": (record,)})
    file = _parts(_model(_with(tower)), "file")["sd.safetensors"]
    assert _values(file, "sha256") == ["declared by the Hub"]


def test_measurements_settings_and_what_was_not_covered_are_properties() -> None:
    report = samples.flagged()
    metadata = _bom(report)["metadata"]
    model = metadata["component"]
    (tower,) = _parts(model, "machine-learning-model").values()
    (statistic,) = _values(tower, "statistic:consistency_gap")
    (threshold,) = _values(tower, "threshold:consistency_gap")
    assert json.loads(statistic)["value"] == pytest.approx(0.412)
    assert json.loads(threshold)["comparison"] == ">="
    assert sorted(_values(model, "not_covered")) == sorted(report.not_covered)
    assert _values(model, "out_of_scope") == [report.out_of_scope[0].message]
    assert _values(metadata, "setting:steps") == ["120"]
    assert _values(metadata, "seed") == ["0"]
    (tool,) = metadata["tools"]["components"]
    assert (tool["name"], tool["version"]) == ("hf-amdet", report.environment.hf_amdet)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_repo_is_cut_and_seen_and_leaves_the_bom_valid(text: str) -> None:
    for report in (hostile(text), hostile(text).model_copy(update={"repo_id": None})):
        written = to_cyclonedx(report)
        assert _VALIDATOR.validate_str(written) is None
        for property_ in json.loads(written)["metadata"]["component"]["properties"]:
            assert property_["value"].isprintable()
            assert "<script" not in property_["value"]
            assert len(property_["value"]) < 3_500


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_any_text_of_a_repo_leaves_the_bom_valid(text: str) -> None:
    _bom(hostile(text))


def test_equal_reports_give_equal_bytes_and_another_report_another_serial_number() -> None:
    report = samples.flagged()
    text = to_cyclonedx(report)
    assert to_cyclonedx(parse(to_json(report).encode(), "here")) == text
    assert json.loads(text)["metadata"]["timestamp"] == "2026-01-02T03:04:05+00:00"
    other = json.loads(to_cyclonedx(samples.no_evidence()))
    assert other["serialNumber"] != json.loads(text)["serialNumber"]


def test_two_scans_of_a_commit_give_a_finding_one_id() -> None:
    later = samples.flagged(created_at="2026-05-06T07:08:09+00:00", timings={"detect": 99.0})
    first, second = (_bom(r)["vulnerabilities"][0]["id"] for r in (samples.flagged(), later))
    assert first == second


def test_other_formats_do_not_wait_for_the_library(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_report(samples.flagged(), file)
    program = (
        "import sys, hf_amdet.cli\n"
        "from pathlib import Path\n"
        "from hf_amdet.cli.output import show\n"
        "from hf_amdet.report.files import load\n"
        "for name in ('json', 'sarif'): show(load(Path(sys.argv[1])), name)\n"
        "print('cyclonedx' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
