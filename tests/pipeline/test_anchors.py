"""Which clean tower a suspect is compared with, and what the answer may then be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_amdet import Report, ScanConfig, Verdict, scan
from hf_amdet.encoders.registry import FAR, Known, known_anchors, misfit, shape_of
from hf_amdet.errors import AnchorError
from hf_amdet.hub.client import Hub
from hf_amdet.pipeline import anchors as module
from hf_amdet.pipeline.anchors import Choice, choices
from hf_amdet.report.files import to_json, validate
from tests import towers
from tests.hub_double import HubDouble
from tests.pipeline import files_of

REPO, NEAR, OTHER = "org/suspect", "clean/near", "clean/other"
Register = Callable[..., None]


@pytest.fixture
def register(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Adds a clean repo to the Hub and to the registry."""
    entries: list[Known] = []
    monkeypatch.setattr(module, "known_anchors", lambda: tuple(entries))

    def add(repo_id: str, seed: int, *, pinned: bool = True, **changes: Any) -> None:
        folder = towers.save(towers.make_model(seed, **changes), tmp_path / repo_id)
        sha = hub.add_repo(repo_id, files_of(folder))
        text = shape_of(towers.read_config(folder), "CLIPTextModel")
        entries.append(Known(repo_id, sha if pinned else None, "", None, "made here", text))

    add.entries = entries  # type: ignore[attr-defined]
    return add


def _suspect(hub: HubDouble, tmp_path: Path, card: str = "", **changes: Any) -> None:
    folder = towers.save(towers.make_model(0, drift=0.01, **changes), tmp_path / "suspect")
    hub.add_repo(REPO, files_of(folder) | {"README.md": card.encode()})


