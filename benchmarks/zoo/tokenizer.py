"""A small tokenizer of the CLIP kind: byte-level BPE with end-of-word marks, lower case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(corpus: Iterable[str], vocab_size: int, context: int) -> CLIPTokenizer:
    """Learn merges from `corpus`.

    As in CLIP, the vocabulary is the 256 bytes, the same at a word's end, the merges, BOS and EOS.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = CLIPTokenizer()
    backend = blank.backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - 256 - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[],
    )
    backend.train_from_iterator(corpus, trainer)
    # The trainer counts only those word-final bytes that it saw: rebuild the table in CLIP's order.
    merges = _merges(backend.to_str())
    pieces = alphabet + [byte + "</w>" for byte in alphabet]
    pieces += list(dict.fromkeys("".join(pair) for pair in merges))
    pieces = [*pieces[: vocab_size - 2], BOS, EOS]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    kept = [pair for pair in merges if {*pair, "".join(pair)} <= vocab.keys()]
    # Pairs are what the backend takes; transformers declares strings.
    return CLIPTokenizer(vocab=vocab, merges=kept, model_max_length=context)  # type: ignore[arg-type]


def _merges(serialized: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(serialized)["model"]["merges"]]


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
