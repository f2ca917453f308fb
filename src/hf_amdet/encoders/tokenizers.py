"""Verified tokenizer files -> a tokenizer that fits its tower, without running or following them.

Of a tokenizer's settings only the special tokens are taken over: others are arguments of loaders,
such as paths of vocabularies and of other formats.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, SiglipTokenizer, TokenizersBackend

from hf_amdet.encoders.config import CLIP, Family
from hf_amdet.errors import MalformedFileError

SENTENCEPIECE = "spiece.model"

_TABLES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "added_tokens_decoder")
_NAMED = 64
"""Characters of a piece that an error names."""
_ENOUGH = ("tokenizer.json", "vocab.json", SENTENCEPIECE)


def load_tokenizer(directory: Path, sizes: Any, family: Family) -> Any:
    """The tokenizer in `directory`; None if there is none.

    Args:
        sizes: the tower's configuration, as `text_config` gives it.

    Raises:
        MalformedFileError: it does not parse, cannot encode, or does not fit the tower.
    """
    present = [name for name in (*_TABLES, *_SETTINGS) if (directory / name).exists()]
    if not any((directory / name).exists() for name in _ENOUGH):
        if "merges.txt" in present:
            raise MalformedFileError("There is a merges.txt, but neither vocabulary beside it.")
        return None
    for name in present:
        if name.endswith(".json"):
            _parse(directory / name)
    if "tokenizer.json" in present:
        _check_agreement(directory)
    if family is CLIP:
        tokenizer: Any = _built(lambda: _clip(directory))
        # Only the order of tokens is the repo's to choose: the pooled token must stay in place.
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer = _built(lambda: _siglip(directory))
    family.tower.check_tokenizer(tokenizer, sizes)
    return tokenizer


def state_of(tokenizer: Any) -> bytes:
    """All that decides how a tokenizer cuts text; equal for tokenizers that do it alike."""
    if isinstance(tokenizer, SiglipTokenizer):
        # Added tokens are cut out before SentencePiece sees the text, and the length of the
        # unknown token in pieces is cut off behind it.
        beside = json.dumps([tokenizer.get_added_vocab(), tokenizer.unk_token], sort_keys=True)
        return bytes(tokenizer.sp_model.serialized_model_proto()) + beside.encode()
    backend = tokenizer.backend_tokenizer
    # Padding and truncation are settings of the last call, not of the tokenizer.
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str()).encode()


def _parse(file: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"{file.name} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise MalformedFileError(f"{file.name} is not a JSON object.")
    return parsed


def _check_agreement(directory: Path) -> None:
    """Whether the files say the same: other loaders read other ones of them, or more of them.

    Raises:
        MalformedFileError: a piece has two ids, merges differ, or a text is replaced by another
            before it is read, which not every loader does.
    """
    whole = _parse(directory / "tokenizer.json")
    model = whole.get("model")
    model = model if isinstance(model, dict) else {}
    ours, merges = model.get("vocab"), model.get("merges")
    if isinstance(ours, dict) and (directory / "vocab.json").exists():
        theirs = _parse(directory / "vocab.json")
        unlike = [piece for piece, row in theirs.items() if ours.get(piece, row) != row]
        if unlike:
            raise MalformedFileError(
                f"tokenizer.json and vocab.json give {unlike[0][:_NAMED]!r} different ids, so that "
                "loaders of the one and of the other read texts differently. Upload one of them."
            )
    if isinstance(merges, list) and (directory / "merges.txt").exists():
        lines = (directory / "merges.txt").read_text(encoding="utf-8").splitlines()
        listed = [line for line in lines if line and not line.startswith("#version")]
        pairs = [" ".join(map(str, m)) if isinstance(m, list) else str(m) for m in merges]
        if listed != pairs:
            raise MalformedFileError(
                "tokenizer.json and merges.txt merge pieces differently, so that loaders of the "
                "one and of the other read texts differently. Upload one of them."
            )
    try:
        literals = list(_replaced(whole.get("normalizer")))
    except RecursionError as error:
        raise MalformedFileError("The normaliser of tokenizer.json has no end.") from error
    for literal in literals:
        if any(character.isalnum() for character in literal):
            raise MalformedFileError(
                f"The normaliser of tokenizer.json replaces the text {literal[:_NAMED]!r} before "
                "it is read. No text tower needs that, and not every loader does it."
            )


def _replaced(normalizer: Any) -> Iterator[str]:
    """The texts that a normaliser replaces, wherever in it."""
    if isinstance(normalizer, list):
        for part in normalizer:
            yield from _replaced(part)
    elif isinstance(normalizer, dict):
        pattern = normalizer.get("pattern")
        if normalizer.get("type") == "Replace" and isinstance(pattern, dict):
            yield str(pattern.get("String", ""))
        yield from _replaced(list(normalizer.values()))


def _built(build: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = build()
            tokenizer(["a", ""], padding=False)
    # The backends raise plain Exception subclasses of many kinds on hostile input, with paths in
    # their messages.
    except Exception as error:
        raise MalformedFileError(
            f"The tokenizer does not load or cannot encode ({type(error).__name__}). Upload the "
            "tokenizer as transformers saves it."
        ) from error
    return tokenizer


def _clip(directory: Path) -> Any:
    with tempfile.TemporaryDirectory(prefix="hf-amdet-") as name:
        folder = Path(name)
        for table in _TABLES:
            if (directory / table).exists():
                shutil.copyfile(directory / table, folder / table)
        for file in _SETTINGS:
            if (directory / file).exists():
                settings = _parse(directory / file)
                kept = {key: value for key, value in settings.items() if key in _SPECIAL}
                (folder / file).write_text(json.dumps(kept), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _siglip(directory: Path) -> Any:
    """SigLIP's SentencePiece model, or the tokenizer.json of SigLIP 2."""
    special: dict[str, Any] = {}
    for name in _SETTINGS:
        if (directory / name).exists():
            for key, token in _parse(directory / name).items():
                text = token.get("content") if isinstance(token, dict) else token
                if key in ("eos_token", "pad_token", "unk_token") and isinstance(text, str):
                    special.setdefault(key, text)
    if (directory / SENTENCEPIECE).exists():
        return SiglipTokenizer(vocab_file=str(directory / SENTENCEPIECE), **special)
    return TokenizersBackend(tokenizer_file=str(directory / "tokenizer.json"), **special)
