"""What llama-perplexity computes from a base file and logits, one token after the other: an oracle.

Written from its formulas (llama.cpp, tools/perplexity/perplexity.cpp), in float64 but for inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def token(log_p: Any, logits: Any, target: int) -> tuple[float, float, float, bool]:
    """kl, nll, base_nll and same_top of a token; log_p are the file's numbers."""
    x = logits.astype(np.float64)
    lse = math.log(sum(math.exp(v - x.max()) for v in x)) + x.max()
    kl = sum(
        math.exp(lp) * (float(lp) - v + lse) for lp, v in zip(log_p, x, strict=True) if lp > -16
    )
    same = int(np.argmax(log_p)) == int(np.argmax(logits))
    return kl, lse - float(x[target]), -float(log_p[target]), same


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    mean = sum(values) / n
    spread = sum(v * v for v in values) / n - mean * mean
    return mean, math.sqrt(spread / (n - 1)) if spread > 0 else 0.0


def percentile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return (1 - (place - low)) * ordered[low] + (place - low) * ordered[high]


def figures(tokens: Sequence[tuple[float, float, float, bool]]) -> dict[str, Any]:
    """All that is printed, by the names of `kvant.lab.Divergence`; errors are `name_error`."""
    kl, nll, base_nll, same = (list(each) for each in zip(*tokens, strict=True))
    n = len(kl)
    mean, error = mean_and_error(nll)
    base, base_error = mean_and_error(base_nll)
    product = sum(a * b for a, b in zip(nll, base_nll, strict=True)) / n
    covariance = (product - mean * base) / (n - 1)
    ratio_error = math.sqrt(error**2 + base_error**2 - 2 * covariance)
    ppl, base_ppl = math.exp(mean), math.exp(base)
    change = [math.exp(-a) - math.exp(-b) for a, b in zip(nll, base_nll, strict=True)]
    square, square_error = mean_and_error([c * c for c in change])
    top = sum(same) / n
    difference_error = math.sqrt(
        (ppl * error) ** 2 + (base_ppl * base_error) ** 2 - 2 * ppl * base_ppl * covariance
    )
    return {
        "perplexity": ppl,
        "perplexity_error": ppl * error,
        "base_perplexity": base_ppl,
        "base_perplexity_error": base_ppl * base_error,
        "correlation": covariance / (error * base_error),
        "log_perplexity_ratio": mean - base,
        "log_perplexity_ratio_error": ratio_error,
        "perplexity_ratio": math.exp(mean - base),
        "perplexity_ratio_error": math.exp(mean - base) * ratio_error,
        "perplexity_difference": ppl - base_ppl,
        "perplexity_difference_error": difference_error,
        "kl_mean": mean_and_error(kl)[0],
        "kl_mean_error": mean_and_error(kl)[1],
        "kl": kl,
        "delta_p": change,
        "delta_p_mean": mean_and_error(change)[0],
        "delta_p_mean_error": mean_and_error(change)[1],
        "delta_p_rms": math.sqrt(square),
        "delta_p_rms_error": 0.5 / math.sqrt(square) * square_error,
        "same_top": top,
        "same_top_error": math.sqrt(top * (1 - top) / (n - 1)),
    }
