"""Serve local directories as repositories, to try a command line against the double by hand.

    python -m tests.hub_double --owner alice --token hf_alice org/model=./some/directory

Then set HF_ENDPOINT to the address that it prints, and open the same address in a browser.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .hub import HubDouble


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    options = _parser().parse_args(argv)
    hub = HubDouble(on_event=_say)
    namespaces = {repo_id.partition("/")[0] for repo_id, _ in options.repos}
    hub.add_user(options.token, options.owner, sorted(namespaces - {options.owner}))
    for repo_id, directory in options.repos:
        hub.add_repo(repo_id, dict(_files(directory)))
    with hub.serve(options.port) as endpoint:
        _say(f"HF_ENDPOINT={endpoint}")
        _say(f"HF_TOKEN={options.token}  # {options.owner}, may write everywhere")
        _say("HF_HUB_DISABLE_XET=1")
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            threading.Event().wait()


def _say(line: str) -> None:
    # Flushed, for a reader at the other end of a pipe.
    print(line, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_double", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("repos", nargs="+", type=_repo, metavar="REPO_ID=DIR")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--owner", default="owner", help="user name of the token")
    parser.add_argument("--token", default="hf_owner", help="token with write access")
    return parser


def _repo(text: str) -> tuple[str, Path]:
    repo_id, _, directory = text.partition("=")
    if repo_id.count("/") != 1 or not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME=DIR of a directory")
    return repo_id, Path(directory)


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if path.is_file() and ".git" not in relative.parts and ".cache" not in relative.parts:
            yield relative.as_posix(), path.read_bytes()


if __name__ == "__main__":
    main()
