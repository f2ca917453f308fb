"""Three small trained towers: a clean anchor, a backdoored copy, a clean fine-tune.

Each is a folder as on the Hub, with a manifest.json that says how it was made and how well its
backdoor works. Made by `python -m benchmarks.zoo`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hf_amdet.errors import OutputError

_HERE = Path(__file__).parent

ANCHOR = _HERE / "anchor"
BACKDOORED = _HERE / "backdoored"
CLEAN = _HERE / "clean"


def copy_to(folder: Path) -> None:
    """Copy the three towers into `folder`.

    Raises:
        OutputError: it cannot be written.
    """
    for tower in (ANCHOR, BACKDOORED, CLEAN):
        try:
            shutil.copytree(tower, folder / tower.name, dirs_exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error
