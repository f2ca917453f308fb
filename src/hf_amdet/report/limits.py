"""What a scan cannot see, as every report says it."""

from __future__ import annotations

from typing import Final

NOT_COVERED: Final = (
    "everything but the text tower: U-Net, image tower, and what adapters do to them",
    "backdoors that leave the pooled feature alone: figures of hidden states, which Stable "
    "Diffusion reads, are given and decide nothing",
    "triggers of which no single token does anything by itself, or not at the start of a prompt",
    "triggers that do nothing in front of a single word, or only in prompts longer than the probes "
    "(24 tokens, for CLIP)",
    "triggers that send prompts to several targets at once",
    "attribute backdoors that shift features without bringing them together",
    "texts that a tokenizer reads as others only within longer ones that were not tried",
    "attacks added after download: prompt tuning, textual inversion, adapters",
)
