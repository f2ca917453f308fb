from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hf_amdet.detection.config import DEFAULT
from hf_amdet.detection.detect import Candidate, Detection
from hf_amdet.detection.judges import Measure
from hf_amdet.detection.landscape import Landscape, hessian_eigenvalues
from hf_amdet.detection.verdict import Conclusion
from hf_amdet.errors import OutputError, ReportError
from hf_amdet.pipeline import ScannedTower, ScanResult
from hf_amdet.report import files, output, plots
from hf_amdet.report.schema import Report, Verdict
from tests.report import samples

WIDTH = 8

REPORTS = {"report.json", "report.md", "report.html"}
RECOVERED = {"inversion.png", "trigger_embedding.safetensors", "textual_inversion.safetensors"}
DRAWN = {"loss_landscape.png", "hessian_spectrum.png"}
ALL = REPORTS | RECOVERED | DRAWN


def landscape() -> Landscape:
    axis = torch.linspace(-10, 10, 7)
    surfaces = (axis[:, None] ** 2 + axis**2).expand(2, 7, 7) / 100
    eigenvalues = torch.stack([hessian_eigenvalues(surface) for surface in surfaces])
    return Landscape(axis, surfaces, eigenvalues, 1.0, (1.0, 1.0))


def detection(k: int = 1, *, drawn: bool = True) -> Detection:
    """The second of two candidates is the decisive one."""
    generator = torch.Generator().manual_seed(k)
    triggers = torch.randn(2, k, WIDTH, generator=generator)
    gap = {"consistency_gap": Measure(0.4, 0.3, 0.5, "cosine", 64)}
    return Detection(
        conclusion=Conclusion("flagged", 1, 0.4, (), ()),
        candidates=tuple(
            Candidate("pooled-contrast", number, -0.7, 20, trigger, gap)
            for number, trigger in enumerate(triggers)
        ),
        statistics=gap,
        curves={"pooled-contrast": torch.linspace(0, -0.7, 20).double()[:, None].expand(20, 2)},
        landscape=landscape() if drawn else None,
        timings={},
    )


def scanned(path: str = "", k: int = 1, *, drawn: bool = True) -> ScannedTower:
    position = tuple(0.5 * number for number in range(k * WIDTH))
    return ScannedTower(path, "clip", detection(k, drawn=drawn), position)


def report(*paths: str, **changes: Any) -> Report:
    """A report on towers at `paths`."""
    tower = samples.tower(Verdict.FLAGGED, gap=0.4)
    config = samples.flagged().config.model_copy(
        update={"settings": {"landscape.eigenvalue": 1e-6}}
    )
    towers = tuple(tower.model_copy(update={"path": path}) for path in paths)
    return samples.flagged().model_copy(update={"towers": towers, "config": config, **changes})


