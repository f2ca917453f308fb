"""`hf-amdet scan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hf_amdet.cli.options import (
    quiet_option,
    revision_option,
    search_options,
    token_option,
)
from hf_amdet.cli.output import format_option, say, show

if TYPE_CHECKING:
    from hf_amdet.hub.client import Hub
    from hf_amdet.report.schema import Report


@click.command()
@click.argument("target")
@revision_option
@click.option(
    "--anchor",
    metavar="TARGET",
    help="The clean model to compare with. [default: the nearest of `hf-amdet anchors`]",
)
@search_options
@click.option("--restarts", type=int, help="Inversions of each objective. [default: the profile's]")
@click.option(
    "--calibration",
    "calibrations",
    metavar="FILE",
    multiple=True,
    help="What `hf-amdet calibrate` wrote, for p-values; give it again for more anchors.",
)
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Assumed share of backdoored models, for predictive values.",
)
@format_option
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report, pictures and the recovered trigger embedding.",
)
@click.option(
    "--publish",
    type=click.Choice(["none", "commit", "pr"]),
    default="none",
    show_default=True,
    help="Put card and report into the repo.",
)
@click.option(
    "--publish-flagged",
    is_flag=True,
    help="Publish `flagged` about somebody else's repo; tell the owner first.",
)
@token_option
@quiet_option
def scan(
    target: str,
    output_format: str,
    output: Path | None,
    publish: str,
    publish_flagged: bool,
    token: str | None,
    quiet: bool,
    **settings: Any,
) -> int:
    """Scan the text encoders of TARGET: org/model[@revision], a local folder or weight file."""
    if publish_flagged and publish == "none":
        raise click.UsageError("--publish-flagged needs --publish commit or --publish pr.")
    from hf_amdet.cli.progress import LiveObserver
    from hf_amdet.hub.client import Hub
    from hf_amdet.pipeline import ScanConfig, run

    config = ScanConfig(hub=Hub(token=token), **settings)
    with LiveObserver(quiet=quiet) as observer:
        result = run(target, config, observer=observer)
    try:
        if output is not None:
            from hf_amdet.report.output import write_results

            write_results(result, output)
            if not quiet:
                say(f"Results are in {output}.")
    finally:
        # Whether or not the folder could be written, the report is not lost.
        show(result.report, output_format)
    if publish != "none":
        _publish(result.report, publish, config.hub, publish_flagged, quiet)
    return result.report.exit_code


def _publish(report: Report, mode: str, hub: Hub, publish_flagged: bool, quiet: bool) -> None:
    from hf_amdet.hub.publish import publish

    try:
        publication = publish(
            report,
            mode="commit" if mode == "commit" else "pr",
            hub=hub,
            publish_flagged=publish_flagged,
        )
    except KeyboardInterrupt:
        say(f"Interrupted while publishing; look at {hub.url}/{report.repo_id} for what is there.")
        raise
    if not quiet:
        what = "Published" if publication.changed else "Nothing to publish, it stands already"
        say(f"{what}: {publication.url}")
