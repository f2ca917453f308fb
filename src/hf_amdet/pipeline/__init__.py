"""The pipeline, put together in one place: resolve -> fetch -> load -> anchor -> detect -> report.

`run` is the composition root; `towers` brings a tower into memory, `anchors` chooses what it is
compared with.
"""

from __future__ import annotations

from hf_amdet.pipeline.run import ScanConfig, ScannedTower, ScanResult, run, scan

__all__ = ["ScanConfig", "ScanResult", "ScannedTower", "run", "scan"]
