"""Pictures of what inversion went through: arrays in, PNG and SVG out.

Equal arrays give equal pictures, whatever matplotlib's own settings are. The light background is
opaque, so that the pictures read the same on light and on dark pages; the colours (Okabe and Ito,
viridis) hold for every kind of colour vision, and nothing is told by colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hf_amdet.report.inline_svg import Picture, inline

Array = NDArray[np.float64]

_INCHES = (7.0, 3.3)
_DPI = 200
_INK = "#222222"
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_COLOURS = (_BLUE, _ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_BINS = 80
_LEVELS = 14
_MAP = "viridis"
_PLACE = (0.09, 0.16, 0.88, 0.66)
_TITLE_SIZE = 9.5
_MANY = 8
_TRIGGER: dict[str, Any] = {
    "marker": "X",
    "color": "#D7191C",
    "edgecolors": "white",
    "label": "trigger",
}
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.labelsize": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # the one font that comes with matplotlib
    "font.size": 8.5,
    "legend.fontsize": 8.5,
    "legend.framealpha": 0.9,
    "legend.handletextpad": 0.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # who reads the page may not have the font
    "svg.hashsalt": "hf-amdet",  # else ids are drawn at random
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.color": _INK,
    "ytick.labelsize": 8,
}
_LANDSCAPE = (
    "The loss at the trigger that was recovered (cross) and in steps away from it: the lower, the "
    "more the text encoder answers as a backdoored one would."
)
_SPECTRUM = (
    "How the loss curves around the trigger: in a valley all eigenvalues are positive. The profile "
    "paper takes a valley for a sign of an injected backdoor; the profile default does not decide "
    "by it."
)
_INVERSION = (
    "How triggers were searched for: each line is one attempt, and the lower it ends, the more the "
    "text encoder answers as a backdoored one would."
)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Drawing(Picture):
    """A picture as an element of an HTML page, and as a PNG file."""

    png: bytes


def loss_landscape(axis: ArrayLike, surfaces: ArrayLike) -> Drawing:
    """The mean loss around the trigger, as a surface and as a map.

    Args:
        axis: `[G]`, steps along both unit directions.
        surfaces: `[S, G, G]`, the loss by step along the steepest descent, then across it.
    """
    steps, stack = np.asarray(axis, dtype=np.float64), _finite(surfaces)
    if not np.isfinite(stack).any():
        return _nothing("loss landscape", _LANDSCAPE)
    mean = _mean(stack)
    of = "" if len(stack) == 1 else f" (mean of {len(stack)} surfaces)"
    with _figure(f"Loss around the recovered trigger{of}") as figure:
        _draw_relief(figure, steps, mean)
        _draw_map(figure, steps, mean)
        return _drawing(
            figure,
            _LANDSCAPE,
            "The loss around the trigger, as a surface and as a map: "
            f"{_range(mean)}, at the trigger {_at_trigger(mean):.3g}.",
        )


def hessian_spectrum(eigenvalues: ArrayLike, threshold: float, share: float) -> Drawing:
    """How many eigenvalues of the Hessians around the trigger are positive.

    Args:
        eigenvalues: `[S, E]`, or any other shape.
        threshold: an eigenvalue above it counts as positive.
        share: of the eigenvalues that do.
    """
    values = np.asarray(eigenvalues, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return _nothing("Hessian spectrum", _SPECTRUM)
    above = values > threshold
    title = f"Curvature around the trigger: {100 * share:.1f} % of the eigenvalues are positive"
    with _figure(title) as figure:
        axes = figure.add_axes(_PLACE)
        _, _, parts = axes.hist(
            [values[~above], values[above]],
            bins=_edges(values, threshold).tolist(),
            stacked=True,
            log=True,
            color=[_ORANGE, _BLUE],
            label=[f"not above the threshold ({(~above).sum():,})", f"above it ({above.sum():,})"],
        )
        _hatch(parts)
        axes.axvline(
            threshold, color=_INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:g}"
        )
        axes.set_ylim(bottom=0.7)  # a bin of one stays visible on the logarithmic axis
        axes.set_xlabel("eigenvalue (curvature per grid step)")
        axes.set_ylabel("count (log)")
        _legend_above(axes)
        return _drawing(
            figure,
            _SPECTRUM,
            f"Histogram of {values.size:,} eigenvalues, {_range(values)}; "
            f"{above.sum():,} of them are above {threshold:g}.",
        )


def inversion(curves: Mapping[str, ArrayLike]) -> Drawing:
    """The loss while triggers were recovered: a colour for each objective, a line a restart.

    The pale lines are the loss of every step, each on its own prompts, hence their noise; the
    strong ones are their moving means.

    Args:
        curves: by objective, losses `[S, R]` of S steps and R restarts.
    """
    known = {name: _finite(curve) for name, curve in curves.items()}
    if not any(np.isfinite(curve).any() for curve in known.values()):
        return _nothing("inversion", _INVERSION)
    with _figure("Inversion: the loss of every step (pale) and its moving mean") as figure:
        axes = figure.add_axes(_PLACE)
        looks = zip(cycle(_COLOURS), cycle(_DASHES), strict=False)
        for (name, curve), (colour, dashes) in zip(known.items(), looks, strict=False):
            _draw_restarts(axes, name, curve, {"color": colour, "linestyle": dashes})
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.margins(x=0.01)
        _legend_above(axes)
        return _drawing(figure, _INVERSION, " ".join(_course(*item) for item in known.items()))


@contextmanager
def _figure(title: str) -> Iterator[Figure]:
    """A titled figure, drawn in our style within the block and in nobody else's."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=_INCHES, dpi=_DPI)
        figure.suptitle(title, fontsize=_TITLE_SIZE, y=0.97)
        yield figure


