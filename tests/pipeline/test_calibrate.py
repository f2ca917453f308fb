"""A calibration from a clean model alone: its scores, its resumption, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_amdet import ScanConfig, scan
from hf_amdet.detection.calibration import NullDistribution, dump, parse
from hf_amdet.detection.progress import Observer
from hf_amdet.encoders import variants
from hf_amdet.encoders.fingerprint import encoder_digest
from hf_amdet.encoders.tower import ModelTower
from hf_amdet.encoders.variants import KINDS, Variant, make_variant
from hf_amdet.errors import NoTextTowerError, OutputError, TowerError, UsageError
from hf_amdet.pipeline import calibrate as module
from hf_amdet.pipeline.calibrate import calibrate
from hf_amdet.prompts import load_prompts
from tests import towers

CONFIG = ScanConfig(device="cpu", dtype="fp32")
Scans = list[int]


@pytest.fixture
def anchor(tmp_path: Path) -> Path:
    return towers.save(towers.make_model(), tmp_path / "anchor")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "null.json"


@pytest.fixture
def partial(output: Path) -> Path:
    return output.with_name("null.json.partial")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Scans:
    """The seeds of all scans since; each scores a thousandth of its seed."""
    seen: Scans = []

    def known(*_: Any, seed: int, **__: Any) -> Any:
        seen.append(seed)
        return SimpleNamespace(conclusion=SimpleNamespace(score=seed / 1_000))

    monkeypatch.setattr(module, "detect", known)
    return seen


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants that take no time, where their making is not in question."""

    def quick(anchor: ModelTower, prompts: tuple[str, ...], seed: int) -> Variant:
        made = make_variant(anchor, prompts[:160], KINDS.index("quantised"))
        return replace(made, kind=KINDS[seed % len(KINDS)])

    monkeypatch.setattr(variants, "_SEARCH", 1)
    monkeypatch.setattr(module, "make_variant", quick)


class Killed(Observer):
    """Ends the process, as far as a test can, once `after` towers are done."""

    def __init__(self, after: int) -> None:
        self._after = after

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        if done == self._after:
            raise KeyboardInterrupt


