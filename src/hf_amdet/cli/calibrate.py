"""`hf-amdet calibrate`."""

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
from hf_amdet.cli.output import say

if TYPE_CHECKING:
    from hf_amdet.detection.calibration import NullDistribution

_ENOUGH = 99


@click.command()
@click.argument("anchor")
@click.option(
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the calibration is written; what is done so far is kept in FILE.partial.",
)
@click.option(
    "--towers",
    type=int,
    default=_ENOUGH,
    show_default=True,
    help="Clean variants that are made and scanned; the smallest p-value is 1 / (1 + towers).",
)
@click.option("--tower", metavar="PATH", help="Which text encoder, where ANCHOR holds several.")
@revision_option
@search_options
@token_option
@quiet_option
def calibrate(
    anchor: str,
    output: Path,
    towers: int,
    tower: str | None,
    token: str | None,
    quiet: bool,
    **settings: Any,
) -> int:
    """Measure which scores clean relatives of ANCHOR get, so that scans can give p-values.

    Makes clean variants of ANCHOR from nothing but its weights and ordinary prompts, and scans
    each against it: as many scans as --towers says. Run the same command again to go on after an
    interruption.
    """
    from hf_amdet.cli.progress import LiveObserver
    from hf_amdet.hub.client import Hub
    from hf_amdet.pipeline import ScanConfig
    from hf_amdet.pipeline.calibrate import calibrate as measure

    config = ScanConfig(hub=Hub(token=token), **settings)
    with LiveObserver(quiet=quiet) as observer:
        null = measure(anchor, config, output, tower=tower, towers=towers, observer=observer)
    if not quiet:
        say(f"{output}: {_summary(null)}")
    return 0


def _summary(null: NullDistribution) -> str:
    scores = sorted(tower.score for tower in null.towers)
    count = len(scores)
    lines = [
        f"{count} clean variants of {null.anchor} score {scores[0]:.3f} to {scores[-1]:.3f}.",
        f"The smallest p-value that they can give is {1 / (1 + count):.2g}.",
    ]
    if count < _ENOUGH:
        lines.append(f"{_ENOUGH} towers would give {1 / (1 + _ENOUGH):.2g}.")
    return " ".join(lines)
