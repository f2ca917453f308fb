"""What the tests of the pipeline share."""

from pathlib import Path


def files_of(folder: Path, below: str = "") -> dict[str, bytes]:
    """The files of a checkpoint folder as a repo holds them, in the folder `below` of it."""
    place = f"{below}/" if below else ""
    return {f"{place}{path.name}": path.read_bytes() for path in folder.iterdir()}