def _drawing(figure: Figure, caption: str, alt: str) -> Drawing:
    return Drawing(caption, alt, _svg(figure), _png(figure))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=_DPI, metadata=_NO_METADATA)
    return inline(buffer.getvalue())


def _png(figure: Figure) -> bytes:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    # A palette takes a third of the bytes, and Pillow writes neither its name nor a date.
    buffer = io.BytesIO()
    picture.quantize(256).save(buffer, format="png", optimize=True, dpi=(_DPI, _DPI))
    return buffer.getvalue()


def _nothing(name: str, caption: str) -> Drawing:
    """Instead of a picture of numbers that are all NaN or infinite."""
    title = f"{name}: no finite values"
    with _figure(title) as figure:
        return _drawing(figure, caption, title)


def _draw_relief(figure: Figure, steps: Array, mean: Array) -> None:
    axes: Any = figure.add_axes((0.0, 0.05, 0.47, 0.85), projection="3d")
    along, across = np.meshgrid(steps, steps, indexing="ij")
    surface = axes.plot_surface(along, across, mean, cmap=_MAP, rcount=50, ccount=50, linewidth=0)
    surface.set_rasterized(True)  # thousands of faces are a megabyte as vectors
    # Not hidden by the surface, whose lowest point the trigger often is.
    axes.computed_zorder = False
    axes.scatter(0, 0, _at_trigger(mean), s=45, zorder=9, **_TRIGGER)
    axes.set_xlabel("steepest descent", labelpad=-4)
    axes.set_ylabel("random orthogonal", labelpad=-4)
    axes.set_zlabel("loss", labelpad=8)
    axes.locator_params(nbins=6)
    axes.tick_params(pad=-2, labelsize=7.5)
    axes.tick_params(axis="z", pad=3)
    axes.view_init(elev=28, azim=-58)
    axes.set_box_aspect((1, 1, 0.8), zoom=0.93)


