"""Options that several commands have, said in one way."""

from __future__ import annotations

from typing import Any

import click

revision_option = click.option(
    "--revision", help="Branch, tag, commit or refs/pr/N; also as TARGET@REVISION."
)
token_option = click.option(
    "--token", help="Hub token. [default: HF_TOKEN or the login of `hf auth`]"
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no messages.")

_SEARCH = (
    click.option(
        "--profile",
        type=click.Choice(["default", "paper"]),
        default="default",
        show_default=True,
        help="paper: the published objective and gates.",
    ),
    click.option(
        "--prompts",
        metavar="SOURCE",
        help="Text file with a prompt a line, or org/dataset:split:column. [default: embedded set]",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--device", help="cpu, cuda, cuda:1, mps, ... [default: the best one here]"),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "bf16", "fp32"]),
        default="auto",
        show_default=True,
        help="auto: bf16 where the hardware has it.",
    ),
)


def search_options(command: Any) -> Any:
    """What a search is run with, by names of `ScanConfig`."""
    for option in reversed(_SEARCH):
        command = option(command)
    return command