def results(*paths: str) -> ScanResult:
    return ScanResult(report(*paths), tuple(scanned(path) for path in paths))


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that cost nothing, where only their place matters."""
    drawing = plots.Drawing("caption", "alt", "<svg></svg>", b"picture")
    for name in ("inversion", "loss_landscape", "hessian_spectrum"):
        monkeypatch.setattr(plots, name, lambda *_: drawing)


def found(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


def test_a_tower_at_the_root_has_its_files_in_the_folder_itself(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "folder"
    result = results("")
    written = output.write_results(result, directory)
    assert written[0] == directory / "report.json"
    assert {str(path.relative_to(directory)) for path in written} == found(directory) == ALL
    assert len(written) == len(ALL)
    assert files.load(directory / "report.json") == result.report
    assert (directory / "report.md").read_text().startswith("# Backdoor scan of ")
    for name in ("inversion.png", *DRAWN):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    assert (directory / "report.html").read_text().count("<svg ") == 1 + len(DRAWN)


@pytest.mark.usefixtures("blank")
def test_every_other_tower_has_a_folder(tmp_path: Path) -> None:
    output.write_results(results("text_encoder", "a/text_encoder_2"), tmp_path)
    of_towers = RECOVERED | DRAWN
    assert found(tmp_path) == (
        REPORTS
        | {f"text_encoder/{name}" for name in of_towers}
        | {f"a/text_encoder_2/{name}" for name in of_towers}
    )


def test_without_scanned_towers_there_is_only_the_report(tmp_path: Path) -> None:
    written = output.write_results(ScanResult(report(""), ()), tmp_path)
    assert written == tuple(tmp_path / f"report.{kind}" for kind in ("json", "md", "html"))
    assert found(tmp_path) == REPORTS


@pytest.mark.usefixtures("blank")
def test_without_a_landscape_nothing_of_it_is_drawn(tmp_path: Path) -> None:
    output.write_results(ScanResult(report(""), (scanned(drawn=False),)), tmp_path)
    assert found(tmp_path) == REPORTS | RECOVERED
    assert (tmp_path / "report.html").read_text().count("<svg>") == 1


def test_the_page_shows_each_tower_its_own_pictures(tmp_path: Path) -> None:
    towers = (scanned("one"), scanned("two", drawn=False))
    output.write_results(ScanResult(report("one", "two"), towers), tmp_path)
    page = (tmp_path / "report.html").read_text()
    figures = page[page.index("<h2>Figures") : page.index("<h2>How sure")]
    _, one, two = figures.split("<h3>")
    assert one.startswith("Text encoder <code>one")
    assert (one.count("<svg "), two.count("<svg ")) == (3, 1)


def test_the_page_of_a_whole_scan_is_moderate_and_tells_nothing_of_this_machine(
    tmp_path: Path,
) -> None:
    """Every figure as large as the default profile makes it, and as rough as can be."""
    (inversion,), grid = DEFAULT.inversions, DEFAULT.landscape.grid
    noise = torch.Generator().manual_seed(0)
    surfaces = torch.randn(
        DEFAULT.landscape.prompts * DEFAULT.landscape.directions, grid, grid, generator=noise
    )
    eigenvalues = torch.stack([hessian_eigenvalues(surface) for surface in surfaces])
    found = replace(
        detection(),
        curves={
            "consistency-gap": torch.randn(inversion.steps, inversion.restarts, generator=noise)
        },
        landscape=Landscape(torch.linspace(-10, 10, grid), surfaces, eigenvalues, 0.5, (0.5,) * 4),
    )
    output.write_results(ScanResult(report(""), (replace(scanned(), detection=found),)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg ") == 3
    assert len(page.encode()) < 2_000_000
    for private in (str(tmp_path), str(Path.cwd()), sys.prefix):
        assert private not in page


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("k", [1, 3])
def test_the_decisive_trigger_is_kept_as_it_was_recovered(tmp_path: Path, k: int) -> None:
    tower = scanned("text_encoder", k)
    output.write_results(ScanResult(report("text_encoder"), (tower,)), tmp_path)
    path = tmp_path / "text_encoder" / "trigger_embedding.safetensors"
    tensors = load_file(path)
    assert tensors.keys() == {"trigger"}
    assert tensors["trigger"].dtype == torch.float32
    assert torch.equal(tensors["trigger"], tower.detection.candidates[1].trigger)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("note")
    assert metadata == {
        "repo_id": samples.REPO_ID,
        "commit_sha": samples.COMMIT,
        "tower": "text_encoder",
        "objective": "pooled-contrast",
    }


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("k", [1, 3])
def test_textual_inversion_gives_the_trigger_back(tmp_path: Path, k: int) -> None:
    tower = scanned(k=k)
    output.write_results(ScanResult(report(""), (tower,)), tmp_path)
    tokens, rows = as_diffusers_reads(tmp_path / "textual_inversion.safetensors")
    assert tokens == ["<amdet-trigger>", "<amdet-trigger>_1", "<amdet-trigger>_2"][:k]
    # What the text encoder makes of these rows at the first places behind BOS.
    position = torch.tensor(tower.position).reshape(k, WIDTH)
    embedded = torch.stack(rows) + position
    torch.testing.assert_close(embedded, tower.detection.decisive.trigger)


def as_diffusers_reads(path: Path) -> tuple[list[str], list[torch.Tensor]]:
    """New tokens and their rows of the embedding table, `[D]` each.

    After `TextualInversionLoaderMixin`: of a safetensors file with one tensor the key is the
    token; a first dimension above one makes tokens with `_1`, `_2`, ... behind the first.
    """
    ((token, embedding),) = load_file(path).items()
    if embedding.ndim > 1:
        assert len(embedding) > 1
        return [token, *(f"{token}_{i}" for i in range(1, len(embedding)))], list(embedding)
    return [token], [embedding]


def test_equal_scans_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        output.write_results(results(""), tmp_path / name)
    for name in found(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.usefixtures("blank")
def test_nothing_of_an_older_scan_stays(tmp_path: Path) -> None:
    output.write_results(results("", "text_encoder"), tmp_path)
    mine = tmp_path / "text_encoder" / "mine.png"
    mine.write_bytes(b"")
    newer = ScanResult(report("", verdict=Verdict.NOT_SCANNED), ())
    output.write_results(newer, tmp_path)
    assert found(tmp_path) == REPORTS | {"text_encoder/mine.png"}
    assert files.load(tmp_path / "report.json").verdict is Verdict.NOT_SCANNED


@pytest.mark.usefixtures("blank")
def test_files_of_others_stay(tmp_path: Path) -> None:
    others = ["model.safetensors", "loss.png", "elsewhere/loss_landscape.png"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"other")
    (tmp_path / "report.json").write_text("not a report")
    output.write_results(results(""), tmp_path)
    assert found(tmp_path) == ALL | set(others)
    assert {(tmp_path / name).read_bytes() for name in others} == {b"other"}


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("../../etc", "etc"),
        ("/etc/./cron.d//x", "etc/cron.d/x"),
        ("..", "tower"),
        ("a/..\\..\\b", "a/b"),
        ("C:\\x", "Cx"),
        (".git/hooks", "git/hooks"),
        ("塔", "tower"),
        ("a\0\nb\u202e", "ab"),
        ("report.json", "tower-report.json"),
        ("Report.HTML", "tower-Report.HTML"),
        ("a/Inversion.PNG/b", "a/tower-Inversion.PNG/b"),
        ("x" * 300, "x" * 64),
        ("/".join("d" * 5_000), "d/d/d/d/d/d/d/d"),
        ("a\udcff", "a"),
    ],
)
def test_a_hostile_path_stays_below_the_folder(tmp_path: Path, path: str, folder: str) -> None:
    directory = tmp_path / "deep" / "results"
    written = output.write_results(results(path), directory)
    assert directory / folder / "inversion.png" in written
    assert {str(p.relative_to(tmp_path / "deep" / "results")) for p in written} == found(directory)
    assert found(tmp_path) == {f"deep/results/{name}" for name in found(directory)}


@pytest.mark.usefixtures("blank")
def test_towers_whose_paths_come_down_to_one_name_keep_their_own_files(tmp_path: Path) -> None:
    paths = ("encoder", "enco der", "Encoder", "encoder-2", ".")
    written = output.write_results(results(*paths), tmp_path)
    assert len({str(path).casefold() for path in written}) == len(REPORTS) + 5 * len(
        RECOVERED | DRAWN
    )


@pytest.mark.usefixtures("blank")
def test_a_full_disk_leaves_the_older_scan_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.write_results(results("", "text_encoder"), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in found(tmp_path)}
    left = iter(range(4))

    def fsync(*_: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    newer = ScanResult(report("", created_at="2027-01-02T03:04:05Z"), (scanned(k=2),))
    with pytest.raises(OutputError, match="No space left"):
        output.write_results(newer, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in found(tmp_path)} == before


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("name", ["report.json", "inversion.png", "text_encoder/inversion.png"])
def test_a_folder_where_a_file_should_go_is_refused_before_anything_changes(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"is a folder"):
        output.write_results(results("", "text_encoder"), tmp_path)
    assert found(tmp_path) == set()


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("name", ["results", "results/text_encoder"])
def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="cannot write to"):
        output.write_results(results("text_encoder"), tmp_path / "results")
    assert found(tmp_path) == {name}


@pytest.mark.usefixtures("blank")
def test_an_invalid_report_changes_nothing(tmp_path: Path) -> None:
    output.write_results(results(""), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    broken = replace(results(""), report=report("", repo_id=3))
    with (
        pytest.warns(UserWarning, match="serializer"),
        pytest.raises(ReportError, match="repo_id"),
    ):
        output.write_results(ScanResult(broken.report, ()), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert found(tmp_path) == ALL
