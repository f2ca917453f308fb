"""Small plausible reports for tests of everything that reads one."""

from __future__ import annotations

import hashlib
from typing import Any

from hf_amdet.report.schema import (
    AnchorRecord,
    CandidateRecord,
    Environment,
    FileRecord,
    Reason,
    Report,
    RunConfig,
    Statistic,
    Threshold,
    TowerReport,
    Verdict,
)

REPO_ID = "owner/clip-tower"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

_REASONS = {
    Verdict.FLAGGED: Reason(
        code="consistency_gap",
        message="One trigger embedding makes the suspect answer every prompt alike; "
        "the anchor does not.",
    ),
    Verdict.NO_EVIDENCE: Reason(
        code="below_thresholds",
        message="No recovered trigger embedding behaves differently from the anchor.",
    ),
}

HOSTILE = [
    "<!-- amdet:end -->",
    "\n<!-- amdet:end -->\n",
    "--> <b>x</b>",
    "a|b | c \\| d",
    "`` ` ```",
    "\n```\n# Safe\n",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example/a_b",
    "WWW.evil.example",
    "somebody@evil.example",
    "<https://evil.example>",
    "<script>alert(1)</script>",
    "[a]: https://evil.example",
    "&lt;b&gt; &#124; &amp;",
    "a\u202eb\u200bc\x1b[31m\x00",
    "a\u2028b\x85c\rd",
    "1. one",
    "- dash",
    "# head",
    "***",
    "===",
    "$x$ **b** _i_ ~~s~~",
    "\\",
    "",
    " ",
    "{{ report }}{% endfor %}",
    "</style><script>alert(1)</script>",
    "</title></code></td></table></section><h1>Safe</h1>",
    '" onfocus="alert(1)" autofocus x=\'',
    "javascript:alert(1)",
    "]]><svg onload=alert(1)>",
    "שלום \u2067עולם\u2069 (no. 7)",
]
"""Texts that break out of a page that is made carelessly."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_record(path: str, size: int = 1024) -> FileRecord:
    return FileRecord(path=path, size=size, sha256=digest(path))


def flagged(**changes: Any) -> Report:
    """A report whose one tower carries a backdoor; `changes` replace fields of the report."""
    return _report(Verdict.FLAGGED, gap=0.412, p_value=0.0004, changes=changes)


def no_evidence(**changes: Any) -> Report:
    """A report that found nothing; `changes` replace fields of the report."""
    return _report(Verdict.NO_EVIDENCE, gap=0.021, p_value=0.47, changes=changes)


def tower(verdict: Verdict, *, gap: float = 0.021, p_value: float | None = 0.47) -> TowerReport:
    """The text tower at the root of the repo."""
    statistic = Statistic(value=gap, low=gap - 0.03, high=gap + 0.03, unit="cosine", n=64)
    return TowerReport(
        path="",
        architecture="CLIPTextModel",
        verdict=verdict,
        score=gap,
        p_value=p_value,
        calibration="clip-text-tiny, 40 clean towers",
        statistics={"consistency_gap": statistic, "drift": Statistic(value=0.98, unit="cosine")},
        thresholds=(
            Threshold(
                statistic="consistency_gap",
                comparison=">=",
                value=0.2,
                unit="cosine",
                source="calibration of the family",
            ),
        ),
        reasons=(_REASONS.get(verdict, Reason(code="other", message="See the log.")),),
        files=(file_record("model.safetensors", 28_000_000), file_record("config.json")),
        anchor=AnchorRecord(
            name="clip-text-tiny",
            repo_id="anchors/clip-text-tiny",
            commit_sha="89abcdef" * 5,
            chosen_by="registry",
            distance=0.034,
            files=(file_record("anchor/model.safetensors", 28_000_000),),
        ),
        candidates=(
            CandidateRecord(
                objective="pooled",
                restart=0,
                loss=-0.71,
                steps=120,
                statistics={"consistency_gap": statistic},
            ),
        ),
    )


def with_text(value: str) -> Report:
    """A report with `value` in every place that a repo can fill."""
    reason = Reason(code=value, message=value).model_dump()
    entry: dict[str, Any] = tower(Verdict.FLAGGED).model_dump(mode="json")
    entry |= {"path": value or "x", "architecture": value or "x", "calibration": value}
    entry["files"][0]["path"] = value
    entry["anchor"]["name"] = value
    entry["reasons"] = [reason]
    statistic = entry["statistics"].pop("consistency_gap")
    entry["statistics"][value] = {**statistic, "unit": value}
    entry["thresholds"][0] |= {"statistic": value, "source": value}
    entry["candidates"][0] |= {"objective": value, "token": {"id": 7, "text": value}}
    entry["static"] = {
        "added": 1,
        "removed": 0,
        "added_tokens": [value],
        "read_alike": 0.5,
        "remaps": [{"text": value, "reads": value, "ids": [1], "anchor_ids": [2]}],
        "moved_rows": [{"row": 7, "piece": value, "moved": 7.5, "ratio": 41.0}],
        "token_outlier": 41.0,
        "position_outlier": 1.0,
    }
    config = {**flagged().config.model_dump(), "prompts": value, "anchor": value}
    config["profile"], config["settings"] = value, {value: value}
    environment = {name: value for name, _ in flagged().environment}
    return flagged(
        target=value,
        created_at=value,
        towers=[entry],
        out_of_scope=[reason],
        not_covered=[value],
        config=config,
        environment=environment,
        timings={value: 1.0},
    )


def _report(
    verdict: Verdict, *, gap: float, p_value: float | None, changes: dict[str, Any]
) -> Report:
    report = Report(
        created_at="2026-01-02T03:04:05Z",
        target=REPO_ID,
        repo_id=REPO_ID,
        commit_sha=COMMIT,
        verdict=verdict,
        towers=(tower(verdict, gap=gap, p_value=p_value),),
        out_of_scope=(Reason(code="unet", message="The U-Net in unet/ is not a text tower."),),
        environment=Environment(
            hf_amdet="0.1.0",
            python="3.11.7",
            platform="Linux",
            torch="2.8.0",
            transformers="5.23.0",
            accelerate="1.10.0",
            huggingface_hub="2.4.0",
            device="cpu",
            dtype="fp32",
        ),
        config=RunConfig(
            profile="default",
            seed=0,
            restarts=3,
            prompts="embedded",
            prompts_sha256=digest("prompts"),
            anchor=None,
            settings={"steps": 120, "learning_rate": 0.08},
        ),
        timings={"download": 1.25, "detect": 8.5},
        not_covered=("U-Net, VAE and image towers", "LoRA weights and prompt tuning"),
    )
    # Validated anew, so that a test cannot build a report that a scan could not.
    return Report.model_validate({**report.model_dump(), **changes})
