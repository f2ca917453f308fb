from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hf_amdet.report import plots
from hf_amdet.report.plots import Drawing

Array = NDArray[np.float64]

LARGEST = 200_000
LARGEST_SVG = 400_000

AXIS = np.linspace(-10, 10, 25)
NOISE = np.random.default_rng(0)


def bowl(count: int = 4, grid: int = 25) -> Array:
    """Surfaces `[count, grid, grid]` with their minimum near the trigger."""
    steps = np.linspace(-10, 10, grid)
    along, across = np.meshgrid(steps, steps, indexing="ij")
    basin = -np.exp(-((along - 1) ** 2 + 0.6 * across**2) / 60)
    return np.stack([basin + 0.1 * number for number in range(count)])


def curves(steps: int = 120, restarts: int = 3) -> dict[str, Array]:
    fall = np.exp(-np.arange(steps)[:, None] / np.linspace(10, 50, restarts))
    noise = NOISE.standard_normal((steps, restarts))
    return {"pooled-contrast": 0.5 * fall - 0.6 + 0.05 * noise, "published": fall - 0.9}


def normal(count: int) -> Array:
    return NOISE.standard_normal(count) * 0.01


PICTURES: dict[str, Callable[[], Drawing]] = {
    "landscape": lambda: plots.loss_landscape(AXIS, bowl()),
    "landscape of one surface": lambda: plots.loss_landscape(AXIS, bowl(1)),
    "landscape with noise": lambda: plots.loss_landscape(
        np.linspace(-10, 10, 50), np.random.default_rng(1).standard_normal((1, 50, 50))
    ),
    "flat landscape": lambda: plots.loss_landscape(AXIS, np.full((2, 25, 25), -0.9)),
    "spectrum": lambda: plots.hessian_spectrum(normal(4_000).reshape(4, 1_000), 1e-6, 0.5),
    "spectrum of zeros": lambda: plots.hessian_spectrum(np.zeros(10), 1e-6, 0.0),
    "spectrum of one value": lambda: plots.hessian_spectrum(np.ones(1), 1e-6, 1.0),
    "inversion": lambda: plots.inversion(curves()),
    "inversion with many restarts": lambda: plots.inversion(curves(600, 64)),
    "inversion of one step": lambda: plots.inversion({"published": np.ones((1, 1))}),
}


@cache
def drawn(name: str) -> Drawing:
    return PICTURES[name]()


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("error")
def test_a_picture_is_an_opaque_png_that_fits_a_readme(name: str) -> None:
    drawing = drawn(name)
    picture = decode(drawing)
    assert len(drawing.png) < LARGEST
    assert picture.width == 1400  # sharp at 700 px on dense screens
    assert "A" not in picture.getbands()
    assert "transparency" not in picture.info
    grey = np.asarray(picture.convert("L"))
    assert grey[0, 0] == 255
    assert len(np.unique(grey)) > 10


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("error")
def test_a_picture_can_stand_in_a_page_with_others(name: str) -> None:
    drawing = drawn(name)
    assert len(drawing.svg) < LARGEST_SVG
    root = ElementTree.fromstring(drawing.svg)
    assert root.tag == "svg"
    elements = list(root.iter())
    # Nothing that acts beyond the picture, is loaded, or needs a font of the reader's.
    assert {element.tag for element in elements} <= {
        *("svg", "g", "defs", "clipPath", "pattern", "path", "rect", "use", "image"),
    }
    assert not any({"style", "class"} & element.attrib.keys() for element in elements)
    assert "http" not in drawing.svg
    ids = [element.attrib["id"] for element in elements if "id" in element.attrib]
    links = [element.attrib["href"] for element in elements if "href" in element.attrib]
    referred = re.findall(r"url\(#([^)]*)\)", drawing.svg)
    referred += [link[1:] for link in links if link.startswith("#")]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(referred)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_its_own_light_ground(name: str) -> None:
    root = ElementTree.fromstring(drawn(name).svg)
    _, _, width, height = root.attrib["viewBox"].split()
    ground = next(element for element in root.iter() if element.tag == "path")
    assert ground.attrib["fill"] == "#ffffff"
    corners = set(re.findall(r"[ML] (\S+ \S+)", ground.attrib["d"]))
    assert corners == {f"0 {height}", f"{width} {height}", f"{width} 0", "0 0"}


