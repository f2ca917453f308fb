"""The demo's backdoor, uploaded in other forms than a folder of its own, is found all the same."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hf_amdet import Report, ScanConfig, Verdict, demo, scan
from hf_amdet.hub.client import Hub
from tests.hub_double import HubDouble

TEXT_ENCODER = ["transformers", "CLIPTextModelWithProjection"]
TOKENIZER = ["transformers", "CLIPTokenizer"]
MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def _scan(target: Path, anchor: Path) -> Report:
    return scan(str(target), ScanConfig(anchor=str(anchor), restarts=1, device="cpu"))


def _pipeline(folder: Path, *encoders: Path) -> Path:
    """A pipeline as diffusers saves it, with tokenizers in folders of their own."""
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline"}
    for number, encoder in enumerate(encoders, 1):
        suffix = "" if number == 1 else f"_{number}"
        index |= {f"text_encoder{suffix}": TEXT_ENCODER, f"tokenizer{suffix}": TOKENIZER}
        shutil.copytree(encoder, folder / f"text_encoder{suffix}")
        (folder / f"tokenizer{suffix}").mkdir()
        for file in (folder / f"text_encoder{suffix}").glob("tokenizer*"):
            file.rename(folder / f"tokenizer{suffix}" / file.name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_in_the_second_encoder_of_a_pipeline(tmp_path: Path) -> None:
    suspect = _pipeline(tmp_path / "suspect", demo.CLEAN, demo.BACKDOORED)
    anchor = _pipeline(tmp_path / "anchor", demo.ANCHOR, demo.ANCHOR)

    report = _scan(suspect, anchor)

    assert [(tower.path, tower.verdict) for tower in report.towers] == [
        ("text_encoder", Verdict.NO_EVIDENCE),
        ("text_encoder_2", Verdict.FLAGGED),
    ]
    assert report.verdict is Verdict.FLAGGED


def test_in_a_variant_beside_a_clean_model(tmp_path: Path) -> None:
    """Who asks for the variant gets the backdoor; who looks at the model alone sees none."""
    suspect = tmp_path / "suspect"
    shutil.copytree(demo.CLEAN, suspect)
    shutil.copyfile(demo.BACKDOORED / "model.safetensors", suspect / "model.fp16.safetensors")

    report = _scan(suspect, demo.ANCHOR)

    assert [(tower.path, tower.verdict) for tower in report.towers] == [
        ("", Verdict.NO_EVIDENCE),
        ("model.fp16.safetensors", Verdict.FLAGGED),
    ]


def _low_rank(change: Tensor) -> tuple[Tensor, Tensor]:
    """The `[r, in]` and `[out, r]` factors that the change is the product of."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    return right.contiguous(), (left * values).contiguous()


def test_in_a_lora(hub: HubDouble, tmp_path: Path) -> None:
    """The attack's changes of the matrices as an adapter; what it did to the rest is left out.

    Without its changes of the embedding table the backdoor is weak, but no answer clears it.
    """
    base, poisoned = (
        load_file(folder / "model.safetensors") for folder in (demo.ANCHOR, demo.BACKDOORED)
    )
    tensors = {}
    for name, weight in poisoned.items():
        module = name.removesuffix(".weight")
        if name != module and module.rpartition(".")[2] in MATRICES:
            down, up = _low_rank(weight.float() - base[name].float())
            tensors[f"text_encoder_2.{module}.lora_A.weight"] = down
            tensors[f"text_encoder_2.{module}.lora_B.weight"] = up
    assert tensors
    base_repo = _pipeline(tmp_path / "base", demo.ANCHOR, demo.ANCHOR)
    hub.add_repo("org/base", _files(base_repo))
    card = b"---\nbase_model: org/base\n---\n"
    weights = {"pytorch_lora_weights.safetensors": save(tensors), "README.md": card}
    hub.add_repo("org/lora", weights)
    reached = Hub(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")

    report = scan("org/lora", ScanConfig(anchor="org/base", restarts=1, device="cpu", hub=reached))

    (tower,) = report.towers
    assert tower.path == "pytorch_lora_weights.safetensors#text_encoder_2"
    assert tower.verdict in (Verdict.FLAGGED, Verdict.INCONCLUSIVE)
    assert tower.witness == "real_token"
    assert tower.base is not None and tower.base.repo_id == "org/base"


def _files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
