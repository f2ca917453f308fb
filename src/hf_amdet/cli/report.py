"""`hf-amdet report show|validate|diff`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_amdet.cli.output import cleaned, format_option, say, show

if TYPE_CHECKING:
    from hf_amdet.report.diff import ReportDiff
    from hf_amdet.report.diff_text import Row

_FILE = click.Path(path_type=Path)
_EXIT_VERDICT_CHANGED = 1


@click.group()
def report() -> None:
    """Read report files."""


@report.command("show")
@click.argument("file", type=_FILE)
@format_option
def show_report(file: Path, output_format: str) -> None:
    """Print the report in FILE."""
    from hf_amdet.report.files import load

    show(load(file), output_format)


@report.command()
@click.argument("file", type=_FILE)
def validate(file: Path) -> None:
    """Check FILE against the published JSON Schema (exit code 2 if it does not fit)."""
    from hf_amdet.report.files import load

    loaded = load(file)
    say(f"{file} is a valid report, schema version {loaded.schema_version}.")


@report.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["auto", "human", "json", "markdown"]),
    default="auto",
    show_default=True,
    help="auto is human on a terminal and json in a pipe.",
)
def diff(old: Path, new: Path, output_format: str) -> int:
    """Say what changed from the report OLD to the report NEW.

    Be it two scans of one commit or two revisions of a model: says apart what changed in the
    model, in its anchor and in the scanner. Times do not count.

    Exit code 1 if the verdict of the repo or of any text encoder changed, one that came or went
    included; 0 if none did, whatever figures and files did; 2 for an error.
    """
    from hf_amdet.report.diff import compare, to_json
    from hf_amdet.report.diff_text import to_markdown
    from hf_amdet.report.files import load

    found = compare(load(old), load(new))
    if output_format == "auto":
        output_format = "human" if sys.stdout.isatty() else "json"
    if output_format == "json":
        click.echo(to_json(found), nl=False)
    elif output_format == "markdown":
        click.echo(to_markdown(found), nl=False)
    else:
        click.echo(_human(found))
    return _EXIT_VERDICT_CHANGED if found.verdict_changed else 0


def _human(found: ReportDiff) -> str:
    from hf_amdet.report.diff_text import sections, subject, summary

    lines = [
        f"before  {cleaned(subject(found.old))}",
        f"after   {cleaned(subject(found.new))}",
        "",
        *(cleaned(sentence) for sentence in summary(found)),
    ]
    for section in sections(found):
        lines += ["", click.style(cleaned(section.title), bold=True), *map(_line, section.rows)]
    return "\n".join(lines)


def _line(row: Row) -> str:
    note = f"  ({row.note})" if row.note else ""
    if row.old is None:
        return cleaned(f"  + {row.what}: {row.new}{note}")
    if row.new is None:
        return cleaned(f"  - {row.what}: {row.old}{note}")
    return cleaned(f"    {row.what}: {row.old} -> {row.new}{note}")
