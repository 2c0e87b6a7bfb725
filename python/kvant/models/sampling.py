"""Choose the next token from a row of logits."""

from __future__ import annotations

import numpy as np

from kvant.models.ops import Array

__all__ = ["pick"]


def pick(logits: Array, temperature: float, top_p: float, generator: np.random.Generator) -> int:
    """The best token at temperature 0, else a draw from the smallest set of mass `top_p`.

    Parameters
    ----------
    logits : f32 [vocab]
    temperature : float
        0 takes the largest logit (the lowest id on a tie) and draws nothing.
    top_p : float
        In (0, 1]; the most likely token is always in the set.
    generator : np.random.Generator
    """
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = (logits.astype(np.float64) - float(logits.max())) / temperature
    probability = np.exp(scaled)
    probability /= probability.sum()
    order = np.argsort(-probability, kind="stable")
    mass = np.cumsum(probability[order])
    kept = order[: int(np.searchsorted(mass, top_p)) + 1]
    return int(generator.choice(kept, p=probability[kept] / probability[kept].sum()))
