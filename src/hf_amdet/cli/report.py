"""`hf-amdet report show|validate`."""

from __future__ import annotations

from pathlib import Path

import click

from hf_amdet.cli.output import format_option, say, show

_FILE = click.Path(path_type=Path)


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
