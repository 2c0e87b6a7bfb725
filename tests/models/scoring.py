"""Perplexity over windows: what a language model is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvant.models import Model


def perplexity(model: Model, ids: Sequence[int], *, window: int, bos: int) -> float:
    """Score the second half of each window, which is `bos` and the next window - 1 tokens."""
    losses = []
    for start in range(0, len(ids) - window + 2, window - 1):
        tokens = np.array([bos, *ids[start : start + window - 1]])
        logits = model.logits(tokens)[window // 2 : -1].astype(np.float64)
        target = tokens[window // 2 + 1 :]
        peak = logits.max(-1)
        total = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
        losses.append(total - logits[np.arange(len(target)), target])
    return float(np.exp(np.concatenate(losses).mean()))
