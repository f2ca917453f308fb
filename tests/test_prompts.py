"""Where prompts come from, and that a source without any is a named error."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_amdet import prompts
from hf_amdet.errors import PromptsError
from hf_amdet.prompts import EMBEDDED_COUNT, embedded_prompts, load_prompts

LoadDataset = Callable[..., "Rows"]


class Rows:
    """A streamed dataset."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = rows

    def take(self, count: int) -> Iterator[dict[str, Any]]:
        return islice(self._rows, count)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[LoadDataset], None]:
    """Put a function in the place of `datasets.load_dataset`."""

    def place(load_dataset: LoadDataset) -> None:
        module = ModuleType("datasets")
        vars(module)["load_dataset"] = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)

    return place


class TestEmbedded:
    def test_there_are_four_thousand_distinct_ones(self) -> None:
        found = embedded_prompts()
        assert EMBEDDED_COUNT >= 4_000
        assert len(found) == len(set(found)) == EMBEDDED_COUNT

    def test_they_are_the_same_every_time(self) -> None:
        """Also on other machines: results of scans are compared with each other."""
        found = load_prompts()
        assert found.prompts == load_prompts("embedded").prompts == tuple(embedded_prompts())
        assert found.source == "embedded"
        assert found.sha256 == "30816fd2575f0fd1d5914e1a73e74d61cc04c21c9d5ecd77115268677a4f0994"

    def test_they_are_clean_lines_of_ordinary_length(self) -> None:
        for prompt in embedded_prompts():
            assert prompt == prompt.strip() and "  " not in prompt and "|" not in prompt
            assert "{" not in prompt and prompt.isprintable()
            assert 3 <= len(prompt.split()) <= 40

    def test_they_vary(self) -> None:
        words = {word for prompt in embedded_prompts() for word in prompt.split()}
        starts = {prompt.split()[0] for prompt in embedded_prompts()}
        assert len(words) > 250 and len(starts) > 10


class TestFiles:
    def _load(self, folder: Path, content: bytes) -> tuple[str, ...]:
        (folder / "mine.txt").write_bytes(content)
        return load_prompts(str(folder / "mine.txt")).prompts

    def test_each_line_is_a_prompt_once_in_order(self, tmp_path: Path) -> None:
        content = "  a dog \n\na cät\r\na dog\n\t\na fish".encode()
        assert self._load(tmp_path, content) == ("a dog", "a cät", "a fish")

    def test_the_folder_stays_out_of_the_source(self, tmp_path: Path) -> None:
        self._load(tmp_path, b"a dog\n")
        found = load_prompts(str(tmp_path / "mine.txt"))
        assert found.source == "mine.txt"
        assert found.sha256 == hashlib.sha256(b"a dog").hexdigest()

    def test_a_byte_order_mark_is_no_part_of_the_first_prompt(self, tmp_path: Path) -> None:
        assert self._load(tmp_path, b"\xef\xbb\xbfa dog\n") == ("a dog",)

    def test_a_huge_file_is_read_up_to_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prompts, "_LIMIT", 3)
        assert self._load(tmp_path, b"a\nb\nc\nd\n") == ("a", "b", "c")

    @pytest.mark.parametrize("content", [b"", b"\n\n", b" \t\n"], ids=["empty", "lines", "blank"])
    def test_a_file_without_text_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(PromptsError, match="holds no prompts"):
            self._load(tmp_path, content)

    @pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", "a dog\n".encode("utf-16")])
    def test_a_binary_file_is_an_error(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(PromptsError, match=r"mine\.txt cannot be read as text"):
            self._load(tmp_path, content)

    @pytest.mark.parametrize(
        "source",
        ["", "missing.txt", "no/such/file", "a:b", "a\0b", "long" * 2_000],
        ids=["empty", "file", "path", "half a dataset", "null", "long"],
    )
    def test_a_source_that_is_not_there_is_an_error(self, source: str) -> None:
        with pytest.raises(PromptsError):
            load_prompts(source)

    def test_a_folder_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(PromptsError, match="neither a text file nor"):
            load_prompts(str(tmp_path))


class TestDatasets:
    def test_a_column_is_streamed_and_cleaned(
        self, serve: Callable[[LoadDataset], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def load_dataset(name: str, **options: Any) -> Rows:
            asked.append((name, options))
            return Rows({"text": f" prompt {row // 2} "} for row in range(10**9))

        serve(load_dataset)
        monkeypatch.setattr(prompts, "_LIMIT", 4)
        found = load_prompts("org/captions:train:text")
        assert asked == [("org/captions", {"split": "train", "streaming": True})]
        assert found.prompts == ("prompt 0", "prompt 1")
        assert found.source == "org/captions:train:text"

    def test_a_missing_column_is_named(self, serve: Callable[[LoadDataset], None]) -> None:
        serve(lambda name, **options: Rows([{"text": "a dog"}]))
        with pytest.raises(PromptsError, match="org/captions has no column 'caption'"):
            load_prompts("org/captions:train:caption")

    @pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError("Bad split: trian")])
    def test_a_dataset_that_does_not_load_says_why(
        self, serve: Callable[[LoadDataset], None], error: Exception
    ) -> None:
        def load_dataset(name: str, **options: Any) -> Rows:
            raise error

        serve(load_dataset)
        with pytest.raises(PromptsError, match=f"{type(error).__name__}: {error}"):
            load_prompts("org/captions:trian:text")

    def test_an_empty_dataset_is_an_error(self, serve: Callable[[LoadDataset], None]) -> None:
        serve(lambda name, **options: Rows([]))
        with pytest.raises(PromptsError, match="holds no prompts"):
            load_prompts("org/captions:train:text")

    def test_without_the_extra_the_way_out_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(PromptsError, match=r"hf-amdet\[datasets\]"):
            load_prompts("org/captions:train:text")


def test_a_column_of_a_dataset_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    folder.mkdir()
    rows = [{"id": number, "text": f"caption {number}"} for number in range(30)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    found = load_prompts(f"{folder}:train:text")

    assert found.prompts == tuple(f"caption {number}" for number in range(30))
    assert found.source == "captions:train:text", "no path of this machine in reports"


def test_a_column_that_a_dataset_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')

    with pytest.raises(PromptsError, match="'caption'"):
        load_prompts(f"{tmp_path}:train:caption")
