"""The whole pipeline, on tiny towers served by the loopback Hub."""

import json
from pathlib import Path

import pytest
import torch

from hf_amdet import Report, ScanConfig, Verdict, scan
from hf_amdet.errors import AnchorError, HubUnavailableError, UnknownRepoError, UsageError
from hf_amdet.hub.client import Hub
from hf_amdet.report.files import to_json, validate
from tests import towers
from tests.hub_double import HubDouble
from tests.pipeline import files_of

REPO, ANCHOR = "org/suspect", "org/anchor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tower that is not its anchor: its weights are a little off."""
    return towers.save(towers.make_model(drift=0.01), tmp_path / "suspect")


@pytest.fixture
def anchored(hub: HubDouble, tmp_path: Path) -> HubDouble:
    hub.add_repo(ANCHOR, files_of(towers.save(towers.make_model(), tmp_path / "anchor")))
    return hub


def _scan(
    hub: HubDouble, tmp_path: Path, target: str = REPO, anchor: str | None = ANCHOR
) -> Report:
    reached = Hub(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    return scan(target, ScanConfig(anchor=anchor, device="cpu", hub=reached))


def _the_reason(report: Report) -> str:
    validate(json.loads(to_json(report)))
    assert report.verdict is Verdict.NOT_SCANNED
    assert report.exit_code == 3
    (tower,) = report.towers
    (reason,) = tower.reasons
    return reason.code


def _verdicts(report: Report) -> dict[str, Verdict]:
    validate(json.loads(to_json(report)))
    return {tower.path: tower.verdict for tower in report.towers}


def test_a_scan_reports_what_it_read_and_how(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    sha = anchored.add_repo(REPO, files_of(folder))

    report = _scan(anchored, tmp_path)

    validate(json.loads(to_json(report)))
    (tower,) = report.towers
    assert (report.repo_id, report.commit_sha, report.target) == (REPO, sha, REPO)
    assert {file.path for file in tower.files} >= {"config.json", "model.safetensors"}
    assert tower.anchor is not None
    assert tower.anchor.repo_id == ANCHOR
    assert 0 < tower.anchor.distance < 0.1
    assert report.config.anchor == f"{ANCHOR}@{tower.anchor.commit_sha}"
    assert tower.score == tower.statistics["consistency_gap"].value
    assert {c.objective for c in tower.candidates} == {"real-token", "consistency-gap"}
    assert set(report.timings) == {
        *("resolve", "download", "load", "probes", "static", "sweep", "inversion", "judges")
    }
    assert str(tmp_path) not in to_json(report)


def test_the_same_scan_gives_the_same_report_but_for_the_times(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    anchored.add_repo(REPO, files_of(folder))

    first, second = (_scan(anchored, tmp_path) for _ in range(2))

    times = {"created_at": "", "timings": {}}
    assert first.model_copy(update=times) == second.model_copy(update=times)


def test_a_folder_is_scanned_without_a_hub(folder: Path, tmp_path: Path) -> None:
    anchor = towers.save(towers.make_model(), tmp_path / "anchor")

    report = scan(str(folder), ScanConfig(anchor=str(anchor), device="cpu", profile="paper"))

    assert (report.repo_id, report.commit_sha, report.target) == (None, None, "suspect")
    assert report.config.settings["gates.running_loss"] == -0.76
    # Published thresholds on a tower that they were not made for: silence is no answer.
    assert report.towers[0].verdict is Verdict.INCONCLUSIVE
    assert report.towers[0].reasons[-1].code == "foreign_thresholds"


def test_without_an_anchor_there_is_no_answer(hub: HubDouble, folder: Path, tmp_path: Path) -> None:
    hub.add_repo(REPO, files_of(folder))

    report = _scan(hub, tmp_path, anchor=None)

    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.exit_code == 3
    assert report.towers[0].reasons[0].code == "no_anchor"
    assert report.towers[0].files


def test_a_copy_of_the_anchor_is_no_finding(anchored: HubDouble, tmp_path: Path) -> None:
    report = _scan(anchored, tmp_path, target=ANCHOR)

    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.towers[0].reasons[0].code == "identical_to_anchor"
    assert report.towers[0].score is None


def test_a_copy_with_another_tokenizer_is_no_copy(anchored: HubDouble, tmp_path: Path) -> None:
    folder = towers.save(towers.make_model(), tmp_path / "remapped")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    anchored.add_repo(REPO, files_of(folder))

    report = _scan(anchored, tmp_path)

    assert report.towers[0].reasons[0].code != "identical_to_anchor"


def test_an_anchor_of_another_shape_is_refused(
    hub: HubDouble, folder: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, files_of(folder))
    other = towers.make_model(num_hidden_layers=3)
    hub.add_repo(ANCHOR, files_of(towers.save(other, tmp_path / "other")))

    with pytest.raises(AnchorError, match=r"num_hidden_layers is 3, the suspect's 2"):
        _scan(hub, tmp_path)


def test_an_anchor_that_cannot_be_read_is_no_verdict_about_the_suspect(
    hub: HubDouble, folder: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, files_of(folder))
    hub.add_repo(ANCHOR, {"config.json": b'{"model_type": "clip"}', "pytorch_model.bin": b"x"})

    with pytest.raises(AnchorError, match=ANCHOR):
        _scan(hub, tmp_path)


def test_a_repo_without_a_text_tower_is_not_scanned(anchored: HubDouble, tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    anchored.add_repo(REPO, {"config.json": json.dumps(config).encode()})

    report = _scan(anchored, tmp_path)

    assert report.verdict is Verdict.NOT_SCANNED
    assert report.exit_code == 3
    assert report.towers == ()
    assert report.reasons[0].code == "no_text_tower"
    assert "BertModel" in report.out_of_scope[0].message


def test_pickles_are_not_opened(anchored: HubDouble, folder: Path, tmp_path: Path) -> None:
    files = files_of(folder)
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    anchored.add_repo(REPO, files)

    assert _the_reason(_scan(anchored, tmp_path)) == "pickle_only"
    assert not anchored.bytes_sent("pytorch_model.bin")


def test_nan_weights_are_named(anchored: HubDouble, folder: Path, tmp_path: Path) -> None:
    spoilt = torch.full((32,), torch.nan)
    towers.edit_weights(folder, final_layer_norm__weight=spoilt)
    anchored.add_repo(REPO, files_of(folder))

    assert _the_reason(_scan(anchored, tmp_path)) == "corrupt_weights"


@pytest.mark.parametrize("tensor", [None, torch.zeros(5, 5)], ids=["missing", "other shape"])
def test_weights_that_do_not_fit_are_not_even_downloaded(
    anchored: HubDouble, folder: Path, tmp_path: Path, tensor: torch.Tensor | None
) -> None:
    towers.edit_weights(folder, encoder__layers__1__mlp__fc1__weight=tensor)
    anchored.add_repo(REPO, files_of(folder))

    assert _the_reason(_scan(anchored, tmp_path)) == "weights_mismatch"
    whole = [r for r in anchored.requests if "suspect" in r.path and r.range is None]
    assert not [r for r in whole if r.method == "GET" and "model.safetensors" in r.path]


def test_a_header_that_lies_is_named(anchored: HubDouble, folder: Path, tmp_path: Path) -> None:
    files = files_of(folder)
    files["model.safetensors"] = files["model.safetensors"][:-100]
    anchored.add_repo(REPO, files)

    assert _the_reason(_scan(anchored, tmp_path)) == "malformed_file"


def test_tampered_bytes_are_named(anchored: HubDouble, folder: Path, tmp_path: Path) -> None:
    files = files_of(folder)
    anchored.add_repo(REPO, files)
    weights = files["model.safetensors"]
    anchored.tamper(REPO, "model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))

    assert _the_reason(_scan(anchored, tmp_path)) == "hash_mismatch"


def test_a_busy_hub_is_an_error_and_not_an_old_answer(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    anchored.add_repo(REPO, files_of(folder))
    _scan(anchored, tmp_path, anchor=None)  # now it is in the cache
    anchored.fail(status=503)

    with pytest.raises(HubUnavailableError):
        _scan(anchored, tmp_path, anchor=None)


@pytest.mark.parametrize("key", ["transformers_weights", "quantization_config"])
def test_weights_that_users_do_not_get_are_not_scanned_in_their_place(
    anchored: HubDouble, folder: Path, tmp_path: Path, key: str
) -> None:
    towers.edit_config(folder, **{key: "other.safetensors"})
    anchored.add_repo(REPO, files_of(folder))

    assert _the_reason(_scan(anchored, tmp_path)) == "malformed_file"


def test_an_adapter_beside_the_weights_is_not_overlooked(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    anchored.add_repo(REPO, files_of(folder) | {"adapter_config.json": b"{}"})

    report = _scan(anchored, tmp_path)

    # Loaders that know PEFT load another model in its place.
    assert _verdicts(report) == {
        "": Verdict.NOT_SCANNED,
        "adapter_config.json": Verdict.NOT_SCANNED,
    }


def test_every_tower_of_a_repo_has_an_entry_and_one_unread_withholds_the_answer(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    files = files_of(folder)
    good = {f"text_encoder/{name}": data for name, data in files.items()}
    drifted = towers.save(towers.make_model(drift=0.02), tmp_path / "other")
    second = {f"text_encoder_2/{name}": data for name, data in files_of(drifted).items()}
    broken = {f"text_encoder_3/{name}": data for name, data in files.items()}
    broken["text_encoder_3/model.safetensors"] = b"<!DOCTYPE html><html></html>" * 10
    other = {"unet/config.json": b"{}", "unet/model.safetensors": b"x"}
    anchored.add_repo(REPO, good | second | broken | other)

    report = _scan(anchored, tmp_path)

    assert _verdicts(report) == {
        "text_encoder": Verdict.NO_EVIDENCE,
        "text_encoder_2": Verdict.NO_EVIDENCE,
        "text_encoder_3": Verdict.NOT_SCANNED,
    }
    assert "HTML" in report.towers[-1].reasons[0].message
    assert report.verdict is Verdict.INCONCLUSIVE and report.exit_code == 3
    assert "unet" in report.out_of_scope[0].message


def test_a_mistyped_anchor_costs_no_download(hub: HubDouble, folder: Path, tmp_path: Path) -> None:
    hub.add_repo(REPO, files_of(folder))

    with pytest.raises(UnknownRepoError, match="org/typo"):
        _scan(hub, tmp_path, anchor="org/typo")
    assert not hub.bytes_sent("model.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [
        {"profile": "fast"},
        {"restarts": 0},
        {"restarts": 65},
        {"seed": -1},
        {"device": "abacus"},
        {"dtype": "fp16"},
    ],
)
def test_wrong_settings_are_refused(folder: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        scan(str(folder), ScanConfig(**wrong))  # type: ignore[arg-type]
