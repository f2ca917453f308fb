"""Files of `hf-amdet calibrate`."""

from __future__ import annotations

from pathlib import Path

from hf_amdet.detection.calibration import NullDistribution, parse
from hf_amdet.errors import UsageError


def read_null(file: str | Path) -> NullDistribution:
    """The null distribution in `file`.

    Raises:
        UsageError: it cannot be read, or is no calibration.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"The calibration {file} cannot be read: {reason}.") from error
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
