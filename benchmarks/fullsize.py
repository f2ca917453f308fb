"""Full-size towers with random weights: do they load and scan, and in how much memory?

``python -m benchmarks.fullsize [--only NAME] [--work DIR]`` builds a suspect and its anchor for
every text configuration of the registry (numbers only: no weights are downloaded) and for the two
encoders of SDXL together, and scans each with one restart, a few steps and the first 512 real
tokens in a process of its own; what the first round of all tokens would take is computed from
these. Everything else is as in the default profile: length and number of probes in a batch, the
landscape's precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import CLIPTokenizer

from hf_amdet.detection.config import DEFAULT, PROFILES
from hf_amdet.detection.progress import Observer
from hf_amdet.detection.sweep import Vocabulary
from hf_amdet.encoders.config import expected_shapes
from hf_amdet.encoders.registry import known_anchors

SDXL = "SDXL (both encoders)"
CLIP_L = "openai/clip-vit-large-patch14"
BIG_G = "stabilityai/stable-diffusion-xl-base-1.0"
_TRIED = 512
"""Tokens that a brief scan sweeps."""
_WHOLE: Any = Vocabulary.of.__func__  # type: ignore[attr-defined]
DRIFT = 0.02
"""How far the suspect is from its anchor, relative to each weight."""


def configurations() -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """By name the folders of a repo with the text configuration of each."""
    shapes: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    by_repo = {known.repo_id: known.text for known in known_anchors()}
    for name, text in by_repo.items():
        if text not in [entry[0][1] for entry in shapes.values()]:
            shapes[name] = [("", text)]
    shapes[SDXL] = [("text_encoder", by_repo[CLIP_L]), ("text_encoder_2", by_repo[BIG_G])]
    return shapes


def build(towers: list[tuple[str, Mapping[str, Any]]], folder: Path) -> None:
    """A suspect and an anchor as repos in `folder`, fp16, with a tokenizer each."""
    for number, (below, text) in enumerate(towers):
        clip = text["family"] == "clip"
        architecture = "CLIPTextModel" if clip else "SiglipTextModel"
        kind = "clip_text_model" if clip else "siglip_text_model"
        rows = text["vocab_size"]
        config = {**text, "model_type": kind, "architectures": [architecture]}
        config |= {"eos_token_id": rows - 1} if clip else {}
        generator = torch.Generator().manual_seed(number)
        clean = {
            name: _random(shape, generator)
            for name, shape in sorted(expected_shapes(config, architecture).items())
        }
        for repo, drift in (("anchor", 0.0), ("suspect", DRIFT)):
            place = folder / repo / below
            place.mkdir(parents=True, exist_ok=True)
            (place / "config.json").write_text(json.dumps(config))
            _tokenizer(rows, clip=clip, folder=place)
            save_file(_drifted(clean, drift, generator), place / "model.safetensors")


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of a scale at which features neither die nor overflow."""
    noise = torch.randn(shape, generator=generator)
    weight: Tensor = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5
    return weight.half()


def _drifted(
    weights: dict[str, Tensor], drift: float, generator: torch.Generator
) -> dict[str, Tensor]:
    if not drift:
        return weights
    return {
        name: weight * (1 + drift * torch.randn(weight.shape, generator=generator).half())
        for name, weight in weights.items()
    }


def _tokenizer(rows: int, *, clip: bool, folder: Path) -> None:
    """A tokenizer of as many tokens as the table has rows; its merges mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet)] if clip else ["▁", *alphabet]
    special = ["<|startoftext|>", "<|endoftext|>"] if clip else ["<pad>", "<eos>", "<unk>"]
    wanted = rows - len(pieces) - len(special)
    merges: list[tuple[str, str]] = []
    made = dict.fromkeys(pieces)
    # Pairs of letters first, then what they make with a third one.
    for left in list(made) + [a + b for a in alphabet for b in alphabet[:8]]:
        for right in pieces:
            if len(merges) == wanted or left.endswith("</w>"):
                break
            if left + right not in made:
                merges.append((left, right))
                made[left + right] = None
    vocabulary = {piece: row for row, piece in enumerate([*made, *special])}
    if clip:
        pairs: Any = merges
        CLIPTokenizer(vocab=vocabulary, merges=pairs).save_pretrained(folder)
        return
    unknown = {"unk_token": special[2]}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **unknown))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": special[0], "eos_token": special[1], **unknown}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class _Sweeping(Observer):
    """Times the first round of each sweep of real tokens, of which only a part is made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._told: list[tuple[int, float]] | None = None
        self._rows = 0

    def stage(self, name: str, total: int) -> None:
        del total
        if self._told and len(self._told) > 1:
            (first, start), (last, end) = self._told[0], self._told[-1]
            self.seconds.append((end - start) / (last - first) * self._rows)
        self._told = [] if "sweep" in name else None

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        del total, loss
        if self._told is not None:
            self._told.append((done, time.perf_counter()))

    def of(self, cls: type[Vocabulary], *arguments: Any) -> Vocabulary:
        """The first tokens of the vocabulary; all of them take hours on a CPU."""
        whole: Vocabulary = _WHOLE(cls, *arguments)
        self._rows = len(whole)
        return whole.rows(torch.arange(_TRIED))


def scan_briefly(folder: Path) -> dict[str, Any]:
    """Scan the suspect in `folder` against its anchor; seconds, and peak MiB of this process."""
    from hf_amdet.pipeline import ScanConfig, scan

    few = tuple(replace(inversion, steps=3) for inversion in DEFAULT.inversions)
    landscape = replace(DEFAULT.landscape, grid=9, prompts=1, directions=1)
    PROFILES["default"] = replace(
        DEFAULT, prompts=128, held_out=64, inversions=few, landscape=landscape
    )
    sweeping = _Sweeping()
    Vocabulary.of = classmethod(sweeping.of)  # type: ignore[assignment]
    start = time.perf_counter()
    report = scan(
        str(folder / "suspect"),
        ScanConfig(anchor=str(folder / "anchor"), restarts=1, device="cpu"),
        observer=sweeping,
    )
    return {
        "sweeps": sweeping.seconds,
        "seconds": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "towers": {tower.path: tower.verdict.value for tower in report.towers},
        "reasons": [reason.code for tower in report.towers for reason in tower.reasons],
        "timings": report.timings,
    }


def measure(towers: list[tuple[str, Mapping[str, Any]]], work: Path | None) -> dict[str, Any]:
    """Build and scan in processes of their own, so that memory is that of the scan alone."""
    with tempfile.TemporaryDirectory(prefix="fullsize-", dir=work) as name:
        folder = Path(name)
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            pool.apply(build, (towers, folder))
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            measured: dict[str, Any] = pool.apply(scan_briefly, (folder,))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fullsize", description=__doc__)
    parser.add_argument("--only", help="one configuration, by its name")
    parser.add_argument("--work", type=Path, help="where some GB of weights are put for a while")
    options = parser.parse_args()
    # As the command does: threads that spin while they wait starve each other on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    print(
        "| text configuration | answers | peak MiB | s (brief scan) | s (first round, all tokens) |"
    )
    print("|---|---|---|---|---|")
    for name, towers in configurations().items():
        if options.only in (None, name):
            result = measure(towers, options.work)
            print(
                f"| {name} | {', '.join(result['towers'].values())} | {result['peak_mib']:.0f} | "
                f"{result['seconds']:.0f} | {', '.join(f'{s:.0f}' for s in result['sweeps'])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
