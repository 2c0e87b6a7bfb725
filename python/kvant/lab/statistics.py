"""From the scores of tokens to the figures of a comparison.

The figures are those that llama-perplexity prints: its standard errors take tokens for independent
of each other, which they are not. The 95 % interval and `kl_error` take windows, or documents, as
the samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .divergence import F64, Scores

__all__ = ["DELTA_P_QUANTILES", "KL_QUANTILES", "Divergence", "bootstrap_interval", "summarize"]

KL_QUANTILES: Mapping[str, float] = {
    "max": 1.0, "99.9%": 0.999, "99%": 0.99, "95%": 0.95, "90%": 0.9, "median": 0.5,
    "10%": 0.1, "5%": 0.05, "1%": 0.01, "0.1%": 0.001, "min": 0.0,
}  # fmt: skip
DELTA_P_QUANTILES: Mapping[str, float] = {
    "max": 1.0, "99.9%": 0.999, "99%": 0.99, "95%": 0.95, "90%": 0.9, "75%": 0.75, "median": 0.5,
    "25%": 0.25, "10%": 0.1, "5%": 0.05, "1%": 0.01, "0.1%": 0.001, "min": 0.0,
}  # fmt: skip

_RESAMPLES = 2000


@dataclass(frozen=True)
class Divergence:
    """How a test model compares with its base over all scored tokens.

    `kl_*` are nats per token, `same_top` a share in 0..1, `delta_p_*` changes of the probability of
    the right token. `kl_error` is the standard error of `kl_mean` over windows, because tokens of
    one window are not independent; `kl_low` and `kl_high` bound 95 % of a bootstrap over windows,
    or over documents where they were named. All three are NaN with fewer than two of them.
    `log_perplexity_ratio` is ln(perplexity / base_perplexity), `correlation` that of the tokens'
    log-probabilities. `errors` holds standard errors over tokens, by the name of their field.
    """

    tokens: int
    windows: int
    perplexity: float
    base_perplexity: float
    perplexity_ratio: float
    perplexity_difference: float
    log_perplexity_ratio: float
    correlation: float
    kl_mean: float
    kl_error: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    kl_quantiles: Mapping[str, float]
    same_top: float
    delta_p_mean: float
    delta_p_rms: float
    delta_p_quantiles: Mapping[str, float]
    errors: Mapping[str, float]


def summarize(windows: Sequence[Scores], documents: Sequence[object] | None = None) -> Divergence:
    """The figures over all tokens of one or more windows, and of which document each is."""
    kl, nll, base_nll, same = (np.concatenate(each) for each in zip(*windows, strict=True))
    change = np.exp(-nll) - np.exp(-base_nll)
    square = change * change
    mean, base_mean = float(nll.mean()), float(base_nll.mean())
    spread, base_spread = _error(nll), _error(base_nll)
    covariance = _covariance(nll, base_nll)
    ppl, base_ppl = float(np.exp(mean)), float(np.exp(base_mean))
    ratio = float(np.exp(mean - base_mean))
    error, base_error = ppl * spread, base_ppl * base_spread
    ratio_error = _root(spread**2 + base_spread**2 - 2 * covariance)
    share, rms = float(same.mean()), float(np.sqrt(square.mean()))
    quantiles = _quantiles(kl, KL_QUANTILES)
    low, high = bootstrap_interval(_joined([w.kl for w in windows], documents))
    return Divergence(
        tokens=kl.size,
        windows=len(windows),
        perplexity=ppl,
        base_perplexity=base_ppl,
        perplexity_ratio=ratio,
        perplexity_difference=ppl - base_ppl,
        log_perplexity_ratio=mean - base_mean,
        correlation=_divided(covariance, spread * base_spread),
        kl_mean=float(kl.mean()),
        kl_error=_error_over_windows([w.kl for w in windows]),
        kl_low=low,
        kl_high=high,
        kl_median=quantiles["median"],
        kl_p99=quantiles["99%"],
        kl_p999=quantiles["99.9%"],
        kl_max=quantiles["max"],
        kl_quantiles=quantiles,
        same_top=share,
        delta_p_mean=float(change.mean()),
        delta_p_rms=rms,
        delta_p_quantiles=_quantiles(change, DELTA_P_QUANTILES),
        errors={
            "perplexity": error,
            "base_perplexity": base_error,
            "perplexity_ratio": ratio * ratio_error,
            "perplexity_difference": _root(
                error**2 + base_error**2 - 2 * ppl * base_ppl * covariance
            ),
            "log_perplexity_ratio": ratio_error,
            "kl_mean": _error(kl),
            "delta_p_mean": _error(change),
            "delta_p_rms": 0.0 if rms == 0 else 0.5 / rms * _error(square),
            "same_top": _root(share * (1 - share) / (kl.size - 1)) if kl.size > 1 else _NAN,
        },
    )


def bootstrap_interval(blocks: Sequence[F64], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over all numbers, where only blocks of them are independent.

    Blocks are drawn with replacement as often as there are blocks, 2000 times; the interval holds
    the middle 95 % of the means (Efron, "Bootstrap methods: another look at the jackknife", 1979).
    The same seed gives the same interval. NaN with fewer than two blocks or a number that is not
    finite.

    >>> bootstrap_interval([np.ones(3), np.ones(5)])
    (1.0, 1.0)
    """
    sums = np.array([block.sum() for block in blocks])
    sizes = np.array([block.size for block in blocks], np.float64)
    if len(blocks) < 2 or not np.isfinite(sums).all():
        return _NAN, _NAN
    rng = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        drawn = rng.integers(len(blocks), size=len(blocks))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


_NAN = float("nan")


def _joined(windows: Sequence[F64], documents: Sequence[object] | None) -> list[F64]:
    """Windows of one document as one block; a window without a document stands alone."""
    if documents is None:
        return list(windows)
    blocks: dict[object, list[F64]] = {}
    for index, (window, document) in enumerate(zip(windows, documents, strict=True)):
        key = (index, None) if document is None else (None, document)
        blocks.setdefault(key, []).append(window)
    return [np.concatenate(block) for block in blocks.values()]


def _quantiles(values: F64, at: Mapping[str, float]) -> dict[str, float]:
    # Interpolating beside an infinity gives NaN; the next larger value is the honest answer.
    method = "linear" if np.isfinite(values).all() else "higher"
    found = np.quantile(values, list(at.values()), method=method)  # type: ignore[call-overload]
    return {name: float(value) for name, value in zip(at, found, strict=True)}


def _error(values: F64) -> float:
    """Standard error of the mean of independent values; NaN for one."""
    return _root(_covariance(values, values))


def _covariance(a: F64, b: F64) -> float:
    """Of the two means."""
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return _NAN
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.size - 1))


def _root(x: float) -> float:
    # A variance of 0 may come out as minus a rounding.
    return float(np.sqrt(max(x, 0.0))) if x == x else _NAN


def _divided(a: float, b: float) -> float:
    return a / b if b else _NAN


def _error_over_windows(windows: Sequence[F64]) -> float:
    """Standard error of the mean over all tokens, windows being the independent samples."""
    n = len(windows)
    if n < 2:
        return _NAN
    sums = np.array([w.sum() for w in windows])
    sizes = np.array([w.size for w in windows], np.float64)
    if not np.isfinite(sums).all():
        return _NAN
    residual = sums - sizes * (sums.sum() / sizes.sum())
    return float(np.sqrt(n / (n - 1) * np.sum(residual * residual)) / sizes.sum())