class Watching(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def stage(self, name: str, total: int) -> None:
        self.seen.clear()

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        self.seen.append((done, total))


def test_scores_are_those_of_the_variants_scans_and_say_what_they_belong_to(
    anchor: Path, output: Path, scans: Scans
) -> None:
    null = calibrate(str(anchor), replace(CONFIG, seed=2), output, towers=2)

    assert [tower.score for tower in null.towers] == [seed / 1_000 for seed in scans]
    assert len(set(scans)) == 2
    assert all(0.0001 < tower.drift < 0.5 for tower in null.towers)
    assert (null.family, null.anchor, null.profile) == ("clip", "anchor", "default")
    assert (null.dtype, null.seed) == ("fp32", 2)
    assert null.anchor_digest == encoder_digest(towers.load(anchor).model.state_dict())
    assert null.prompts_sha256 == load_prompts().sha256
    assert parse(output.read_text()) == null
    assert null.p_value(1_000.0) == pytest.approx(1 / 3)


def test_a_scan_finds_its_p_value_in_the_file(anchor: Path, output: Path, tmp_path: Path) -> None:
    suspect = towers.save(towers.make_model(drift=0.01), tmp_path / "suspect")
    null = calibrate(str(anchor), CONFIG, output, towers=1)

    config = replace(CONFIG, anchor=str(anchor), calibrations=(str(output),))
    (tower,) = scan(str(suspect), config).towers

    assert tower.score is not None
    assert tower.p_value == null.p_value(tower.score)


def test_a_killed_calibration_goes_on_to_the_same_file(
    anchor: Path, output: Path, partial: Path, scans: Scans, tmp_path: Path
) -> None:
    whole = calibrate(str(anchor), CONFIG, output, towers=3)
    in_one_go = output.read_bytes()
    output.unlink()

    with pytest.raises(KeyboardInterrupt):
        calibrate(str(anchor), CONFIG, output, towers=3, observer=Killed(after=2))
    assert not output.exists()
    assert parse(partial.read_text()).towers == whole.towers[:2]
    watching = Watching()
    calibrate(str(anchor), CONFIG, output, towers=3, observer=watching)

    assert output.read_bytes() == in_one_go
    assert watching.seen == [(2, 3), (3, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {"anchor", "null.json"}


def test_no_finished_scan_is_done_again(
    anchor: Path, output: Path, scans: Scans, plain: None
) -> None:
    for done in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            calibrate(str(anchor), CONFIG, output, towers=9, observer=Killed(after=done))
    calibrate(str(anchor), CONFIG, output, towers=9)

    assert scans == list(range(9))


def test_more_towers_begin_with_those_of_fewer(
    anchor: Path, output: Path, scans: Scans, plain: None
) -> None:
    few = calibrate(str(anchor), CONFIG, output, towers=2)
    more = calibrate(str(anchor), CONFIG, output, towers=5)
    other = calibrate(str(anchor), replace(CONFIG, seed=1), output, towers=5)

    assert more.towers[:2] == few.towers
    assert not {tower.score for tower in other.towers} & {tower.score for tower in more.towers}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"profile": "paper"}, "profile"),
        ({"dtype": "bf16"}, "dtype"),
        ({"prompts": "prompts.txt"}, "prompts_sha256"),
    ],
)
def test_what_was_begun_with_other_settings_is_not_gone_on_with(
    changes: dict[str, Any],
    field: str,
    anchor: Path,
    output: Path,
    partial: Path,
    scans: Scans,
    plain: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(output.parent)
    Path("prompts.txt").write_text("\n".join(towers.prompts(200)))
    with pytest.raises(KeyboardInterrupt):
        calibrate(str(anchor), CONFIG, output, towers=2, observer=Killed(after=1))
    begun = partial.read_bytes()

    with pytest.raises(UsageError, match=f"begun with {field} "):
        calibrate(str(anchor), replace(CONFIG, **changes), output, towers=2)

    assert partial.read_bytes() == begun
    assert not output.exists()


def test_what_was_begun_for_another_anchor_is_not_gone_on_with(
    anchor: Path, output: Path, scans: Scans, plain: None, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(str(anchor), CONFIG, output, towers=2, observer=Killed(after=1))
    (tmp_path / "other").mkdir()
    other = towers.save(towers.make_model(1), tmp_path / "other" / "anchor")

    with pytest.raises(UsageError, match="begun with anchor_digest"):
        calibrate(str(other), CONFIG, output, towers=2)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_ends_it_loudly(
    score: float, anchor: Path, output: Path, plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(conclusion=SimpleNamespace(score=score))
    monkeypatch.setattr(module, "detect", lambda *_, **__: found)

    with pytest.raises(TowerError, match=r"null tower 0 \(shaken.*not finite"):
        calibrate(str(anchor), CONFIG, output, towers=2)

    assert not output.exists()


def _two_encoders(folder: Path) -> Path:
    """A pipeline of two different towers."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline"}
    for seed, suffix in enumerate(("", "_2")):
        index[f"text_encoder{suffix}"] = ["transformers", "CLIPTextModel"]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"]
        towers.save(towers.make_model(seed), folder / f"text_encoder{suffix}")
        shutil.copytree(folder / f"text_encoder{suffix}", folder / f"tokenizer{suffix}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_of_several_towers_the_one_that_is_named_is_taken(
    output: Path, scans: Scans, plain: None, tmp_path: Path
) -> None:
    pipeline = _two_encoders(tmp_path / "pipeline")

    with pytest.raises(UsageError, match=r"'text_encoder', 'text_encoder_2'.*--tower"):
        calibrate(str(pipeline), CONFIG, output, towers=1)
    with pytest.raises(UsageError, match="no text tower 'text_encoder_3'"):
        calibrate(str(pipeline), CONFIG, output, tower="text_encoder_3", towers=1)
    null = calibrate(str(pipeline), CONFIG, output, tower="text_encoder_2", towers=1)

    second = towers.load(pipeline / "text_encoder_2")
    assert null.anchor_digest == encoder_digest(second.model.state_dict())


def test_what_holds_no_tower_cannot_be_calibrated(anchor: Path, output: Path) -> None:
    (anchor / "model.safetensors").unlink()

    with pytest.raises(NoTextTowerError, match="anchor cannot be calibrated"):
        calibrate(str(anchor), CONFIG, output)


@pytest.mark.parametrize("data", [b"my notes", b"\xff\xfe", b'{"towers": 3}', b""])
@pytest.mark.parametrize("name", ["null.json", "null.json.partial"])
def test_a_file_that_is_no_calibration_is_not_written_over(
    name: str, data: bytes, output: Path, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(data)

    # Refused before the anchor is looked for.
    with pytest.raises(UsageError, match=f"{name} .*another file"):
        calibrate("./nowhere", CONFIG, output)

    assert file.read_bytes() == data


def test_a_calibration_is_replaced_by_a_new_one(
    anchor: Path, output: Path, scans: Scans, plain: None
) -> None:
    old: NullDistribution = calibrate(str(anchor), CONFIG, output, towers=1)
    output.write_text(dump(replace(old, tool="0.0.1")))
    new = calibrate(str(anchor), CONFIG, output, towers=2)

    assert parse(output.read_text()) == new


@pytest.mark.parametrize(
    ("work", "error", "says"),
    [
        (lambda a, o: calibrate(a, CONFIG, o, towers=0), UsageError, "1 to"),
        (lambda a, o: calibrate(a, CONFIG, o, towers=10_001), UsageError, "10000"),
        (lambda a, o: calibrate(a, replace(CONFIG, anchor=a), o), UsageError, "no anchor"),
        (lambda a, o: calibrate(a, replace(CONFIG, restarts=1), o), UsageError, "restarts"),
        (lambda a, o: calibrate(a, CONFIG, o.parent / "no" / "file"), OutputError, "no folder"),
        (lambda a, o: calibrate(a, CONFIG, o.parent), UsageError, "cannot be read"),
    ],
    ids=["none", "too many", "anchor", "restarts", "folder", "is a folder"],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    work: Callable[[str, Path], object],
    error: type[Exception],
    says: str,
    anchor: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "resolve", None)
    with pytest.raises(error, match=says):
        work(str(anchor), output)
