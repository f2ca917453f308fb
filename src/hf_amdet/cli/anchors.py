"""`hf-amdet anchors`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from hf_amdet.cli.options import quiet_option, revision_option, token_option
from hf_amdet.cli.output import cleaned

if TYPE_CHECKING:
    from hf_amdet.encoders.registry import Known
    from hf_amdet.errors import TowerError
    from hf_amdet.pipeline.anchors import Choice


@click.command()
@click.argument("target", required=False)
@revision_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["auto", "human", "json"]),
    default="auto",
    show_default=True,
    help="auto is human on a terminal and json in a pipe.",
)
@token_option
@quiet_option
def anchors(
    target: str | None, revision: str | None, output_format: str, token: str | None, quiet: bool
) -> int:
    """List the clean towers that suspects are compared with.

    With TARGET: which of them is chosen for each of its text towers, and why. This downloads
    what has to be compared.
    """
    if target is None and revision is not None:
        raise click.UsageError("--revision needs a TARGET.")
    as_json = output_format == "json" or (output_format == "auto" and not sys.stdout.isatty())
    if target is None:
        from hf_amdet.encoders.registry import known_anchors

        known = known_anchors()
        entries = [_entry(anchor) for anchor in known]
        lines = [line for anchor in known for line in _listed(anchor)]
    else:
        from hf_amdet.cli.progress import LiveObserver
        from hf_amdet.hub.client import Hub
        from hf_amdet.pipeline.anchors import choices

        with LiveObserver(quiet=quiet) as observer:
            found = list(choices(target, Hub(token=token), revision=revision, observer=observer))
        entries = [_choice(path, choice) for path, choice in found]
        lines = [line for entry in entries for line in _explained(entry)]
        if not found:
            lines = [f"{target} holds no text tower that hf-amdet can scan."]
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    else:
        click.echo("\n".join(cleaned(line) for line in lines))
    return 0


def _entry(anchor: Known) -> dict[str, Any]:
    return {
        "repo_id": anchor.repo_id,
        "revision": anchor.revision,
        "path": anchor.path,
        "sha256": anchor.sha256,
        "provenance": anchor.provenance,
        "text": dict(anchor.text),
    }


def _listed(anchor: Known) -> list[str]:
    text = anchor.text
    place = f" {anchor.path}" if anchor.path else ""
    return [
        f"{anchor.repo_id}{place}",
        f"  {text['family']}, {text['num_hidden_layers']} layers, {text['hidden_size']} wide, "
        f"{text['max_position_embeddings']} positions, {text['vocab_size']} tokens, "
        f"{text['hidden_act']}",
        f"  {anchor.revision or 'no pinned commit'}; {anchor.provenance}",
    ]


def _choice(path: str, choice: Choice | TowerError) -> dict[str, Any]:
    """What was chosen for one tower, as data."""
    if isinstance(choice, Exception):
        return {"path": path, "chosen": None, "reason": str(choice), "considered": []}
    record = choice.record
    return {
        "path": path,
        "chosen": None if record is None else record.name,
        "commit_sha": None if record is None else record.commit_sha,
        "anchor_path": None if record is None else record.path,
        "distance": None if record is None else record.distance,
        "chosen_by": None if record is None else record.chosen_by,
        "vouched": choice.vouched,
        "considered": [
            {
                "anchor": candidate.target,
                "path": candidate.path,
                "distance": candidate.distance,
                "misfit": candidate.misfit,
            }
            for candidate in choice.considered
        ],
    }


def _explained(entry: dict[str, Any]) -> list[str]:
    name = entry["path"] or "text encoder"
    if entry["chosen"] is None:
        why = entry.get("reason", "no known clean tower fits and is near enough")
        lines = [f"{name}: no anchor, {why}"]
    else:
        why = "the nearest of those that fit" if entry["chosen_by"] == "registry" else "the card"
        lines = [f"{name}: {entry['chosen']}, distance {entry['distance']:.4f} ({why})"]
        if not entry["vouched"]:
            lines.append("  nobody vouches for it: it can support no clean answer")
    for candidate in entry["considered"]:
        place = f" {candidate['path']}" if candidate["path"] else ""
        state = (
            f"distance {candidate['distance']:.4f}"
            if candidate["distance"] is not None
            else candidate["misfit"]
        )
        lines.append(f"  {candidate['anchor']}{place}: {state}")
    return lines