def test_names_in_a_picture_are_outlines() -> None:
    drawing = plots.inversion({"</svg><script>": np.ones((5, 1))})
    assert "script" not in drawing.svg


def test_what_is_seen_is_said_in_numbers() -> None:
    surface = np.zeros((1, 25, 25))
    surface[0, 12, 12], surface[0, 0, 0] = -2, 5
    assert plots.loss_landscape(AXIS, surface).alt == (
        "The loss around the trigger, as a surface and as a map: -2 to 5, at the trigger -2."
    )
    spectrum = plots.hessian_spectrum(np.array([-1.0, 2.0, 3.0]), 1e-6, 2 / 3)
    assert spectrum.alt == "Histogram of 3 eigenvalues, -1 to 3; 2 of them are above 1e-06."
    fall = np.linspace([1.0, 0.5], [0.0, -0.5], 9)
    assert plots.inversion({"published": fall}).alt == (
        "Loss of published by step; steps: 9, restarts: 2; the moving mean begins at "
        "0.438 to 0.938 and ends at -0.438 to 0.0625."
    )


def test_equal_arrays_give_equal_bytes() -> None:
    known = curves()
    assert plots.loss_landscape(AXIS, bowl()) == plots.loss_landscape(AXIS, bowl())
    assert plots.inversion(known) == plots.inversion(known)
    values = normal(100)
    assert plots.hessian_spectrum(values, 1e-6, 0.5) == plots.hessian_spectrum(values, 1e-6, 0.5)


def test_bytes_hold_no_date_and_no_software() -> None:
    assert set(decode(plots.inversion(curves())).info) <= {"dpi"}


def test_settings_of_the_process_neither_matter_nor_change() -> None:
    known = curves()
    expected = plots.inversion(known)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "red"}):
        before = settings()
        assert plots.inversion(known) == expected
        assert settings() == before


def test_pyplot_stays_out() -> None:
    code = (
        "import sys; from hf_amdet.report import plots; plots.inversion({'a': [[1.0], [0.5]]}); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_left_out(value: float) -> None:
    surfaces, known = bowl(), curves()
    surfaces[0, 3, 4] = value  # known from the other surfaces
    surfaces[:, 20:, 20:] = value
    known["published"][5:9, 0] = value
    values = np.append(normal(100), value)
    assert plots.loss_landscape(AXIS, surfaces) != plots.loss_landscape(AXIS, bowl())
    decode(plots.inversion(known))
    assert plots.hessian_spectrum(values, 0, 0.5) == plots.hessian_spectrum(values[:-1], 0, 0.5)


@pytest.mark.filterwarnings("error")
def test_nothing_finite_is_said_so() -> None:
    drawings = (
        plots.loss_landscape(AXIS, np.full((2, 25, 25), np.nan)),
        plots.hessian_spectrum(np.full((2, 8), np.inf), 1e-6, 0.0),
        plots.inversion({"published": np.full((4, 2), np.nan)}),
        plots.inversion({}),
    )
    for drawing in drawings:
        decode(drawing)
        assert drawing.alt.endswith("no finite values")


@pytest.mark.filterwarnings("error")
def test_one_objective_without_finite_values_is_told_from_the_others() -> None:
    drawing = plots.inversion({"a": np.full((4, 2), np.nan), "b": np.ones((4, 2))})
    assert "begins at no finite value and" in drawing.alt
    assert "begins at 1 and ends at 1." in drawing.alt


def test_the_first_index_of_a_surface_runs_along_the_horizontal_axis() -> None:
    rising = np.broadcast_to(AXIS[:, None], (1, 25, 25))
    area = np.asarray(decode(plots.loss_landscape(AXIS, rising)).convert("RGB"))[150:530, 880:1190]
    left, right = area[150, 5].astype(int), area[150, -5].astype(int)
    assert np.abs(left - right).sum() > 200
    # Nothing changes from bottom to top, away from the trigger.
    assert np.ptp(area[100:, 20].astype(int), axis=0).max() < 8


def settings() -> dict[str, str]:
    """All of matplotlib's settings but the backend, which reading would choose."""
    return {name: str(matplotlib.rcParams[name]) for name in set(matplotlib.rcParams) - {"backend"}}


def decode(drawing: Drawing) -> Image.Image:
    picture = Image.open(io.BytesIO(drawing.png))
    picture.load()
    assert picture.format == "PNG"
    return picture
