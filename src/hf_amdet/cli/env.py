"""`hf-amdet env`."""

from __future__ import annotations

import click


@click.command()
def env() -> None:
    """Print versions, device and precision, as asked for in bug reports."""
    from hf_amdet.detection.runtime import Runtime
    from hf_amdet.hub.client import Hub
    from hf_amdet.report.build import environment

    runtime = Runtime()
    for name, value in environment(runtime).model_dump().items():
        click.echo(f"{name}: {value}")
    click.echo(f"hub: {Hub().url}")
    click.echo(f"logged in: {'yes' if _has_token() else 'no'}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
