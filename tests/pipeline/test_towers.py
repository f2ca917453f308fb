"""Towers in every form they are uploaded in, from the files to an entry of the report."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hf_amdet import Report, ScanConfig, Verdict, scan
from hf_amdet.hub.client import Hub
from hf_amdet.pipeline import anchors as module
from hf_amdet.pipeline import towers as towers_module
from hf_amdet.report.files import to_json, validate
from tests import towers
from tests.hub_double import HubDouble
from tests.pipeline import files_of

REPO, ANCHOR = "org/suspect", "org/anchor"
Q = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def anchored(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    """A Hub with the clean tower that all of these are compared with."""
    monkeypatch.setattr(module, "known_anchors", tuple)
    hub.add_repo(ANCHOR, files_of(towers.save(towers.make_model(), tmp_path / "anchor")))
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return towers.save(towers.make_model(drift=0.01), tmp_path / "suspect")


def _scan(hub: HubDouble, tmp_path: Path, anchor: str = ANCHOR) -> Report:
    reached = Hub(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    report = scan(REPO, ScanConfig(anchor=anchor, device="cpu", hub=reached))
    validate(json.loads(to_json(report)))
    return report


def _tensors(folder: Path) -> dict[str, Tensor]:
    (file,) = towers.weight_files(folder)
    return load_file(file)


def _verdicts(report: Report) -> dict[str, Verdict]:
    return {tower.path: tower.verdict for tower in report.towers}


def _codes(report: Report, path: str) -> list[str]:
    (tower,) = [tower for tower in report.towers if tower.path == path]
    return [reason.code for reason in tower.reasons]


def test_a_variant_that_was_rounded_from_the_weights_has_their_answer(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    half = {name: weight.half() for name, weight in _tensors(folder).items()}
    anchored.add_repo(REPO, files_of(folder) | {"model.fp16.safetensors": save(half)})

    report = _scan(anchored, tmp_path)

    assert _verdicts(report) == {
        "": Verdict.NO_EVIDENCE,
        "model.fp16.safetensors": Verdict.NO_EVIDENCE,
    }
    assert _codes(report, "model.fp16.safetensors") == ["same_weights"]


def test_a_variant_with_other_weights_is_searched_itself(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    other = towers.make_model(drift=0.02).state_dict()
    half = {name: weight.half().contiguous() for name, weight in other.items()}
    anchored.add_repo(REPO, files_of(folder) | {"model.fp16.safetensors": save(half)})

    report = _scan(anchored, tmp_path)

    assert all(tower.candidates for tower in report.towers)
    distances = [tower.anchor.distance for tower in report.towers if tower.anchor]
    assert distances[1] > 1.5 * distances[0]


def test_a_file_without_a_tokenizer_is_read_with_the_anchors(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    prefix = "cond_stage_model.transformer.text_model."
    tensors = {prefix + name: weight for name, weight in _tensors(folder).items()}
    tensors["model.diffusion_model.out.0.weight"] = torch.ones(3)
    anchored.add_repo(REPO, {"v1.safetensors": save(tensors)})
    # Loaders of such files take 64 wide heads, which the small towers have not.
    wide = towers.make_model(hidden_size=64, num_attention_heads=1, hidden_act="quick_gelu")
    anchored.add_repo("org/wide", files_of(towers.save(wide, tmp_path / "wide")))
    drifted = towers.make_model(
        hidden_size=64, num_attention_heads=1, hidden_act="quick_gelu", drift=0.01
    )
    tensors = {prefix + name: weight for name, weight in drifted.state_dict().items()}
    anchored.commit(REPO, {"v1.safetensors": save(tensors)})

    report = _scan(anchored, tmp_path, anchor="org/wide")

    assert _verdicts(report) == {"v1.safetensors": Verdict.NO_EVIDENCE}
    assert _codes(report, "v1.safetensors")[-1] == "borrowed_tokenizer"


def test_of_a_full_model_only_the_text_side_is_read(
    anchored: HubDouble, folder: Path, tmp_path: Path
) -> None:
    text = {f"text_model.{name}": weight for name, weight in _tensors(folder).items()}
    image = {"vision_model.embeddings.weight": torch.zeros(3_000_000)}
    files = files_of(folder) | {"model.safetensors": save(text | image)}
    anchored.add_repo(REPO, files)

    report = _scan(anchored, tmp_path)

    (tower,) = report.towers
    assert tower.verdict is Verdict.NO_EVIDENCE
    (record,) = [file for file in tower.files if file.path == "model.safetensors"]
    assert record.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert record.tensors == {
        name: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for name, weight in text.items()
    }
    assert anchored.bytes_sent(f"{REPO}/resolve") < 2_000_000


def test_a_tower_that_memory_could_not_hold_is_refused_before_the_download(
    anchored: HubDouble, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers_module, "MAX_TOWER_BYTES", 100_000)
    anchored.add_repo(REPO, files_of(folder))

    report = _scan(anchored, tmp_path)

    assert _codes(report, "") == ["malformed_file"]
    assert "100000" in report.towers[0].reasons[0].message
    whole = [r for r in anchored.requests if "suspect" in r.path and r.range is None]
    assert not [r for r in whole if "model.safetensors" in r.path]


class TestAdapters:
    RANK = 2

    def _adapter(self, change: float = 0.1) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(3)
        width = towers.WIDTH
        return {
            f"base_model.model.{Q}.lora_A.weight": change
            * torch.randn(self.RANK, width, generator=generator),
            f"base_model.model.{Q}.lora_B.weight": change
            * torch.randn(width, self.RANK, generator=generator),
        }

    def _upload(self, hub: HubDouble, tensors: Mapping[str, Tensor], base: str | None) -> None:
        settings = {
            "peft_type": "LORA",
            "r": self.RANK,
            "lora_alpha": 2 * self.RANK,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": base,
        }
        hub.add_repo(
            REPO,
            {
                "adapter_config.json": json.dumps(settings).encode(),
                "adapter_model.safetensors": save(dict(tensors)),
            },
        )

    def test_one_is_merged_into_its_base_and_scanned(
        self, anchored: HubDouble, folder: Path, tmp_path: Path
    ) -> None:
        tensors = self._adapter()
        self._upload(anchored, tensors, ANCHOR)

        report = _scan(anchored, tmp_path)

        (tower,) = report.towers
        assert (tower.path, tower.verdict) == ("adapter_model.safetensors", Verdict.NO_EVIDENCE)
        assert tower.base is not None and tower.base.repo_id == ANCHOR
        assert [file.path for file in tower.files] == ["adapter_model.safetensors"]
        down, up = tensors.values()
        weights = {
            name: weight
            for name, weight in _tensors(tmp_path / "anchor").items()
            if not name.startswith("embeddings.token")
        }
        norm = torch.cat([weight.flatten() for weight in weights.values()]).norm()
        assert tower.anchor is not None
        # What was planted is what was merged: alpha / r is 2.
        assert tower.anchor.distance == pytest.approx(((2 * up @ down).norm() / norm).item(), 1e-5)

    @pytest.mark.parametrize("base", ["org/gone", "../anchor", None])
    def test_without_a_reachable_base_it_is_not_scanned(
        self, anchored: HubDouble, tmp_path: Path, base: str | None
    ) -> None:
        self._upload(anchored, self._adapter(), base)

        report = _scan(anchored, tmp_path)

        assert _verdicts(report) == {"adapter_model.safetensors": Verdict.NOT_SCANNED}
        assert _codes(report, "adapter_model.safetensors") == ["no_base"]

    def test_one_that_changes_no_text_tower_is_out_of_scope(
        self, anchored: HubDouble, tmp_path: Path
    ) -> None:
        unet = {
            "unet.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(2, 8),
            "unet.down_blocks.0.attentions.0.to_q.lora_B.weight": torch.ones(8, 2),
        }
        anchored.add_repo(REPO, {"pytorch_lora_weights.safetensors": save(unet)})

        report = _scan(anchored, tmp_path)

        assert (report.towers, report.verdict) == ((), Verdict.NOT_SCANNED)
        assert "changes no text tower" in report.out_of_scope[0].message

    def test_both_encoders_of_a_pipeline_are_merged(
        self, anchored: HubDouble, tmp_path: Path
    ) -> None:
        first = files_of(towers.save(towers.make_model(1), tmp_path / "one"), "text_encoder")
        second = files_of(towers.save(towers.make_model(2), tmp_path / "two"), "text_encoder_2")
        anchored.add_repo("org/pipeline", first | second)
        down, up = self._adapter().values()
        name = "text_model.encoder.layers.0.self_attn.q_proj"
        tensors = {
            f"{component}.{name}.lora_{kind}.weight": weight
            for component in ("text_encoder", "text_encoder_2")
            for kind, weight in (("A", down.clone()), ("B", up.clone()))
        }
        card = b"---\nbase_model: org/pipeline\n---\n"
        files = {"pytorch_lora_weights.safetensors": save(tensors), "README.md": card}
        anchored.add_repo(REPO, files)

        report = _scan(anchored, tmp_path, anchor="org/pipeline")

        weights = "pytorch_lora_weights.safetensors"
        assert _verdicts(report) == {
            f"{weights}#text_encoder": Verdict.NO_EVIDENCE,
            f"{weights}#text_encoder_2": Verdict.NO_EVIDENCE,
        }
        distances = [tower.anchor.distance for tower in report.towers if tower.anchor]
        # Each beside its own clean tower, not beside the other one.
        assert len(distances) == 2 and max(distances) < 0.02

    def test_a_base_that_makes_it_look_clean_is_not_believed(
        self, anchored: HubDouble, tmp_path: Path
    ) -> None:
        """On the base that its owner names the merge is the anchor; on the anchor it is not."""
        tensors = self._adapter()
        down, up = tensors.values()
        weights = _tensors(tmp_path / "anchor")
        weights[f"{Q}.weight"] = weights[f"{Q}.weight"] - 2 * up @ down
        base = files_of(tmp_path / "anchor") | {"model.safetensors": save(weights)}
        anchored.add_repo("evil/base", base)
        self._upload(anchored, tensors, "evil/base")

        report = _scan(anchored, tmp_path)

        (tower,) = report.towers
        assert tower.verdict is Verdict.INCONCLUSIVE
        assert tower.reasons[-1].code == "base_not_vouched"
        assert "evil/base" in tower.reasons[-1].message

    def test_one_that_cannot_be_parsed_costs_its_neighbour_nothing(
        self, anchored: HubDouble, folder: Path, tmp_path: Path
    ) -> None:
        settings = {
            "peft_type": "LORA",
            "r": self.RANK,
            "lora_alpha": self.RANK,
            "target_modules": "(" * 499 + "x" + ")" * 499,
            "base_model_name_or_path": ANCHOR,
        }
        adapter = {
            "lora/adapter_config.json": json.dumps(settings).encode(),
            "lora/adapter_model.safetensors": save(self._adapter()),
        }
        anchored.add_repo(REPO, files_of(folder) | adapter)

        report = _scan(anchored, tmp_path)

        assert _verdicts(report) == {
            "": Verdict.NO_EVIDENCE,
            "lora/adapter_model.safetensors": Verdict.NOT_SCANNED,
        }
