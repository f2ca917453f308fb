"""The command group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from hf_amdet._version import __version__
from hf_amdet.cli.anchors import anchors
from hf_amdet.cli.calibrate import calibrate
from hf_amdet.cli.card import card
from hf_amdet.cli.demo import demo
from hf_amdet.cli.env import env
from hf_amdet.cli.output import say
from hf_amdet.cli.report import report
from hf_amdet.cli.scan import scan
from hf_amdet.errors import AmdetError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 nothing found, 1 flagged, 2 error, 3 inconclusive or not scanned.",
)
@click.version_option(__version__, prog_name="hf-amdet")
def app() -> None:
    """Backdoor scanner for text encoders on the Hugging Face Hub.

    Downloads a text encoder by repo ID, looks for a backdoor in its weights (AMDET) and writes a
    safety report. Nothing from the repo is executed. "No evidence" is not "safe".
    """


for _command in (scan, anchors, calibrate, demo, report, card, env):
    app.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit the process with its code."""
    # Progress and messages are ours; the libraries' own bars and advice would break them up.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torch's threads wait for each other by spinning. Beside one busy process on two cores a scan
    # of a small tower was not done after 120 s; with this bound it took about 20.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app.main(arguments, prog_name="hf-amdet", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show(sys.stderr)
        return EXIT_ERROR
    except AmdetError as error:
        say(f"Error ({error.code}): {error}")
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort):
        say("Interrupted.")
        return EXIT_INTERRUPTED
    except SystemExit:
        # The reader of our output went away, which click ends with 1; that would say "flagged".
        return _without_stdout()
    except OSError as error:
        say(f"Error: the output cannot be written: {error.strerror or error}.")
        return _without_stdout()
    except Exception as error:
        # Whatever it is, it is no verdict: Python's own exit code 1 would say "flagged".
        place = traceback.extract_tb(error.__traceback__)[-1]
        say(
            f"Error (unexpected): {type(error).__name__} at {Path(place.filename).name}:"
            f"{place.lineno}: {error}\nNothing was concluded. Please report this with the output "
            "of `hf-amdet env`."
        )
        return EXIT_ERROR
    return code if isinstance(code, int) else 0


def _without_stdout() -> int:
    """What is still buffered for stdout must not raise at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_ERROR
