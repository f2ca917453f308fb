"""`hf-amdet demo`."""

from __future__ import annotations

from pathlib import Path

import click

from hf_amdet.cli.output import say


@click.command()
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the towers and the results there, to try `hf-amdet scan` on them.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def demo(output: Path | None, quiet: bool) -> int:
    """Scan two small towers that come with hf-amdet: one backdoored, one clean.

    Exit code 0 if the backdoored one is flagged and the clean one is not.
    """
    from hf_amdet import demo as towers
    from hf_amdet.cli.output import show
    from hf_amdet.cli.progress import LiveObserver
    from hf_amdet.pipeline import ScanConfig, run

    config = ScanConfig(anchor=str(towers.ANCHOR))
    verdicts = {}
    for name, folder in (("backdoored", towers.BACKDOORED), ("clean", towers.CLEAN)):
        if not quiet:
            say(f"\nScanning the {name} tower against its anchor ...")
        with LiveObserver(quiet=quiet) as observer:
            result = run(str(folder), config, observer=observer)
        show(result.report, "human")
        verdicts[name] = result.report.verdict
        if output is not None:
            from hf_amdet.report.output import write_results

            write_results(result, output / "results" / name)
    if output is not None:
        towers.copy_to(output)
        _explain(output)
    right = verdicts["backdoored"].exit_code == 1 and verdicts["clean"].exit_code == 0
    if not right:
        say("\nThis is not what the demo should give; please report it with `hf-amdet env`.")
        return 3
    say("\nThe backdoor was found, and the clean tower was not flagged.")
    return 0


def _explain(output: Path) -> None:
    say(
        f"\nThe towers are in {output}. Scan one yourself:\n"
        f"  hf-amdet scan {output / 'backdoored'} --anchor {output / 'anchor'}"
    )