def _draw_map(figure: Figure, steps: Array, mean: Array) -> None:
    axes = figure.add_axes((0.615, 0.16, 0.25, 0.7))
    low, high = np.nanmin(mean), np.nanmax(mean)
    flat = high - low <= 1e-9 * max(1.0, abs(high))  # levels between would show rounding only
    # The first index of `mean` runs along the steepest descent; contourf takes it for y.
    filled = axes.contourf(
        steps,
        steps,
        np.ma.masked_invalid(mean.T),
        [low - 1, high + 1] if flat else _LEVELS,
        cmap=_MAP,
    )
    filled.set_rasterized(True)
    axes.scatter(0, 0, s=60, zorder=3, **_TRIGGER)
    axes.locator_params(nbins=5)
    axes.set_xlabel("step along the steepest descent")
    axes.set_ylabel("step along a random\northogonal direction")
    axes.legend(loc="upper right", handletextpad=0.1)
    bar = figure.colorbar(filled, cax=figure.add_axes((0.88, 0.16, 0.018, 0.7)))
    bar.ax.set_title("loss", fontsize=_STYLE["axes.labelsize"])


def _draw_restarts(axes: Axes, name: str, curve: Array, look: dict[str, Any]) -> None:
    restarts = curve.shape[1]
    steps = np.arange(1, len(curve) + 1)
    thin = 1.0 if restarts <= _MANY else 0.5
    look = {**look, "rasterized": restarts > _MANY}  # as vectors they are megabytes
    pale = {**look, "linestyle": "-", "alpha": 0.35 * thin}
    axes.plot(steps, curve, linewidth=0.6 * thin, **pale)
    lines = axes.plot(steps, _moving_mean(curve), linewidth=1.4 * thin, **look)
    if len(curve) == 1:  # a line of one point is not seen
        for line in lines:
            line.set_marker("o")
    lines[0].set_label(f"{name} ({restarts} restart{'s' if restarts > 1 else ''})")


def _course(name: str, curve: Array) -> str:
    """A sentence on the losses `[S, R]` of one objective."""
    means = _moving_mean(curve)
    return (
        f"Loss of {name} by step; steps: {len(curve)}, restarts: {curve.shape[1]}; the moving mean "
        f"begins at {_range(means[0])} and ends at {_range(means[-1])}."
    )


def _range(values: Array) -> str:
    known = values[np.isfinite(values)]
    if not known.size:
        return "no finite value"
    low, high = f"{known.min():.3g}", f"{known.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _legend_above(axes: Axes) -> None:
    """Outside the axes, where it hides no data."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _hatch(parts: Any) -> None:
    """Tell the bars at or below the threshold by more than their colour."""
    for bar in parts[0]:
        bar.set(hatch="////", edgecolor="white", linewidth=0)


def _at_trigger(mean: Array) -> float:
    """The middle of a surface `[G, G]`, which is between four points if G is even."""
    count = len(mean)
    middle = slice((count - 1) // 2, count // 2 + 1)
    return float(_mean(mean[middle, middle].reshape(-1, 1)).item())


def _finite(values: ArrayLike) -> Array:
    """`values` with NaN for what is not finite."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _edges(values: Array, threshold: float) -> Array:
    """Equal bins with an edge at the threshold, so that none lies on both its sides."""
    low, high = min(values.min(), threshold), max(values.max(), threshold)
    width = (high - low) / _BINS or 1.0
    below, above = np.ceil((threshold - low) / width), np.ceil((high - threshold) / width)
    edges: Array = threshold + width * np.arange(-below - 1, above + 2)
    return edges


def _moving_mean(curve: Array) -> Array:
    """Centred means over about a twentieth of the steps of `[S, R]`; shorter at both ends."""
    reach = max(1, len(curve) // 40)
    return np.stack([_mean(curve[max(0, i - reach) : i + reach + 1]) for i in range(len(curve))])


def _mean(values: Array) -> Array:
    """Mean over the first axis of what is finite; nanmean would warn where nothing is."""
    known = np.isfinite(values).sum(axis=0)
    total: Array = np.nansum(values, axis=0)
    return np.where(known > 0, total / np.maximum(known, 1), np.nan)
