"""`hf-amdet card preview`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_amdet.cli.options import revision_option, token_option
from hf_amdet.cli.output import cleaned, say

if TYPE_CHECKING:
    from hf_amdet.hub.card import CardChange

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@click.group()
def card() -> None:
    """Look at model cards."""


@card.command()
@click.argument("target")
@click.option(
    "--report",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The report.json of an earlier scan of TARGET (`hf-amdet scan --output DIR`).",
)
@revision_option
@token_option
def preview(target: str, file: Path, revision: str | None, token: str | None) -> None:
    """Show what publishing a report would change in the README.md of TARGET, as a unified diff.

    TARGET is the repo that FILE is about, or the folder. The card is that of main, or of
    --revision: refs/pr/N for a pull request that publishing would update. Nothing is sent.

    Exit code 0 with the diff, or without one where nothing would change; 2 where publishing would
    be refused, because the owner opted out or the weights are others by now, and for errors.
    """
    from hf_amdet.hub.client import Hub
    from hf_amdet.hub.preview import preview as change_of
    from hf_amdet.report.files import load
    from hf_amdet.report.schema import Verdict

    report = load(file)
    change = change_of(target, report, source=str(file), revision=revision, hub=Hub(token=token))
    if change.before == change.after:
        say(f"Nothing would change: the card of {target} says what {file} does.")
        return
    click.echo("\n".join(difference(change)))
    if report.verdict is Verdict.FLAGGED:
        say(
            f"{file} says flagged: about somebody else's repo that is published only with "
            "--publish-flagged. Tell the owner first."
        )


def difference(change: CardChange) -> list[str]:
    """The lines of a unified diff of README.md, fit for a terminal."""
    before, after = (
        (card or b"").splitlines(keepends=True) for card in (change.before, change.after)
    )
    lines = difflib.diff_bytes(
        difflib.unified_diff,
        before,
        after,
        b"/dev/null" if change.before is None else b"a/README.md",
        b"b/README.md",
    )
    shown = []
    for line in lines:
        content = cleaned(line.rstrip(b"\r\n").decode(errors="replace"))
        shown.append(click.style(content, fg=_COLOURS.get(content[0])))
        if not line.endswith((b"\r", b"\n")):
            shown.append("\\ No newline at end of file")
    return shown