def _scan(hub: HubDouble, tmp_path: Path, target: str = REPO, anchor: str | None = None) -> Report:
    reached = Hub(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    report = scan(target, ScanConfig(anchor=anchor, device="cpu", hub=reached))
    validate(json.loads(to_json(report)))
    return report


def _codes(report: Report) -> list[str]:
    return [reason.code for reason in report.towers[0].reasons]


def test_the_nearest_of_those_that_fit_is_taken(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(OTHER, 7)
    register("clean/deeper", 0, num_hidden_layers=3)
    register(NEAR, 0)
    _suspect(hub, tmp_path)

    report = _scan(hub, tmp_path)

    anchor = report.towers[0].anchor
    assert anchor is not None and (anchor.name, anchor.chosen_by) == (NEAR, "registry")
    assert 0 < anchor.distance < 0.02
    entries: list[Known] = register.entries  # type: ignore[attr-defined]
    assert anchor.commit_sha == entries[-1].revision
    assert report.verdict is Verdict.NO_EVIDENCE


def test_one_that_is_too_far_is_no_anchor(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(OTHER, 7)
    _suspect(hub, tmp_path)

    report = _scan(hub, tmp_path)

    assert (report.verdict, _codes(report)) == (Verdict.INCONCLUSIVE, ["no_anchor"])
    assert OTHER in report.towers[0].reasons[0].message
    assert f"limit {FAR:g}" in report.towers[0].reasons[0].message


def test_one_of_another_shape_is_not_downloaded(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register("clean/deeper", 0, num_hidden_layers=3)
    _suspect(hub, tmp_path)

    assert _codes(_scan(hub, tmp_path)) == ["no_anchor"]
    assert not [r for r in hub.requests if "clean/deeper" in r.path]


def test_added_rows_of_the_embedding_table_still_fit(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0)
    folder = towers.save(towers.make_model(0, drift=0.01), tmp_path / "suspect")
    (file,) = towers.weight_files(folder)
    table = load_file(file)["embeddings.token_embedding.weight"]
    more = torch.cat([table, table[:3] * 1.1])
    towers.edit_weights(folder, embeddings__token_embedding__weight=more)
    towers.edit_config(folder, vocab_size=len(more))
    hub.add_repo(REPO, files_of(folder))

    assert _scan(hub, tmp_path).verdict is Verdict.NO_EVIDENCE


def test_a_copy_of_a_pinned_anchor_is_answered_at_once(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0)

    report = _scan(hub, tmp_path, target=NEAR)

    assert (report.verdict, _codes(report)) == (Verdict.NO_EVIDENCE, ["identical_to_anchor"])
    assert report.towers[0].candidates == ()


def test_an_anchor_without_a_pin_clears_nobody(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0, pinned=False)
    _suspect(hub, tmp_path)

    report = _scan(hub, tmp_path)
    copy = _scan(hub, tmp_path, target=NEAR)

    assert report.verdict is Verdict.INCONCLUSIVE
    assert _codes(report)[-1] == "anchor_not_vouched"
    assert (copy.verdict, _codes(copy)) == (Verdict.INCONCLUSIVE, ["identical_to_anchor"])


def test_the_model_that_the_card_names_clears_nobody(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(OTHER, 7)
    hub.add_repo("owner/base", files_of(towers.save(towers.make_model(0), tmp_path / "base")))
    _suspect(hub, tmp_path, card="---\nbase_model: owner/base\n---\n# Mine\n")

    report = _scan(hub, tmp_path)

    anchor = report.towers[0].anchor
    assert anchor is not None and (anchor.name, anchor.chosen_by) == ("owner/base", "base_model")
    assert report.verdict is Verdict.INCONCLUSIVE
    assert _codes(report)[-1] == "anchor_not_vouched"


@pytest.mark.parametrize("name", ["../base", "/etc", "~/base", ".", "owner/gone", "https://x/y"])
def test_a_card_cannot_point_at_files_of_this_machine(
    hub: HubDouble, tmp_path: Path, register: Register, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers.save(towers.make_model(0), tmp_path / "base")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    _suspect(hub, tmp_path, card=f"---\nbase_model: {name}\n---\n")

    report = _scan(hub, tmp_path)

    assert (report.verdict, _codes(report)) == (Verdict.INCONCLUSIVE, ["no_anchor"])


def test_a_repo_that_is_not_what_was_pinned_is_not_used(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0)
    entries: list[Known] = register.entries  # type: ignore[attr-defined]
    entries[0] = replace(entries[0], sha256="0" * 64)
    _suspect(hub, tmp_path)

    assert _codes(_scan(hub, tmp_path)) == ["no_anchor"]


def test_an_anchor_that_is_gone_or_a_pickle_is_said(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0)
    entries: list[Known] = register.entries  # type: ignore[attr-defined]
    sha = hub.add_repo(OTHER, {"config.json": b'{"model_type": "clip"}', "pytorch_model.bin": b"x"})
    entries[:] = [
        replace(entries[0], repo_id="clean/gone"),
        replace(entries[0], repo_id=OTHER, revision=sha),
    ]
    _suspect(hub, tmp_path)

    report = _scan(hub, tmp_path)

    assert _codes(report) == ["no_anchor"]
    assert "cannot be read" in report.towers[0].reasons[0].message


def test_a_registered_repo_of_another_shape_ends_no_scan(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    """Whoever owns an anchor without a pin must not be able to stop the scans of others."""
    register("clean/deeper", 0, num_hidden_layers=3)
    register(NEAR, 0)
    entries: list[Known] = register.entries  # type: ignore[attr-defined]
    entries[0] = replace(entries[0], text=entries[1].text)
    _suspect(hub, tmp_path)

    report = _scan(hub, tmp_path)

    assert report.verdict is Verdict.NO_EVIDENCE
    assert report.towers[0].anchor is not None and report.towers[0].anchor.name == NEAR


def test_a_given_anchor_whose_config_is_broken_is_named(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    _suspect(hub, tmp_path)
    folder = towers.save(towers.make_model(0), tmp_path / "broken")
    towers.edit_config(folder, hidden_size=-1)
    hub.add_repo(OTHER, files_of(folder))

    with pytest.raises(AnchorError, match="hidden_size"):
        _scan(hub, tmp_path, anchor=OTHER)


def test_a_given_anchor_is_paired_tower_by_tower(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    """Both encoders have one shape, so that only their places tell them apart."""
    for repo_id, drift in ((REPO, 0.01), (NEAR, 0.0)):
        files: dict[str, bytes] = {}
        for below, seed in (("text_encoder", 0), ("text_encoder_2", 5)):
            folder = tmp_path / repo_id / below
            files |= files_of(towers.save(towers.make_model(seed, drift=drift), folder), below)
        hub.add_repo(repo_id, files)

    report = _scan(hub, tmp_path, anchor=NEAR)
    assert report.verdict is Verdict.NO_EVIDENCE
    for tower in report.towers:
        assert tower.anchor is not None
        assert (tower.anchor.path, tower.anchor.chosen_by) == (tower.path, "given")
        assert tower.anchor.distance < 0.02


def test_towers_that_a_given_anchor_does_not_fit_are_left_to_the_registry(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(NEAR, 0)
    given = towers.save(towers.make_model(0, num_hidden_layers=3), tmp_path / "given")
    first = towers.save(towers.make_model(0, drift=0.01), tmp_path / "first")
    second = towers.save(towers.make_model(0, drift=0.01, num_hidden_layers=3), tmp_path / "second")
    hub.add_repo("org/given", files_of(given))
    hub.add_repo(REPO, files_of(first, "text_encoder") | files_of(second, "text_encoder_2"))

    report = _scan(hub, tmp_path, anchor="org/given")

    chosen = [tower.anchor.chosen_by for tower in report.towers if tower.anchor]
    assert chosen == ["registry", "given"]


def test_a_given_anchor_that_fits_nothing_costs_no_download(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    _suspect(hub, tmp_path)
    hub.add_repo(
        OTHER, files_of(towers.save(towers.make_model(num_hidden_layers=3), tmp_path / "other"))
    )

    with pytest.raises(AnchorError, match=r"num_hidden_layers is 3, the suspect's 2"):
        _scan(hub, tmp_path, anchor=OTHER)
    assert not hub.bytes_sent("model.safetensors")


def test_an_anchor_without_a_tokenizer_clears_nobody_and_lends_none(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    """What one suspect's tokenizer stood in for must not become the next one's."""
    given = towers.save(towers.make_model(0), tmp_path / "given", tokenizer=None)
    whole = towers.save(towers.make_model(0, drift=0.01), tmp_path / "whole")
    bare = towers.save(towers.make_model(0, drift=0.02), tmp_path / "bare", tokenizer=None)
    hub.add_repo(OTHER, files_of(given))
    hub.add_repo(REPO, files_of(whole, "text_encoder") | files_of(bare, "text_encoder_2"))

    report = _scan(hub, tmp_path, anchor=OTHER)

    first, second = report.towers
    assert first.candidates and first.verdict is Verdict.INCONCLUSIVE
    assert [reason.code for reason in first.reasons][-1] == "anchor_without_tokenizer"
    assert OTHER in first.reasons[-1].message
    assert (second.path, second.verdict) == ("text_encoder_2", Verdict.NOT_SCANNED)
    assert "no tokenizer" in second.reasons[0].message


def test_choices_name_every_candidate_and_why(
    hub: HubDouble, tmp_path: Path, register: Register
) -> None:
    register(OTHER, 7)
    register("clean/deeper", 0, num_hidden_layers=3)
    register(NEAR, 0)
    _suspect(hub, tmp_path)
    reached = Hub(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")

    ((path, choice),) = choices(REPO, reached)

    assert path == "" and isinstance(choice, Choice) and choice.record is not None
    assert choice.record.name == NEAR
    by_name = {candidate.target.partition("@")[0]: candidate for candidate in choice.considered}
    assert by_name[NEAR].distance == choice.record.distance
    assert (by_name[OTHER].distance or 0) > 1
    assert "num_hidden_layers" in (by_name["clean/deeper"].misfit or "")


class TestRegistry:
    def test_every_entry_is_pinned_or_says_why_not(self) -> None:
        for known in known_anchors():
            assert known.provenance
            if known.revision is None:
                assert "pickle" in known.provenance or "unofficial" in known.provenance
            else:
                assert len(known.revision) == 40 and int(known.revision, 16)
            assert known.sha256 is None or len(known.sha256) == 64

    def test_the_published_families_are_there(self) -> None:
        repos = {known.repo_id for known in known_anchors()}
        assert {
            "openai/clip-vit-base-patch32",
            "openai/clip-vit-base-patch16",
            "openai/clip-vit-large-patch14",
            "openai/clip-vit-large-patch14-336",
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
            "google/siglip-base-patch16-224",
            "google/siglip-so400m-patch14-384",
            "google/siglip2-base-patch16-224",
        } <= repos

    @pytest.mark.parametrize(
        ("config", "architecture", "fitting"),
        [
            ({"text_config": {}, "model_type": "clip"}, "CLIPModel", 2),
            ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}, "CLIP", 2),
            ({"text_config": {"vocab_size": 256_000}}, "SiglipModel", 2),
            ({"text_config": {}}, "SiglipModel", 1),
            ({"hidden_act": "gelu"}, "CLIPTextModel", 0),
            ({"vocab_size": 49_411}, "CLIPTextModel", 2),
            ({"vocab_size": 250_002}, "CLIPTextModel", 0),
        ],
    )
    def test_several_anchors_share_a_shape(
        self, config: dict[str, Any], architecture: str, fitting: int
    ) -> None:
        shape = shape_of(config, architecture)
        assert sum(misfit(shape, known.text) is None for known in known_anchors()) == fitting
