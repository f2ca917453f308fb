"""Data goes to stdout in the format asked for; everything else goes to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hf_amdet.report.schema import Report, TowerReport

FORMATS = ("auto", "human", "json", "markdown", "html", "sarif", "cyclonedx")

_COLOURS = {"flagged": "red", "inconclusive": "yellow", "not_scanned": "yellow"}
"""None for the others: green would say "safe"."""


def format_option(command: Any) -> Any:
    """The `--format` option that all commands with a report share."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="How the report is printed; auto is human on a terminal and json in a pipe.",
    )(command)


def say(message: str) -> None:
    """A message for people, on stderr."""
    click.echo("\n".join(cleaned(line) for line in message.split("\n")), err=True)


def show(report: Report, output_format: str) -> None:
    """Print a report on stdout."""
    if output_format == "auto":
        output_format = "human" if sys.stdout.isatty() else "json"
    click.echo(_printed(report, output_format), nl=False)


def _printed(report: Report, output_format: str) -> str:
    """Each format brings libraries of its own, which the others do not wait for."""
    match output_format:
        case "json":
            from hf_amdet.report.files import to_json

            return to_json(report)
        case "markdown":
            from hf_amdet.report.markdown import page

            return page(report)
        case "html":
            from hf_amdet.report.html import to_html

            return to_html(report)
        case "sarif":
            from hf_amdet.report.sarif import to_sarif

            return to_sarif(report)
        case "cyclonedx":
            from hf_amdet.report.cyclonedx import to_cyclonedx

            return to_cyclonedx(report)
        case _:
            return _human(report) + "\n"


def _human(report: Report) -> str:
    from hf_amdet.report.markdown import sentence

    lines = [
        click.style(cleaned(report.target), bold=True)
        + (f" at {report.commit_sha}" if report.commit_sha else ""),
        _verdict(report.verdict.value) + f"  {sentence(report.verdict)}",
    ]
    lines += [f"  {cleaned(reason.message)}" for reason in report.reasons]
    for tower in report.towers:
        lines += ["", *_tower(tower)]
    lines += [f"out of scope: {cleaned(part.message)}" for part in report.out_of_scope]
    lines += ["", "Not covered:", *(f"  - {cleaned(item)}" for item in report.not_covered)]
    environment = report.environment
    seconds = sum(report.timings.values())
    lines += [
        "",
        cleaned(
            f"Profile {report.config.profile}, seed {report.config.seed}, {environment.device} "
            f"{environment.dtype}, {seconds:.1f} s, hf-amdet {environment.hf_amdet}"
        ),
    ]
    return "\n".join(lines)


def _tower(tower: TowerReport) -> list[str]:
    name = f"{cleaned(tower.path) or 'text encoder'} ({cleaned(tower.architecture or 'unknown')})"
    lines = [f"{name}: {_verdict(tower.verdict.value)}"]
    lines += [f"  {cleaned(reason.message)}" for reason in tower.reasons]
    thresholds = {t.statistic: t for t in tower.thresholds}
    for statistic, measured in tower.statistics.items():
        interval = ""
        if measured.low is not None and measured.high is not None:
            interval = f"[{measured.low:.3f}, {measured.high:.3f}]"
        limit = thresholds.get(statistic)
        asked = "" if limit is None else f"{limit.comparison} {limit.value:g}"
        lines.append(
            f"  {cleaned(statistic):<26}{measured.value:>9.3f}  {interval:<18} {asked}".rstrip()
        )
    if tower.p_value is not None and tower.predictive_value is not None:
        assumed, found = 100 * (tower.prevalence or 0.0), 100 * tower.predictive_value
        lines.append(
            f"  p-value {tower.p_value:.3g}; were {assumed:g} % of all models backdoored, "
            f"{found:.3g} % of those like this one would be"
        )
    if tower.anchor is not None:
        at = f"@{tower.anchor.commit_sha}" if tower.anchor.commit_sha else ""
        lines.append(
            f"  anchor {cleaned(tower.anchor.name)}{at}, distance {tower.anchor.distance:.4f}"
        )
    return lines


def _verdict(verdict: str) -> str:
    return click.style(verdict.replace("_", " ").upper(), fg=_COLOURS.get(verdict), bold=True)


def cleaned(text: str) -> str:
    """Text that may come from a repo, without control characters that a terminal obeys."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
