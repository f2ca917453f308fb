"""Small tokenizers of the published kinds, learnt from the captions of a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, Siglip2Tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SIGLIP_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
"""In the order of their ids."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space."""


def train_clip_tokenizer(corpus: Iterable[str], vocab_size: int, context: int) -> CLIPTokenizer:
    """Byte-level BPE with end-of-word marks, lower case; merges are learnt from `corpus`.

    As in CLIP, the vocabulary is the 256 bytes, the same at a word's end, the merges, BOS and EOS.
    """
    corpus = list(corpus)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    blank = CLIPTokenizer()
    backend = blank.backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - 256 - 2,
        end_of_word_suffix="</w>",
        show_progress=False,
        # The trainer numbers word-final bytes in the order of a hash map, and by their numbers it
        # decides between merges that are as frequent: number them here.
        special_tokens=[*alphabet, *_word_final(backend, corpus)],
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


def _word_final(backend: Tokenizer, corpus: Iterable[str]) -> list[str]:
    """The word-final bytes of `corpus` with their mark, sorted."""
    splitter, normalizer = backend.pre_tokenizer, backend.normalizer
    words = {
        word
        for text in corpus
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    return sorted({word[-1] + "</w>" for word in words})


def _merges(serialized: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(serialized)["model"]["merges"]]


def train_siglip_tokenizer(
    corpus: Iterable[str], vocab_size: int, context: int
) -> Siglip2Tokenizer:
    """BPE of lower-case text with marked spaces, as in SigLIP 2; merges are learnt from `corpus`.

    The vocabulary is the special tokens, the 256 bytes, printable ASCII and the merges; any other
    character becomes bytes. A prompt ends with <eos>, and <pad> fills it up on the right.
    """
    blank = _siglip_tokenizer(context)
    backend = blank.backend_tokenizer
    # The tokenizer merges over whole prompts; learnt word by word, no merge crosses a space.
    backend.pre_tokenizer = pre_tokenizers.Split(_SPACE, behavior="merged_with_next")
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=[_SPACE, *(chr(code).lower() for code in range(33, 127))],
        show_progress=False,
        special_tokens=[*SIGLIP_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))],
    )
    backend.train_from_iterator(corpus, trainer)
    vocab = json.loads(backend.to_str())["model"]["vocab"]
    return _siglip_tokenizer(context, vocab=vocab, merges=_merges(backend.to_str()))


def _siglip_tokenizer(context: int, **learnt: Any) -> Siglip2Tokenizer:
    # The class pads on the left by default; the published checkpoints say right.
    return Siglip2Tokenizer(
        model_max_length=context, padding_side="right", add_eos_token=True, **learnt
    )
