"""hf-amdet: find backdoors in the weights of text encoders on the Hugging Face Hub.

>>> from hf_amdet import ScanConfig, scan
>>> report = scan("org/model", ScanConfig(seed=1))
>>> report.verdict, report.exit_code

`scan` resolves the repo to a commit, downloads its text towers (safetensors only, nothing in it
is executed), recovers trigger embeddings by gradient descent (AMDET, arXiv 2512.00343), judges
them against the nearest clean tower that it knows and returns a `Report`. Its `Verdict` is never
"safe": it says what was found, with which thresholds, and the report says what was not covered.
Whatever goes wrong is an `hf_amdet.errors.AmdetError`.

Importing this module does not import torch; the first use of `scan` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_amdet._version import __version__

if TYPE_CHECKING:
    from hf_amdet.pipeline import ScanConfig, scan
    from hf_amdet.report.schema import Report, Verdict

__all__ = ["Report", "ScanConfig", "Verdict", "__version__", "scan"]

_HOMES = {
    "scan": "hf_amdet.pipeline",
    "ScanConfig": "hf_amdet.pipeline",
    "Report": "hf_amdet.report.schema",
    "Verdict": "hf_amdet.report.schema",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
