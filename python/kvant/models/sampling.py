"""Choose the next token from a row of logits."""

from __future__ import annotations

import numpy as np

from kvant.errors import Error, ModelError
from kvant.models.weights import Array

__all__ = ["Sampler"]


class Sampler:
    """Takes the best token at temperature 0, else draws from the smallest set of mass `top_p`.

    Parameters
    ----------
    temperature : float
        0 takes the largest logit (the lowest id on a tie) and draws nothing.
    top_p : float
        In (0, 1]; the most likely token is always in the set.
    seed : int
        The same seed gives the same draws.

    Raises
    ------
    ModelError
        A setting is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> Sampler().pick(np.float32([1, 3, 2]))
    1
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        if not 0 <= temperature < float("inf"):
            raise ModelError(f"[generate] expected temperature >= 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise ModelError(f"[generate] expected 0 < top_p <= 1, got {top_p}")
        self._temperature = temperature
        self._top_p = top_p
        self._generator = np.random.default_rng(seed)

    def pick(self, logits: Array) -> int:
        """The next token's id, from logits f32 [vocab]; Error where one is NaN."""
        if np.isnan(logits.max()):
            raise Error("[generate] expected logits that are numbers, got NaN")
        if self._temperature == 0:
            return int(np.argmax(logits))
        scaled = (logits.astype(np.float64) - float(logits.max())) / self._temperature
        probability = np.exp(scaled)
        probability /= probability.sum()
        order = np.argsort(-probability, kind="stable")
        mass = np.cumsum(probability[order])
        kept = order[: int(np.searchsorted(mass, self._top_p)) + 1]
        share = probability[kept] / probability[kept].sum()
        return int(self._generator.choice(kept, p=share))
