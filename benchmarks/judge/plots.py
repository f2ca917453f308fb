"""ROC curves, one picture a group of splits: equal outcomes give equal bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from benchmarks.judge.metrics import Outcome, auroc, ranks

Curves = Mapping[str, Sequence[Outcome]]
"""Outcomes by the name of their detector."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
"""Okabe and Ito's, which hold for every kind of colour vision."""
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_INCHES = 3.2
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "legend.fontsize": 7.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "hf-amdet",
}


def roc(panels: Mapping[str, Curves]) -> bytes:
    """An SVG picture with a panel for each split, by name, in two columns at most."""
    with style.context(["default", _STYLE]):
        columns = min(2, len(panels)) if len(panels) != 3 else 3
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(_INCHES * columns, _INCHES * rows), layout="constrained")
        FigureCanvasSVG(figure)
        for number, (name, curves) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            _draw(axes, name, curves)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    # Trailing spaces would be taken out by editors.
    return re.sub(rb"[ \t]+\n", b"\n", written.getvalue())


def _draw(axes: Axes, name: str, curves: Curves) -> None:
    axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.6)
    for number, (detector, outcomes) in enumerate(curves.items()):
        area = auroc(outcomes)
        if area is None:
            continue
        labels = [outcome.positive for outcome in outcomes]
        alarms, hits, _ = roc_curve(labels, np.array(ranks(outcomes)))
        axes.plot(
            alarms,
            hits,
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.3,
            label=f"{detector} {area:.2f}",
        )
    axes.set(title=name, xlabel="false-alarm rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    if len(axes.get_lines()) > 1:
        axes.legend(loc="lower right", title="AUROC")
