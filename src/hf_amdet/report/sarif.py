"""A report as SARIF 2.1.0, for dashboards of code scanning.

Levels follow the exit codes: what is flagged is an error, what has no answer a warning, because a
dashboard that reads levels only must not lose an encoder that nobody could judge. Where nothing
was found the kind is `open`, "insufficient information to decide", and never `pass`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from hf_amdet.report.findings import (
    ADVICE,
    TOOL,
    Finding,
    bag,
    explained,
    files,
    findings,
    fingerprint,
    hub_url,
    moment,
    plain,
    uri,
)
from hf_amdet.report.markdown import sentence
from hf_amdet.report.schema import FileRecord, Reason, Report, Verdict

SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_TITLES: Final = {
    Verdict.FLAGGED: "Evidence of an injected backdoor in a text encoder",
    Verdict.INCONCLUSIVE: "A text encoder without an answer either way",
    Verdict.NOT_SCANNED: "A text encoder that could not be scanned",
    Verdict.NATURAL: "A backdoor-like feature that clean models have too",
    Verdict.NO_EVIDENCE: "No evidence of a backdoor, which is no proof that there is none",
}
_KIND_AND_LEVEL: Final = {
    Verdict.FLAGGED: ("fail", "error"),
    Verdict.INCONCLUSIVE: ("fail", "warning"),
    Verdict.NOT_SCANNED: ("fail", "warning"),
    Verdict.NATURAL: ("open", "none"),
    Verdict.NO_EVIDENCE: ("open", "none"),
}
_RULES: Final = tuple(Verdict)
_BASE_ID: Final = "REPO"
_WEIGHTS: Final = ".safetensors"
_PREFIX = re.compile(re.escape(_WEIGHTS) + "#.*", re.DOTALL)
_ANCHOR: Final = {"name", "repo_id", "commit_sha", "path", "chosen_by", "distance"}
_MEASURED: Final[dict[str, Any]] = {
    **dict.fromkeys(("architecture", "score", "witness", "p_value", "predictive_value"), True),
    **dict.fromkeys(("prevalence", "calibration", "statistics", "thresholds"), True),
    "anchor": _ANCHOR,
    "base": {"repo_id", "commit_sha"},
}


def to_sarif(report: Report) -> str:
    """`report` as a SARIF log of one run with one result a tower: ASCII, equal for equal reports.

    Raises:
        ReportError: `created_at` is no date.
    """
    artifacts = files(report)
    index = {path: number for number, path in enumerate(artifacts)}
    run = {
        "tool": {"driver": _driver(report)},
        "automationDetails": {"id": _automation_id(report)},
        "invocations": [_invocation(report)],
        "originalUriBaseIds": {_BASE_ID: {"description": _message("The root of the repo.")}},
        "artifacts": [_artifact(file) for file in artifacts.values()],
        "results": [_result(report, finding, index) for finding in findings(report)],
        "properties": bag(
            report.model_dump(
                mode="json",
                include={"schema_version", "target", "repo_id", "commit_sha", "verdict"}
                | {"reasons", "not_covered", "config", "environment"},
            )
        ),
    }
    if report.repo_id is not None:
        run["versionControlProvenance"] = [_provenance(report.repo_id, report.commit_sha)]
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _driver(report: Report) -> dict[str, Any]:
    return {
        "name": TOOL,
        "version": plain(report.environment.hf_amdet),
        "rules": [
            {
                "id": verdict.value,
                "shortDescription": _message(_TITLES[verdict]),
                "fullDescription": _message(sentence(verdict)),
                "help": _message(ADVICE[verdict]),
                "defaultConfiguration": {"level": _KIND_AND_LEVEL[verdict][1]},
                "properties": {"tags": ["security"]},
            }
            for verdict in _RULES
        ],
    }


def _automation_id(report: Report) -> str:
    """GitHub replaces the results of an older upload whose id is equal up to the last slash."""
    return f"{TOOL}/{plain(report.repo_id or report.target)}/{report.commit_sha or ''}"


def _invocation(report: Report) -> dict[str, Any]:
    """How the scan ended; a notification of level "error" is how SARIF says "incomplete"."""
    unread = [
        _notification(reason, "error")
        for finding in findings(report)
        if finding.verdict is Verdict.NOT_SCANNED
        for reason in finding.reasons
    ]
    return {
        "executionSuccessful": report.verdict is not Verdict.NOT_SCANNED,
        "exitCode": report.exit_code,
        "exitCodeDescription": sentence(report.verdict),
        "endTimeUtc": f"{moment(report):%Y-%m-%dT%H:%M:%SZ}",
        "toolExecutionNotifications": [
            *unread,
            *(_notification(reason, "note") for reason in report.out_of_scope),
        ],
    }


def _notification(reason: Reason, level: str) -> dict[str, Any]:
    return {
        "descriptor": {"id": plain(reason.code)},
        "level": level,
        "message": _message(plain(reason.message)),
    }


def _provenance(repo_id: str, commit_sha: str | None) -> dict[str, Any]:
    revision = {} if commit_sha is None else {"revisionId": commit_sha}
    return {"repositoryUri": hub_url(repo_id), "mappedTo": {"uriBaseId": _BASE_ID}, **revision}


def _artifact(file: FileRecord) -> dict[str, Any]:
    artifact = {
        "location": {"uri": uri(file.path), "uriBaseId": _BASE_ID},
        "length": max(file.size, -1),
        "hashes": {"sha-256": file.sha256},
        "roles": ["analysisTarget"],
    }
    if file.tensors:
        artifact["properties"] = {"sha256_declared_by_the_hub": True, "tensors": bag(file.tensors)}
    return artifact


def _result(report: Report, finding: Finding, index: Mapping[str, int]) -> dict[str, Any]:
    kind, level = _KIND_AND_LEVEL[finding.verdict]
    known = fingerprint(report, finding)
    measured = finding.tower.model_dump(mode="json", include=_MEASURED) if finding.tower else {}
    return {
        "ruleId": finding.verdict.value,
        "ruleIndex": _RULES.index(finding.verdict),
        "kind": kind,
        "level": level,
        "message": _message(explained(report, finding)),
        "locations": [_location(finding, index)],
        # GitHub compares the first name only, which stands for a line where there are lines.
        "partialFingerprints": {"primaryLocationLineHash": known, "towerContent/v1": known},
        "properties": {
            **bag(measured),
            "verdict": finding.verdict.value,
            "reasons": [plain(reason.code) for reason in finding.reasons],
        },
    }


def _location(finding: Finding, index: Mapping[str, int]) -> dict[str, Any]:
    """The tower's first weight file, or its place; dashboards show no result without a file."""
    weights = [file.path for file in finding.files if file.path.endswith(_WEIGHTS)]
    path = weights[0] if weights else _PREFIX.sub(_WEIGHTS, finding.path)
    known = {"index": index[path]} if path in index else {}
    tower = {"name": plain(finding.path) or "text encoder at the root", "kind": "text encoder"}
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": uri(path), "uriBaseId": _BASE_ID, **known}
        },
        **({"logicalLocations": [tower]} if finding.tower else {}),
    }


def _message(text: str) -> dict[str, str]:
    """Text that holds no placeholder `{0}` and no link `[text](target)`, which SARIF knows."""
    doubled = text.replace("{", "{{").replace("}", "}}")
    return {"text": doubled.replace("](", "] (")}
