"""Rotary positions of a model: base, style, and the scalings that stretch its context."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kvant.models.config import ModelConfig
from kvant.models.weights import Array, WeightTable

__all__ = ["Rope", "read_rope"]


@dataclass(frozen=True)
class Rope:
    """Arguments of `kvant.rope`, and what scores are multiplied by besides.

    YaRN multiplies queries and keys by a factor; here the scores are, by its square, and keys stay
    as they are.
    """

    theta: float
    style: str
    scale: float = 1.0
    factors: Array | None = None
    score_scale: float = 1.0


def read_rope(config: ModelConfig, weights: WeightTable, style: str) -> Rope:
    """The rotary positions that a model's keys and tensors describe."""
    theta = config.rope_freq_base
    if "rope_freqs.weight" in weights:
        return Rope(theta, style, config.rope_scale, weights.vector("rope_freqs.weight"))
    if config.rope_original_context:
        magnitude = 1.0 + 0.1 * math.log(config.rope_scale)
        return Rope(theta, style, 1.0, _yarn_factors(config), magnitude**2)
    return Rope(theta, style, config.rope_scale)


def _yarn_factors(config: ModelConfig) -> Array:
    """Divisors of the frequencies (Peng and others, "YaRN", 2023, arXiv:2309.00071).

    Pairs that turn more than 32 times within the original context keep their frequency, those that
    turn less than once are slowed by the full factor, and between them it changes evenly.
    """
    dim, base = config.key_length, config.rope_freq_base

    def pair_of(turns: float) -> float:
        length = config.rope_original_context / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(base))

    low, high = pair_of(32.0), pair_of(1.0)
    if config.architecture != "gpt-oss":  # which was trained without rounding
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return np.asarray(1.0 / (ramp / config.rope_scale + (1.0 - ramp)), dtype=np.float32)
