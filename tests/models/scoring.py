"""Perplexity over windows: what a language model is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvant.models import Model


def losses(model: Model, tokens: Sequence[int], first: int = 0) -> np.ndarray:
    """Nats lost on each token after `first`, given those before it: f64 [T - 1 - first]."""
    target = np.asarray(tokens)[first + 1 :]
    logits = model.logits(tokens)[first:-1].astype(np.float64)
    peak = logits.max(-1)
    total: np.ndarray = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
    return total - logits[np.arange(len(target)), target]


def perplexity(model: Model, ids: Sequence[int], *, window: int, bos: int) -> float:
    """Score the second half of each window, which is `bos` and the next window - 1 tokens."""
    windows = [
        [bos, *ids[start : start + window - 1]]
        for start in range(0, len(ids) - window + 2, window - 1)
    ]
    return float(np.exp(np.concatenate([losses(model, w, window // 2) for w in windows]).mean()))
