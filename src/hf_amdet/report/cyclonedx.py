"""A report as a CycloneDX 1.6 BOM in JSON: the model, its text encoders and files, what was found.

The specification has no state for "looked at and nothing found" that does not say "not affected",
which no scan can. So `natural` and `no_evidence` are properties of the text encoder, and only what
is flagged or has no answer is listed as a vulnerability. None has a rating: nobody measured how
severe it is.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote

from cyclonedx.model import (
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.impact_analysis import ImpactAnalysisState
from cyclonedx.model.tool import ToolRepository
from cyclonedx.model.vulnerability import (
    BomTarget,
    Vulnerability,
    VulnerabilityAnalysis,
    VulnerabilitySource,
)
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from hf_amdet.errors import ReportError
from hf_amdet.report.files import SCHEMA_ID, to_json
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
)
from hf_amdet.report.markdown import sentence
from hf_amdet.report.schema import FileRecord, Report, TowerReport, Verdict

_MODEL: Final = "model"
_LISTED: Final = {Verdict.FLAGGED, Verdict.INCONCLUSIVE, Verdict.NOT_SCANNED}
_DIGITS: Final = 16
"""Of a finding's fingerprint, in its id."""

_Pairs = Iterable[tuple[str, object]]


def to_cyclonedx(report: Report) -> str:
    """`report` as a BOM in ASCII JSON; equal for equal reports, serial number and time included.

    Raises:
        ReportError: `created_at` is no date, or `repo_id` no name of a repo.
    """
    content = hashlib.sha256(to_json(report).encode()).hexdigest()
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{SCHEMA_ID}:{content}"),
        metadata=BomMetaData(
            timestamp=moment(report),
            tools=ToolRepository(components=[_tool(report)]),
            component=_model(report),
            properties=_properties(_circumstances(report)),
        ),
        vulnerabilities=[
            _vulnerability(report, finding)
            for finding in findings(report)
            if finding.verdict in _LISTED
        ],
    )
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _tool(report: Report) -> Component:
    version = plain(report.environment.hf_amdet)
    return Component(type=ComponentType.APPLICATION, name=TOOL, version=version, bom_ref="tool")


def _model(report: Report) -> Component:
    owner, name, pages = "", report.target, []
    if report.repo_id is not None:
        owner, _, name = report.repo_id.rpartition("/")
        url = XsUri(hub_url(report.repo_id))
        pages = [ExternalReference(type=ExternalReferenceType.VCS, url=url)]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_MODEL,
        group=plain(owner) or None,
        name=plain(name),
        version=report.commit_sha,
        purl=_purl(report),
        external_references=pages,
        description=sentence(report.verdict),
        components=[*map(_tower, report.towers), *map(_file, files(report).values())],
        properties=_properties(
            [
                ("verdict", report.verdict.value),
                *(("reason", reason.message) for reason in report.reasons),
                *(("out_of_scope", part.message) for part in report.out_of_scope),
                *(("not_covered", item) for item in report.not_covered),
            ]
        ),
    )


def _purl(report: Report) -> PackageURL | None:
    if report.repo_id is None:
        return None
    owner, _, name = report.repo_id.rpartition("/")
    try:
        return PackageURL("huggingface", owner or None, name, report.commit_sha)
    except ValueError as error:
        raise ReportError(
            f"repo_id of the report is {plain(report.repo_id)!r}, which is no repo on the Hub; "
            "write org/model there, or null for a local folder"
        ) from error


def _tower(tower: TowerReport) -> Component:
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_tower_ref(tower.path),
        name=plain(tower.path) or "text encoder at the root",
        description=sentence(tower.verdict),
        properties=_properties(_measured(tower)),
    )


def _tower_ref(path: str) -> str:
    return f"tower:/{quote(path)}"


def _measured(tower: TowerReport) -> Iterator[tuple[str, object]]:
    yield "verdict", tower.verdict.value
    yield "architecture", tower.architecture
    yield "score", tower.score
    yield "witness", tower.witness
    yield "p_value", tower.p_value
    yield "predictive_value", tower.predictive_value
    yield "prevalence", tower.prevalence
    yield "calibration", tower.calibration
    for reason in tower.reasons:
        yield "reason", reason.message
    for name, statistic in tower.statistics.items():
        yield f"statistic:{name}", statistic.model_dump(exclude_none=True)
    for limit in tower.thresholds:
        yield f"threshold:{limit.statistic}", limit.model_dump(exclude={"statistic"})
    for role, other in (("anchor", tower.anchor), ("base", tower.base)):
        if other is not None:
            yield role, other.model_dump(exclude={"files"})


def _file(file: FileRecord) -> Component:
    declared = {"sha256": "declared by the Hub", "tensors": len(file.tensors)}
    return Component(
        type=ComponentType.FILE,
        bom_ref=f"file:/{quote(file.path)}",
        name=plain(file.path),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
        properties=_properties(
            [("size", file.size), *(declared.items() if file.tensors else ())],
        ),
    )


def _vulnerability(report: Report, finding: Finding) -> Vulnerability:
    known = fingerprint(report, finding)[:_DIGITS]
    identity = f"{TOOL}:{finding.verdict}:{known}"
    affected = [_MODEL] if finding.tower is None else [_MODEL, _tower_ref(finding.path)]
    return Vulnerability(
        bom_ref=identity,
        id=identity,
        source=VulnerabilitySource(name=TOOL),
        description=sentence(finding.verdict),
        recommendation=ADVICE[finding.verdict],
        analysis=VulnerabilityAnalysis(state=_state(finding), detail=explained(report, finding)),
        affects=[BomTarget(ref=ref) for ref in affected],
        properties=_properties(("reason_code", reason.code) for reason in finding.reasons),
    )


def _state(finding: Finding) -> ImpactAnalysisState:
    """A trigger that anybody can type was seen to work; all else waits for somebody to look."""
    typed = finding.tower is not None and finding.tower.witness in ("real_token", "tokenizer")
    if finding.verdict is Verdict.FLAGGED and typed:
        return ImpactAnalysisState.EXPLOITABLE
    return ImpactAnalysisState.IN_TRIAGE


def _circumstances(report: Report) -> Iterator[tuple[str, object]]:
    for name, value in report.config:
        if name != "settings":
            yield name, value
    for name, value in report.config.settings.items():
        yield f"setting:{name}", value
    for name, value in report.environment:
        yield f"environment:{name}", value


def _properties(pairs: _Pairs) -> list[Property]:
    """What is known of `pairs`, under our own prefix; strings as they are, the rest as JSON."""
    return [
        Property(
            name=f"{TOOL}:{plain(name)}",
            value=plain(value) if isinstance(value, str) else json.dumps(bag(value)),
        )
        for name, value in pairs
        if value is not None
    ]
