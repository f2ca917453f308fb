"""Baselines on tiny towers in which one thing was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.judge.baselines import (
    WINDOW,
    drift_window,
    outlier,
    tables,
    weight_difference,
)
from tests.siglip_towers import make_siglip_model, save_siglip
from tests.towers import WORDS, edit_weights, make_model, prompts, save

TOKENS = "embeddings.token_embedding.weight"
POSITIONS = "embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model(), tmp_path_factory.mktemp("towers") / "anchor")


@pytest.fixture
def suspect(tmp_path: Path) -> Path:
    """A tower of its own with the anchor's weights."""
    return save(make_model(), tmp_path / "suspect")


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prompts whose words the tiny tokenizer knows."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(prompts(40)))
    return str(file)


def drifted(folder: Path, amount: float) -> Path:
    return save(make_model(drift=amount), folder)


def change(folder: Path, name: str, row: int | None, by: float) -> None:
    """Move one row of a table, or all of them, by `by` times its length."""
    weight: Tensor = load_file(folder / "model.safetensors")[name].clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    moved = noise / noise.norm(dim=1, keepdim=True) * weight.norm(dim=1, keepdim=True) * by
    if row is None:
        weight += moved
    else:
        weight[row] += moved[row]
    edit_weights(folder, **{name.replace(".", "__"): weight})


def test_weight_difference_is_zero_for_equal_towers_and_grows_with_noise(
    anchor: Path, tmp_path: Path
) -> None:
    found = [
        weight_difference(drifted(tmp_path / str(amount), amount), anchor, None).score
        for amount in (0.0, 0.01, 0.1)
    ]
    assert found[0] == 0.0
    assert 0.0 < 5 * found[1] < found[2]


def test_weight_difference_does_not_look_at_token_embeddings(anchor: Path, suspect: Path) -> None:
    change(suspect, TOKENS, None, 0.5)
    assert weight_difference(suspect, anchor, None).score == 0.0


def test_equal_towers_are_out_of_the_window_and_far_from_its_middle(
    anchor: Path, suspect: Path, ordinary: str
) -> None:
    found = drift_window(suspect, anchor, ordinary)
    assert found.statistics["drift"] == pytest.approx(1.0)
    assert found.flagged is False
    assert found.score < -1


def test_the_window_flags_the_drift_between_its_ends_and_no_other(
    anchor: Path, tmp_path: Path, ordinary: str
) -> None:
    found = [
        drift_window(drifted(tmp_path / str(amount), amount), anchor, ordinary)
        for amount in (0.002, 0.02, 0.3)
    ]
    drifts = [finding.statistics["drift"] for finding in found]
    assert drifts[0] > WINDOW[1] > drifts[1] > WINDOW[0] > drifts[2]
    assert [finding.flagged for finding in found] == [False, True, False]
    assert [finding.score > 0 for finding in found] == [False, True, False]


def test_the_drift_is_that_of_whole_towers_tables_and_tokenizers_too(
    anchor: Path, suspect: Path, ordinary: str
) -> None:
    change(suspect, TOKENS, None, 0.3)
    assert drift_window(suspect, anchor, ordinary).statistics["drift"] < 0.99


def test_equal_towers_have_the_lowest_score_of_tables(
    anchor: Path, suspect: Path, tmp_path: Path
) -> None:
    assert tables(suspect, anchor, None).score == 0.0
    assert tables(drifted(tmp_path / "drifted", 0.05), anchor, None).score > 0.0


@pytest.mark.parametrize(("name", "row"), [(TOKENS, 300), (POSITIONS, 5)])
def test_one_row_that_moved_is_found_among_rows_that_drift(
    anchor: Path, suspect: Path, tmp_path: Path, name: str, row: int
) -> None:
    other = save(make_model(), tmp_path / "drifting")
    for folder in (suspect, other):
        change(folder, name, None, 0.01)
    change(suspect, name, row, 1.0)
    assert tables(suspect, anchor, None).score > tables(other, anchor, None).score + 1


def test_one_row_alone_is_as_suspicious_as_a_changed_tokenizer(anchor: Path, suspect: Path) -> None:
    change(suspect, TOKENS, 300, 1.0)
    assert tables(suspect, anchor, None).score == pytest.approx(3.0, abs=0.3)


def test_rounding_is_no_outlier(anchor: Path, tmp_path: Path) -> None:
    rounded = save(make_model(), tmp_path / "half", dtype=torch.float16)
    assert tables(rounded, anchor, None).score < 0.2


@pytest.mark.parametrize("what", ["vocabulary", "order of merges", "added token"])
def test_a_tokenizer_that_differs_in_anything_is_found(
    anchor: Path, suspect: Path, what: str
) -> None:
    file = suspect / "tokenizer.json"
    parsed = json.loads(file.read_text())
    model = parsed["model"]
    if what == "vocabulary":
        cat, dog = f"{WORDS[7]}</w>", f"{WORDS[8]}</w>"
        model["vocab"][cat], model["vocab"][dog] = model["vocab"][dog], model["vocab"][cat]
    elif what == "order of merges":
        model["merges"].reverse()
    else:
        parsed["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(parsed))
    found = tables(suspect, anchor, None)
    assert found.score == 3.0
    assert 0 < found.statistics["tokenizer_share"] < 0.02


def test_rows_that_only_the_suspect_has_are_not_compared(anchor: Path, tmp_path: Path) -> None:
    model: Any = make_model()
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 3, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[size:] = 100.0 * torch.randn(3, 32)
    grown = save(model, tmp_path / "grown")
    assert tables(grown, anchor, None).score == 0.0


def test_siglip_towers_are_compared_alike(tmp_path: Path) -> None:
    first = save_siglip(make_siglip_model(), tmp_path / "first", kind="json")
    second = save_siglip(make_siglip_model(), tmp_path / "second", kind="json")
    assert tables(second, first, None).score == 0.0
    change(second, TOKENS, 20, 1.0)
    assert tables(second, first, None).score > 2


def test_outlier_is_the_largest_move_in_those_of_the_rest() -> None:
    anchor = torch.eye(100)
    suspect = anchor.clone()
    suspect[:, 0] += 0.01
    suspect[40, 0] += 0.49
    # (0.5 + 0.001) / (0.01 + 0.001), lengths of rows being 1.
    assert outlier(suspect, anchor) == pytest.approx(0.501 / 0.011)
